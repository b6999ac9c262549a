"""What every request passes: one line of log, a count, and an answer even where the code is wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedtune.serve.metrics import Metrics
from embedtune.serve.refusals import Refusal

log = logging.getLogger(__name__)


class Gate:
    """Log and count requests: path, status and time, nothing that was sent.

    Parameters
    ----------
    app : ASGI application
    metrics : Metrics
    paths : iterable of str
        Those that are named; any other might quote a text or a key.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: Iterable[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started = 0, time.perf_counter()

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception as error:
            # Neither traceback nor message: both may quote what was sent.
            log.error("a request failed with %s%s", type(error).__name__, _find_place(error))
            if not status:
                refusal = Refusal(500, "the server failed on this request.", code="internal")
                await JSONResponse(refusal.as_dict(), refusal.status)(scope, receive, note)
        finally:
            seconds = time.perf_counter() - started
            path = scope["path"] if scope["path"] in self.paths else "other"
            note_request(self.metrics, _name_method(scope), path, status, seconds)


def note_request(metrics: Metrics, method: str, path: str, status: int, seconds: float) -> None:
    """Count a request and log it."""
    metrics.observe_request(path, status, seconds)
    log.info("%s %s %d %.1f ms", method, path, status, seconds * 1000)


def _name_method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "OTHER"


def _find_place(error: BaseException) -> str:
    """Return the innermost line of code, such as `` in predict, line 12``."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f" in {frame.tb_frame.f_code.co_name}, line {frame.tb_lineno}" if frame else ""
