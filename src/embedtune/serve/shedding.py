"""What the queue has no room for is refused at the door, before its body is read."""

from __future__ import annotations

from collections.abc import Collection

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from embedtune.serve.batcher import Batcher
from embedtune.serve.refusals import Refusal


class Shedder:
    """Refuse before routing, parsing and checking.

    Parameters
    ----------
    app : ASGI application
    batcher : Batcher
    paths : collection of str
        Those whose texts are read.
    """

    def __init__(self, app: ASGIApp, *, batcher: Batcher, paths: Collection[str]) -> None:
        self.app, self.batcher, self.paths = app, batcher, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self.paths:
            try:
                self.batcher.check(1)
            except Refusal as refusal:
                answer = JSONResponse(refusal.as_dict(), refusal.status, headers=refusal.headers)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)
