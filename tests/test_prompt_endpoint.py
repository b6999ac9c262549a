"""Asking a server: what is sent, what is made of its replies, and what happens when it fails."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest

from embedtune import PromptClassifier
from embedtune.errors import ConfigError, EndpointError
from embedtune.prompt.answers import match_answer, read_first_token
from embedtune.prompt.endpoint import Endpoint, Reply
from prompt_server import Response, complete, serve

KEY = "sk-" + "k" * 40
HELLO = [[{"role": "user", "content": "hello"}]]
TEXTS, LABELS = ["gold rose", "gold fell", "oil rose", "oil fell"], ["up", "down", "up", "down"]


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def answer_by_text(content: dict[str, Any], number: int) -> Response:
    up = 0.9 if "rose" in content["messages"][-1]["content"] else 0.2
    return complete("up", {" Up": up, "down": 0.98 - up, "The": 0.02})


def test_probabilities_are_those_of_the_first_token() -> None:
    with serve(answer_by_text) as server:
        classifier = PromptClassifier(endpoint=server.url, n_examples=2).fit(TEXTS, LABELS)
        found = classifier.predict_proba(["coal rose", "coal fell", "coal rose"])
    np.testing.assert_allclose(
        found, [[0.08 / 0.98, 0.9 / 0.98], [0.78 / 0.98, 0.2 / 0.98], [0.08 / 0.98, 0.9 / 0.98]]
    )
    assert list(classifier.classes_) == ["down", "up"]
    assert (classifier.last_n_asked_, classifier.last_n_unmatched_, classifier.n_parameters_) == (2, 0, None)
    first = server.questions[0]
    assert {key: first[key] for key in ("path", "model", "temperature", "logprobs", "top_logprobs")} == {
        "path": "/v1/chat/completions", "model": "tiny", "temperature": 0, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert "Authorization" not in server.headers[0]


def test_key_goes_into_the_header_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def refuse(content: dict[str, Any], number: int) -> Response:
        return 401, {"error": {"message": f"Incorrect API key provided: {KEY}."}}, {}

    with serve(refuse) as server:
        endpoint = Endpoint(server.url)
        with pytest.raises(EndpointError) as caught:
            endpoint.ask(HELLO, max_tokens=4)
    assert str(caught.value) == (
        f"{server.url} refuses the key (Incorrect API key provided: ….): "
        "set the environment variable OPENAI_API_KEY to one that is valid there."
    )
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {KEY}"]
    assert KEY not in caplog.text + repr(vars(endpoint)) + str(server.questions)


def test_missing_and_malformed_keys_are_told_without_showing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda content, number: (401, {}, {})) as server:
        with pytest.raises(EndpointError) as caught:
            Endpoint(server.url).ask(HELLO, max_tokens=4)
        assert str(caught.value) == (
            f"{server.url} asks for a key ({{}}): set the environment variable OPENAI_API_KEY to yours."
        )
        monkeypatch.setenv("OPENAI_API_KEY", "sk-a\nb")
        with pytest.raises(EndpointError) as caught:
            Endpoint(server.url).ask(HELLO, max_tokens=4)
    assert str(caught.value) == "OPENAI_API_KEY holds characters that no key has: set it again."


@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_is_asked_again_when_it_says(status: int) -> None:
    times: list[float] = []

    def respond(content: dict[str, Any], number: int) -> Response:
        times.append(time.monotonic())
        return complete("up") if number == 3 else (status, {}, {"Retry-After": "1"} if number == 1 else {})

    with serve(respond) as server:
        replies = Endpoint(server.url, pause=0.01).ask(HELLO, max_tokens=4)
    assert replies == [Reply("up", {})]
    assert times[1] - times[0] >= 1
    assert times[2] - times[1] < 0.9


def test_retry_after_may_be_a_date() -> None:
    from embedtune.prompt import endpoint

    then = datetime.now(UTC) + timedelta(seconds=30)
    assert endpoint._read_wait(format_datetime(then, usegmt=True)) == pytest.approx(30, abs=2)
    assert [endpoint._read_wait(header) for header in ("soon", None, "-3", "nan", "1e9")] == [
        None,
        None,
        0,
        None,
        120,
    ]


def test_failed_request_ends_the_others_pauses() -> None:
    def respond(content: dict[str, Any], number: int) -> Response:
        return (429, {}, {"Retry-After": "60"}) if number == 1 else (404, {}, {})

    with serve(respond) as server, pytest.raises(EndpointError, match="answers 404"):
        Endpoint(server.url, n_parallel=2).ask(HELLO * 2, max_tokens=4)


def test_server_that_stays_busy_is_given_up() -> None:
    with serve(lambda content, number: (429, {"error": {"message": "slow down"}}, {})) as server:
        with pytest.raises(EndpointError) as caught:
            Endpoint(server.url, n_retries=2, pause=0.01).ask(HELLO, max_tokens=4)
        assert len(server.questions) == 3
    assert str(caught.value) == (
        f"{server.url} answers 429 (slow down), 3 times in a row: "
        "check that the server runs and the address is right, or try later."
    )


def test_server_that_does_not_answer_in_time_is_asked_again() -> None:
    def respond(content: dict[str, Any], number: int) -> Response:
        time.sleep(3 if number == 1 else 0)
        return complete("up")

    with serve(respond) as server:
        assert Endpoint(server.url, timeout=1.5, pause=0.01).ask(HELLO, max_tokens=4) == [Reply("up", {})]
        assert len(server.questions) == 2


def test_unreachable_server_is_told_at_once() -> None:
    with serve(answer_by_text) as server:
        url = server.url
    with pytest.raises(EndpointError) as caught:
        PromptClassifier(endpoint=url).check()
    assert str(caught.value) == (
        f"{url} can't be reached (Connection refused): "
        "check that the server runs and the address is right, or try later."
    )


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"<html>hello</html>", "'<html>hello</html>', which is no JSON"),
        ({"choices": []}, "'{\"choices\": []}', which is no chat completion"),
        ({"choices": ["up"]}, '\'{"choices": ["up"]}\', which is no chat completion'),
        ([1], "'[1]', which is no chat completion"),
    ],
)
def test_malformed_reply_is_refused_in_one_line(content: Any, shown: str) -> None:
    with serve(lambda question, number: (200, content, {})) as server, pytest.raises(EndpointError) as caught:
        Endpoint(server.url).ask(HELLO, max_tokens=4)
    assert str(caught.value) == (
        f"{server.url} answers {shown}: give the address of an OpenAI-compatible server, up to its version (/v1)."
    )


def test_server_without_logprobs_is_asked_for_its_answer_alone() -> None:
    def respond(content: dict[str, Any], number: int) -> Response:
        if "logprobs" in content:
            return 400, {"error": {"message": "logprobs are not supported"}}, {}
        return complete(
            "“Up.”" if "rose" in content["messages"][-1]["content"] else "Answer: DOWN\n\nIt fell."
        )

    with serve(respond) as server:
        classifier = PromptClassifier(endpoint=server.url, n_parallel=1).fit(TEXTS, LABELS)
        found = classifier.predict_proba(["coal rose", "coal fell"])
    np.testing.assert_allclose(found, [[0.01, 0.99], [0.99, 0.01]])
    assert [question.get("top_logprobs") for question in server.questions] == [20, 5, None, None]


def test_unknown_answer_counts_as_undecided() -> None:
    def respond(content: dict[str, Any], number: int) -> Response:
        return complete("I can't tell." if "fell" in content["messages"][-1]["content"] else "up")

    with serve(respond) as server:
        classifier = PromptClassifier(endpoint=server.url).fit(TEXTS, LABELS)
        found = classifier.predict_proba(["coal rose", "coal fell", "tin fell"])
    np.testing.assert_allclose(found, [[0.01, 0.99], [0.5, 0.5], [0.5, 0.5]])
    assert classifier.last_n_unmatched_ == 2


def test_other_refusals_carry_the_servers_words() -> None:
    with (
        serve(lambda content, number: (404, {"detail": "no such model"}, {})) as server,
        pytest.raises(EndpointError) as caught,
    ):
        Endpoint(server.url).ask(HELLO, max_tokens=4)
    assert str(caught.value) == (
        f"{server.url} answers 404 (no such model): "
        "check that the address ends in the version (/v1) and the server knows the model."
    )


def test_redirect_is_not_followed_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(answer_by_text) as other:
        move = (307, {}, {"Location": f"{other.url}/chat/completions"})
        with serve(lambda content, number: move) as server, pytest.raises(EndpointError) as caught:
            Endpoint(server.url).ask(HELLO, max_tokens=4)
        assert not other.questions
    assert str(caught.value) == f"{server.url} sends elsewhere (307): give the address it sends to."


@pytest.mark.parametrize(
    ("models", "model", "message"),
    [
        (("a", "b"), None, "has 2 models (a, b): name one of them as the model."),
        (("tiny-chat",), "tiny-chta", "has no model 'tiny-chta' (did you mean 'tiny-chat'?): it has tiny-chat."),
        ({"object": "list"}, None, "answers '{\"object\": \"list\"}', which is no list of models: "
         "give the address of an OpenAI-compatible server, up to its version (/v1)."),
    ],
)  # fmt: skip
def test_model_must_be_served(models: Any, model: str | None, message: str) -> None:
    with serve(answer_by_text, models) as server, pytest.raises(EndpointError) as caught:
        PromptClassifier(model, endpoint=server.url).check()
    assert str(caught.value) == f"{server.url} {message}"


def test_model_may_be_named_without_its_tag() -> None:
    with serve(answer_by_text, ("a:latest", "b")) as server:
        assert Endpoint(server.url, "a").find_model() == "a"
        assert Endpoint(server.url + "/", "b").find_model() == "b"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "localhost:8000",
            "endpoint 'localhost:8000' is no address: give one such as http://127.0.0.1:8000/v1.",
        ),
        (
            "file:///etc/passwd",
            "endpoint 'file:///etc/passwd' is no address: give one such as http://127.0.0.1:8000/v1.",
        ),
        (
            f"http://me:{KEY}@host/v1",
            "the endpoint on host is given with a name or password: leave it out, and set the "
            "environment variable OPENAI_API_KEY to the key.",
        ),
    ],
)
def test_malformed_address_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint(url)
    assert str(caught.value) == message


def test_several_questions_are_asked_at_once() -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def respond(content: dict[str, Any], number: int) -> Response:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.1)
        with lock:
            at_once -= 1
        return complete(content["messages"][-1]["content"])

    with serve(respond) as server:
        conversations = [[{"role": "user", "content": str(i)}] for i in range(8)]
        replies = Endpoint(server.url, n_parallel=4).ask(conversations, max_tokens=4)
    assert [reply.text for reply in replies] == [str(i) for i in range(8)]
    assert 2 <= most <= 4


@pytest.mark.parametrize(
    ("tokens", "options", "expected"),
    [
        # the least likely token listed bounds what an unlisted option may have
        ({"pos": 0.7, "Pos": 0.2, "x": 0.1}, ["positive", "negative"], [0.9, 0.1]),
        (
            {"ne": 0.9, "pos": 0.1},
            ["neutral", "negative", "positive"],
            None,
        ),  # doesn't tell the first two apart
        ({"positive": 0.9, "negative": 0.1}, ["positive", "positive outlook", "negative"], None),
        ({"The": 0.97, "up": 0.03}, ["up", "down"], None),
        ({" ": 1.0}, ["up", "down"], None),
        ({}, ["up", "down"], None),
    ],
)
def test_read_first_token_shares_out_what_is_clear(
    tokens: dict[str, float], options: list[str], expected: list[float] | None
) -> None:
    found = read_first_token(tokens, options)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("positive", 0), (" POSITIVE.\n", 0), ("'Positive Outlook'", 1), ("The answer is: no", 2), ("**no**", 2),
        ("U.S.", 3), ("Label: positive (it rose).", 0), ("Positive: it rose", 0), ("+1", 4), ("-1", 5),
        ("positive outlook, as sales rose", 1), ("There is no label", None), ("not positive", None), ("", None),
        ("positive or negative", None),
    ],
)  # fmt: skip
def test_match_answer_folds_case_quotes_and_punctuation(text: str, option: int | None) -> None:
    assert match_answer(text, ["positive", "positive outlook", "no", "U.S.", "+1", "-1"]) == option


def test_options_that_a_text_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        PromptClassifier(endpoint="http://127.0.0.1:9/v1").fit(TEXTS, ["Up", "up", "up", "down"])
    assert str(caught.value) == (
        "the answer 'up' can't be told from 'Up' in what a server writes: "
        "give their labels different wordings in options."
    )


def test_long_texts_are_cut_for_a_server() -> None:
    with serve(answer_by_text) as server:
        PromptClassifier(endpoint=server.url, max_length=4).fit(TEXTS, LABELS).predict(["rose " + "x" * 999])
    assert server.questions[0]["messages"][-1]["content"].endswith("Text: rose xxxxxxxxxxx")
