"""A chat-completions server that says what a test tells it to, over real HTTP."""

from __future__ import annotations

import http.server
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Status, what is sent (JSON, or bytes as they are), headers.
Response = tuple[int, Any, dict[str, str]]


class StubServer(http.server.ThreadingHTTPServer):
    """`respond` gets each question's content and its number; what was asked is in `questions` and `headers`."""

    daemon_threads = True

    def __init__(self, respond: Callable[[dict[str, Any], int], Response], models: Any = ("tiny",)) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond = respond
        self.models = {"data": [{"id": name} for name in models]} if isinstance(models, tuple) else models
        self.questions: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: StubServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, self.server.models, {})
        else:
            self._send(404, {"error": {"message": f"no {self.path}"}}, {})

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.questions.append({**content, "path": self.path})
            self.server.headers.append(dict(self.headers))
            number = len(self.server.questions)
        self._send(*self.server.respond(content, number))

    def _send(self, status: int, content: Any, headers: dict[str, str]) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve(
    respond: Callable[[dict[str, Any], int], Response], models: Any = ("tiny",)
) -> Iterator[StubServer]:
    """Run a server on a free port inside the block."""
    server = StubServer(respond, models)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def complete(text: str, tokens: dict[str, float] | None = None) -> Response:
    """Return a completion, with its first token's probabilities if given."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if tokens is not None:
        top = [{"token": token, "logprob": math.log(p)} for token, p in tokens.items()]
        choice["logprobs"] = {"content": [{"token": next(iter(tokens)), "top_logprobs": top}]}
    return 200, {"choices": [choice]}, {}
