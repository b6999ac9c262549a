"""Connections: a request comes whole and in time, or is refused; those that wait for their client keep nobody out."""

from __future__ import annotations

import asyncio
import json
import time
from http import HTTPStatus
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from embedtune.serve.gate import note_request
from embedtune.serve.limits import Limits
from embedtune.serve.metrics import Metrics
from embedtune.serve.refusals import Refusal, refuse_slow


class Connections:
    """A server's connections, those foremost that owe it a request or the rest of one.

    Called, it returns the protocol of a new connection, as uvicorn wants it.

    Parameters
    ----------
    limits : Limits
    metrics : Metrics
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self.owing: dict[Connection, None] = {}  # the first has owed longest

    def __call__(self, **given: Any) -> Connection:
        return Connection(self, **given)

    def make_room(self, n_open: int) -> None:
        """Close the connection that has owed longest, if more are open than may be."""
        if n_open > self.limits.max_connections and self.owing:
            next(iter(self.owing)).drop()


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, with a clock for a request's head and another for its body.

    A route that reads a body keeps the time itself (`read_body`), so that its refusal is an answer like any other.
    """

    def __init__(self, all_connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all = all_connections
        self._owes: Literal["head", "body"] | None = None
        self._since = 0.0
        self._clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        self._expect()
        self._all.make_room(len(self.connections))

    def data_received(self, data: bytes) -> None:
        """Read, and expect what is missing."""
        if self._owes == "head" and not self._has_bytes():
            self._start("head")  # the clock runs from the first byte
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        """Expect the next request."""
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._settle()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP."""
        self._refuse(Refusal(400, "the request isn't HTTP/1.1.", code="invalid_http"))

    def drop(self) -> None:
        """Close without a word."""
        self._settle()
        self.transport.abort()

    def _expect(self) -> None:
        """Start the clock where a head or a body is missing that wasn't before."""
        state = self.conn.their_state
        owes: Literal["head", "body"] | None = (
            "head" if state is h11.IDLE else "body" if state is h11.SEND_BODY else None
        )
        if owes is None:
            self._settle()
        elif owes != self._owes:
            self._start(owes)

    def _start(self, owes: Literal["head", "body"]) -> None:
        self._settle()
        self._owes, self._since = owes, time.perf_counter()
        self._all.owing[self] = None
        self._clock = self.loop.call_later(self._all.limits.request_seconds, self._expire)

    def _settle(self) -> None:
        """Stop the clock."""
        self._owes = None
        self._all.owing.pop(self, None)
        if self._clock is not None:
            self._clock.cancel()

    def _expire(self) -> None:
        if self._owes == "head" and self._has_bytes():
            self._refuse(refuse_slow("head", self._all.limits.request_seconds))
        elif self._owes == "head" or self.cycle.response_complete:
            self.drop()

    def _has_bytes(self) -> bool:
        return bool(self.conn.trailing_data[0])

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what didn't become a request, count it, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(refusal.as_dict()).encode()
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            reason = HTTPStatus(refusal.status).phrase.encode()
            head = h11.Response(status_code=refusal.status, headers=headers, reason=reason)
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is None or self.cycle.response_complete:  # else its route counts
            seconds = time.perf_counter() - self._since
            note_request(self._all.metrics, "OTHER", "other", refusal.status, seconds)
        self._settle()
        self.transport.close()
