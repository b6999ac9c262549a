"""Chat completions of an OpenAI-compatible server: vLLM, llama.cpp, Ollama, OpenAI and others.

The key comes from the environment variable OPENAI_API_KEY alone. It is read for each request, goes into its header, and
nowhere else.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from embedtune.errors import ConfigError, EndpointError, suggest_nearest
from embedtune.progress import track
from embedtune.prompt.template import Messages

KEY_NAME = "OPENAI_API_KEY"

#: How many of the first token's alternatives are asked for, until the server agrees; 0: none.
_N_TOP = (20, 5, 0)
#: Too many requests, or a server that is busy or just restarting.
_PASSING = frozenset({408, 429, 500, 502, 503, 504, 529})
#: No pause between two tries is longer, in seconds, whatever Retry-After says.
_LONGEST_PAUSE = 120.0


class Reply(NamedTuple):
    """What a model answered.

    Attributes
    ----------
    text : str
    first_token : dict of str to float
        Probabilities of the likeliest first tokens; empty where the server doesn't tell.
    """

    text: str
    first_token: dict[str, float]


class _Refusal(Exception):
    """An answer that trying again won't change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: urllib would send the key along to wherever it is sent."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """A server and one of its models.

    Parameters
    ----------
    url : str
        Up to and including the version: ``http://127.0.0.1:8000/v1``.
    model : str, optional
        As the server calls it; not needed where it serves a single one.
    timeout : float
        Seconds that a request may take.
    n_parallel : int
        Requests at a time.
    n_retries : int
        How often a request is repeated that failed for a passing reason.
    pause : float
        Seconds before the first repetition; doubled for each further one, unless the server names its own time.

    Raises
    ------
    ConfigError
        If `url` is none of http or https, or holds a password.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        timeout: float = 60.0,
        n_parallel: int = 4,
        n_retries: int = 5,
        pause: float = 1.0,
    ) -> None:
        self.url = check_url(url)
        self.model = model
        self.timeout, self.n_parallel, self.n_retries, self.pause = timeout, n_parallel, n_retries, pause
        self._n_top = _N_TOP[0]
        self._stopped = threading.Event()
        self._opener = urllib.request.build_opener(_NoRedirect())

    def list_models(self) -> list[str]:
        """Return the models the server has, asked once and without patience.

        Raises
        ------
        EndpointError
            If it can't be reached, refuses, or answers something else.
        """
        answer = self._call("models", None, n_retries=0)
        try:
            return [str(one["id"]) for one in answer["data"]]
        except (KeyError, TypeError):
            raise self._explain_nonsense(answer, "list of models") from None

    def find_model(self) -> str:
        """Return the model to ask: the one named, or the only one.

        Raises
        ------
        EndpointError
            As `list_models` does, and if the server has no such model, or several and none is named.
        """
        served = self.list_models()
        # Ollama's list names a tag even where none is needed
        if self.model is not None and {self.model, f"{self.model}:latest"} & set(served):
            return self.model
        shown = ", ".join(sorted(served)[:10]) + (" …" if len(served) > 10 else "") or "none"
        if self.model is not None:
            raise EndpointError(
                f"{self.url} has no model '{self.model}'{suggest_nearest(self.model, served)}: it has {shown}."
            )
        if len(served) != 1:
            raise EndpointError(
                f"{self.url} has {len(served)} models ({shown}): name one of them as the model."
            )
        return served[0]

    def ask(self, conversations: Sequence[Messages], *, max_tokens: int) -> list[Reply]:
        """Return the model's answer to each conversation, at temperature 0.

        Raises
        ------
        EndpointError
            If a request fails for good, or no model is named and the server hasn't just one.
        """
        model = self.model or self.find_model()
        self._stopped.clear()
        with track(f"Asking {model}", len(conversations), unit="texts") as bar:
            pool = ThreadPoolExecutor(self.n_parallel)
            try:
                waiting = [pool.submit(self._ask_one, model, one, max_tokens) for one in conversations]
                for future in as_completed(waiting):
                    future.result()
                    bar.advance()
            except BaseException:
                self._stopped.set()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
        return [future.result() for future in waiting]

    def _ask_one(self, model: str, messages: Messages, max_tokens: int) -> Reply:
        question = {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        for n_top in _N_TOP[_N_TOP.index(self._n_top) :]:
            extra = {"logprobs": True, "top_logprobs": n_top} if n_top else {}
            try:
                answer = self._call("chat/completions", {**question, **extra})
            except _Refusal as refusal:
                # some servers know no logprobs, or not so many
                if n_top and refusal.status in (400, 422):
                    self._n_top = min(self._n_top, _N_TOP[_N_TOP.index(n_top) + 1])
                    continue
                raise self._explain_refusal(refusal) from None
            return self._read_reply(answer)
        raise AssertionError("the last attempt returns or raises")

    def _read_reply(self, answer: Any) -> Reply:
        try:
            choice = answer["choices"][0]
            text = str(choice["message"]["content"] or "")
            steps = (choice.get("logprobs") or {}).get("content") or [{}]
            top = {
                str(one["token"]): math.exp(min(float(one["logprob"]), 0.0))
                for one in steps[0].get("top_logprobs") or ()
            }
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise self._explain_nonsense(answer, "chat completion") from None
        return Reply(text, top)

    def _call(self, path: str, content: Mapping[str, Any] | None, *, n_retries: int | None = None) -> Any:
        """Send one request, again where that may help; return the JSON that comes back."""
        n_tries = 1 + (self.n_retries if n_retries is None else n_retries)
        for i in range(n_tries):
            wait = None
            try:
                with self._opener.open(self._make_request(path, content), timeout=self.timeout) as response:
                    body = response.read()
                break
            except urllib.error.HTTPError as error:
                told = self._read_message(error)
                if error.code not in _PASSING:
                    refusal = _Refusal(error.code, told)
                    if content is None:
                        raise self._explain_refusal(refusal) from None
                    raise refusal from None
                wait = _read_wait(error.headers.get("Retry-After"))
                reason = f"answers {error.code}" + (f" ({told})" if told else "")
            except (OSError, http.client.HTTPException) as error:
                # a URLError holds what happened
                cause = getattr(error, "reason", None) or error
                reason = f"can't be reached ({_describe(cause)})"
            if i + 1 == n_tries:
                tries = "" if n_tries == 1 else f", {n_tries} times in a row"
                raise EndpointError(
                    f"{self.url} {reason}{tries}: check that the server runs and the address is right, or try later."
                ) from None
            # other requests may fail, or the user stop us, in the meantime
            if self._stopped.wait(wait if wait is not None else self.pause * 2**i * random.uniform(1, 1.25)):
                raise EndpointError(f"{self.url} {reason}, and was not asked again.")
        try:
            return json.loads(body)
        except ValueError:
            raise self._explain_nonsense(body[:60].decode("utf-8", "replace"), "JSON") from None

    def _make_request(self, path: str, content: Mapping[str, Any] | None) -> urllib.request.Request:
        data = None if content is None else json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := _read_key():
            headers["Authorization"] = f"Bearer {key}"
        return urllib.request.Request(f"{self.url}/{path}", data=data, headers=headers)

    @staticmethod
    def _read_message(error: urllib.error.HTTPError) -> str:
        """Return the server's own words in one line, without the key should it repeat it."""
        text = ""
        with contextlib.closing(error), contextlib.suppress(OSError, http.client.HTTPException):
            text = error.read(10_000).decode("utf-8", "replace")
        with contextlib.suppress(ValueError, AttributeError):
            told = json.loads(text)
            told = told.get("error", told.get("detail", told.get("message", told)))
            text = str(told.get("message", told) if isinstance(told, dict) else told)
        return _hide_key(" ".join(text.split())[:200])

    def _explain_refusal(self, refusal: _Refusal) -> EndpointError:
        told = f" ({refusal})" if str(refusal) else ""
        if refusal.status in (401, 403):
            has_key = bool(_read_key())
            return EndpointError(
                f"{self.url} {'refuses the key' if has_key else 'asks for a key'}{told}: "
                f"set the environment variable {KEY_NAME} to {'one that is valid there' if has_key else 'yours'}."
            )
        if 300 <= refusal.status < 400:
            return EndpointError(
                f"{self.url} sends elsewhere ({refusal.status}): give the address it sends to."
            )
        return EndpointError(
            f"{self.url} answers {refusal.status}{told}: "
            "check that the address ends in the version (/v1) and the server knows the model."
        )

    def _explain_nonsense(self, answer: Any, expected: str) -> EndpointError:
        shown = _hide_key(answer if isinstance(answer, str) else json.dumps(answer))
        return EndpointError(
            f"{self.url} answers {shown[:60]!r}, which is no {expected}: "
            "give the address of an OpenAI-compatible server, up to its version (/v1)."
        )


def check_url(url: str) -> str:
    """Return an endpoint's address without its last slash.

    Raises
    ------
    ConfigError
        If it is none of http or https, or holds a password.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.username or parts.password:
        raise ConfigError(
            f"the endpoint on {parts.hostname} is given with a name or password: leave it out, and set the "
            f"environment variable {KEY_NAME} to the key."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"endpoint '{url}' is no address: give one such as http://127.0.0.1:8000/v1.")
    return url.rstrip("/")


def _read_key() -> str:
    key = os.environ.get(KEY_NAME, "").strip()
    if not key.isascii() or not key.isprintable():
        # http.client would show it in its own error
        raise EndpointError(f"{KEY_NAME} holds characters that no key has: set it again.")
    return key


def _hide_key(text: str) -> str:
    key = _read_key()
    return text.replace(key, "…") if key else text


def _read_wait(header: str | None) -> float | None:
    """Return the seconds a Retry-After header asks for, given as such or as a date."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            then = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_PAUSE) if math.isfinite(seconds) else None


def _describe(cause: object) -> str:
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
