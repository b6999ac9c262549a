"""What a request is answered when it can't be served: a status and one line, always in the same JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Status -> type, in the words that clients of OpenAI's interface know.
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}


class Refusal(Exception):
    """A request that isn't served.

    Parameters
    ----------
    status : int
        HTTP status, 4xx or 5xx.
    message : str
        One line; it must not repeat a text that was sent.
    param : str, optional
        The field of the request that is at fault.
    code : str, optional
        A word for programs.
    headers : mapping, optional
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def as_dict(self) -> dict[str, Any]:
        """Return the answer's JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }


def refuse_slow(part: str, seconds: float) -> Refusal:
    """Return what a client is told whose request's head or body took longer than that to come."""
    return Refusal(
        408,
        f"the request's {part} wasn't whole after {seconds:g} s: send it at once.",
        code="too_slow",
        headers={"Connection": "close"},
    )
