"""embedtune serve: a real server on loopback says what the library says, whatever else it is told at once."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import runpy
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import torch

from embedtune.bench import contestants
from embedtune.classifier import EmbedClassifier
from embedtune.embed.lexical import LexicalEncoder
from embedtune.errors import BundleError, ConfigError
from embedtune.serve import models as models_module
from embedtune.serve.connections import Connection
from embedtune.serve.limits import Limits
from embedtune.serve.models import load_models
from embedtune.serve.run import Server, bind_address, read_key
from embedtune.serve.words import find_spans, leave_out
from serve_cases import LABELS, TEXTS, fit_bert, run_server, wait_until


@pytest.fixture(scope="module")
def classifier(tiny_bert):
    return fit_bert(tiny_bert)


@pytest.fixture(scope="module")
def lexical():
    return EmbedClassifier([LexicalEncoder()], "logistic", calibration="none").fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def running(classifier, lexical):
    limits = Limits(max_texts=40, max_chars=500, max_body_bytes=30_000, queue_texts=400, batch_tokens=200)
    with run_server({"moves": classifier, "words": lexical}, limits=limits) as running:
        yield running


class Slow:
    """A classifier that waits in `predict_proba` until it is let go, or does what it is told there."""

    def __init__(self, classifier, *, error=None):
        self.classifier, self.error = classifier, error
        self.entered, self.go = threading.Event(), threading.Event()
        self.n_texts = []

    def __getattr__(self, name):
        return getattr(self.classifier, name)

    def predict_proba(self, texts):
        self.entered.set()
        assert self.go.wait(30)
        self.n_texts.append(len(texts))
        if self.error is not None:
            raise self.error
        return self.classifier.predict_proba(texts)


def read_probabilities(answer, labels):
    return np.array(
        [
            [
                {entry["label"]: entry["probability"] for entry in row["probabilities"]}[label]
                for label in labels
            ]
            for row in answer.json()["data"]
        ]
    )


def expect_error(answer, status, message, **fields):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] == message
    assert {name: error[name] for name in fields} == fields


def test_predict_says_what_the_library_says(running, classifier):
    answer = running.post("/v1/predict", {"model": "moves", "input": TEXTS[:7]})
    expected = classifier.predict_proba(TEXTS[:7])
    np.testing.assert_allclose(read_probabilities(answer, ["down", "up"]), expected, atol=1e-5)
    data = answer.json()["data"]
    assert [row["label"] for row in data] == classifier.predict(TEXTS[:7]).tolist()
    assert [row["index"] for row in data] == list(range(7))
    for row in data:
        found = [entry["probability"] for entry in row["probabilities"]]
        assert found == sorted(found, reverse=True)
        assert (row["abstained"], row["set"], row["truncated"]) == (False, None, False)


def test_predict_says_the_same_whatever_is_asked_at_once(running, classifier):
    texts = [f"{text} and {n}" * (1 + n % 5) for n, text in enumerate(TEXTS * 4)]
    sizes = [1, 1, 1, 7, 1, 2, 1, 40] * 4
    starts = np.cumsum([0, *sizes[:-1]])
    pieces = [
        texts[start : start + size] for start, size in zip(starts, sizes, strict=True) if start < len(texts)
    ]

    def ask(piece):
        return running.post("/v1/predict", {"model": "moves", "input": piece})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, pieces))
    found = np.concatenate([read_probabilities(answer, ["down", "up"]) for answer in answers])
    np.testing.assert_allclose(found, classifier.predict_proba([t for p in pieces for t in p]), atol=1e-5)


def test_requests_that_wait_together_are_read_together(classifier):
    slow = Slow(classifier)
    with run_server({"moves": slow}) as running, ThreadPoolExecutor(8) as pool:
        first = pool.submit(running.post, "/v1/predict", {"input": "a first text"})
        assert slow.entered.wait(30)
        rest = [pool.submit(running.post, "/v1/predict", {"input": text}) for text in TEXTS[:6]]
        wait_until(lambda: running.batcher._n_waiting == 6)
        slow.go.set()
        assert [answer.result().status_code for answer in (first, *rest)] == [200] * 7
    assert slow.n_texts == [1, 6]


def test_long_request_does_not_hold_up_a_short_one(classifier):
    slow = Slow(classifier)
    with (
        run_server({"moves": slow}, limits=Limits(batch_tokens=60)) as running,
        ThreadPoolExecutor(8) as pool,
    ):
        pool.submit(running.post, "/v1/predict", {"input": "a first text"})
        assert slow.entered.wait(30)
        long = pool.submit(running.post, "/v1/predict", {"input": TEXTS})
        wait_until(lambda: running.batcher._n_waiting == len(TEXTS))
        short = pool.submit(running.post, "/v1/predict", {"input": "a short text"})
        wait_until(lambda: running.batcher._n_waiting == len(TEXTS) + 1)
        slow.go.set()
        assert short.result().status_code == long.result().status_code == 200
    assert max(slow.n_texts) < 12
    assert sum(slow.n_texts) == len(TEXTS) + 2


def test_predict_top_k_threshold_and_coverage(running, classifier):
    texts = [
        "sales rose in the north",
        "sales rose and fell",
        "nothing that is known",
        "profit fell for the bank",
    ]
    probabilities = classifier.predict_proba(texts)
    threshold = float(probabilities.max(axis=1).mean())
    assert np.ptp(probabilities.max(axis=1)) > 1e-3
    body = {"model": "moves", "input": texts, "top_k": 1, "threshold": threshold, "coverage": 0.9}
    data = running.post("/v1/predict", body).json()["data"]
    for row, expected, sets in zip(
        data, probabilities, classifier.predict_sets(texts, coverage=0.9), strict=True
    ):
        assert len(row["probabilities"]) == 1
        assert row["abstained"] == (expected.max() < threshold)
        assert (row["label"] is None) == row["abstained"]
        assert row["set"] == sets
    assert {row["abstained"] for row in data} == {True, False}
    answer = running.post("/v1/predict", {"model": "words", "input": "a", "coverage": 0.9})
    expect_error(
        answer,
        422,
        "the bundle 'words' has no calibrator to take sets from: leave coverage out.",
        param="coverage",
    )


def test_truncated_texts_are_told_and_counted(running):
    long = "sales rose " * 30
    answer = running.post("/v1/predict", {"model": "moves", "input": ["sales rose", long]}).json()
    assert [row["truncated"] for row in answer["data"]] == [False, True]
    assert answer["usage"] == {"prompt_tokens": 4 + 24, "total_tokens": 28, "truncated_texts": 1}
    metrics = running.get("/metrics").text
    counted = next(
        line
        for line in metrics.splitlines()
        if line.startswith('embedtune_truncated_texts_total{model="moves"}')
    )
    assert float(counted.split()[1]) >= 1


def test_openai_client_reads_models_and_embeddings(running, classifier):
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
    assert [model.id for model in client.models.list()] == ["moves", "words"]
    assert client.models.retrieve("moves").owned_by == "embedtune"
    with pytest.raises(openai.NotFoundError, match="there is no model 'move'"):
        client.embeddings.create(model="move", input="sales rose")
    expected = classifier.views_[0][1].transform(TEXTS[:3])[:, :32]  # the last layer comes first
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    for given in (
        {},
        {"encoding_format": "float"},
        {"encoding_format": "base64"},
        {"dimensions": 32, "user": "me"},
    ):
        answer = client.embeddings.create(model="moves", input=TEXTS[:3], **given)
        vectors = [
            np.frombuffer(base64.b64decode(row.embedding), "<f4")
            if isinstance(row.embedding, str)
            else row.embedding
            for row in answer.data
        ]
        np.testing.assert_allclose(np.array(vectors), expected, atol=1e-5)
    alone = client.embeddings.create(model="moves", input=TEXTS[0])
    np.testing.assert_allclose(alone.data[0].embedding, expected[0], atol=1e-5)
    n_tokens = running.models["moves"].count_tokens("embed", TEXTS[:1]).read.sum()
    assert alone.usage.prompt_tokens == alone.usage.total_tokens == n_tokens
    with pytest.raises(openai.UnprocessableEntityError, match="have 32 dimensions"):
        client.embeddings.create(model="moves", input="sales rose", dimensions=8)


def test_embeddings_without_a_backbone_are_the_joined_views(running, lexical):
    answer = running.post("/v1/embeddings", {"model": "words", "input": TEXTS[:2]}).json()
    expected = lexical.transform(TEXTS[:2]).toarray()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose([row["embedding"] for row in answer["data"]], expected, atol=1e-5)
    assert answer["usage"]["prompt_tokens"] == len(" ".join(TEXTS[:2]).split())


def test_embeddings_of_views_too_wide_are_refused(lexical, monkeypatch):
    monkeypatch.setattr(models_module, "MAX_WIDTH", 10)
    with run_server({"words": lexical}) as running:
        answer = running.post("/v1/embeddings", {"input": "sales"})
        assert running.get("/v1/models").json()["data"][0]["width"] is None
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "no_embedding"


def test_explain_leaves_each_word_out(running, classifier):
    text = "  sales <b>rose</b>  in\tthe north"
    answer = running.post("/v1/explain", {"model": "moves", "input": text}).json()
    whole = classifier.predict_proba([text])[0]
    label = int(whole.argmax())
    assert answer["label"] == ["down", "up"][label]
    assert [word["text"] for word in answer["words"]] == text.split()
    for word in answer["words"]:
        assert text[word["start"] : word["end"]] == word["text"]
        without = text[: word["start"]] + text[word["end"] :].lstrip()
        assert word["change"] == pytest.approx(
            whole[label] - classifier.predict_proba([without])[0, label], abs=1e-5
        )


def test_spans_of_many_words_are_runs_of_them():
    text = " ".join(map(str, range(250)))
    spans = find_spans(text, max_spans=100)
    assert len(spans) == 84
    assert [text[span.start : span.end] for span in spans[:2]] == ["0 1 2", "3 4 5"]
    assert leave_out("one two three", find_spans("one two three")) == ["two three", "one three", "one two "]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body isn't JSON: Expecting property name enclosed in double quotes at byte 1."),
        (b"\xff\xfe", 400, "the body isn't UTF-8: send JSON in UTF-8."),
        (b"[" * 20_000, 400, "the body is JSON beyond all measure: send a plain object."),
        (
            b'{"input": "a", "top_k": ' + b"9" * 5000 + b"}",
            400,
            "the body is JSON beyond all measure: send a plain object.",
        ),
        (b"[1]", 422, 'the body isn\'t a JSON object: send one such as {"input": "a text"}.'),
        (b'{"model": "moves"}', 422, "the field 'input' is wrong: field required."),
        (
            b'{"inputs": "a"}',
            422,
            "the field 'inputs' is unknown (did you mean 'input'?): allowed are model, input, top_k, threshold, "
            "coverage.",
        ),
        (b'{"input": NaN, "model": "moves"}', 422, "input is no text: send a string, or a list of one or more."),
        (b'{"input": [], "model": "moves"}', 422, "input is no text: send a string, or a list of one or more."),
        (b'{"input": ["a", null], "model": "moves"}', 422, "text 1 is of type null: send strings."),
        (b'{"input": ["a", 7], "model": "moves"}', 422, "text 1 is of type int: send strings."),
        (b'{"input": ["a", " \\n"], "model": "moves"}', 422, "text 1 is empty: leave it out."),
        (
            b'{"input": "\\ud800", "model": "moves"}',
            422,
            "text 0 holds half a surrogate pair, which is no character: send whole ones.",
        ),
        (
            b'{"input": "a", "model": "moves", "threshold": NaN}',
            422,
            "the field 'threshold' is wrong: input should be less than or equal to 1.",
        ),
        (
            b'{"input": "a", "model": "moves", "top_k": 0}',
            422,
            "the field 'top_k' is wrong: input should be greater than or equal to 1.",
        ),
        (
            b'{"input": "a", "model": "moves", "top_k": true}',
            422,
            "the field 'top_k' is wrong: input should be a valid integer.",
        ),
        (b'{"input": "a"}', 422, "no model is named: choose one of moves, words."),
        (
            b'{"input": "a", "model": "move\\ud800"}',
            404,
            "there is no model 'move\\ud800' (did you mean 'moves'?): choose one of moves, words.",
        ),
        (
            json.dumps({"input": ["a"] * 41, "model": "moves"}).encode(),
            422,
            "input has 41 texts, and a request may have 40: send several requests.",
        ),
        (
            json.dumps({"input": "a" * 501, "model": "moves"}).encode(),
            422,
            "text 0 has 501 characters, and a text may have 500: shorten it.",
        ),
        (
            b" " * 30_001,
            413,
            "the body is longer than 30000 bytes: send fewer or shorter texts at once.",
        ),
    ],
)  # fmt: skip
def test_bad_request_is_answered_in_one_line(running, body, status, message):
    expect_error(running.post("/v1/predict", content=body), status, message)
    assert running.get("/health").json() == {"status": "ok"}


def test_body_without_a_length_is_counted(running):
    pieces = (b" " * 10_000 for _ in range(4))
    answer = running.post("/v1/predict", content=pieces)
    expect_error(answer, 413, "the body is longer than 30000 bytes: send fewer or shorter texts at once.")


def test_unknown_pages_and_methods_have_the_same_shape(running):
    expect_error(running.get("/v1/nothing"), 404, "there is no such page: see /docs.")
    expect_error(running.get("/v1/predict"), 405, "this page takes another method: see /docs.")
    answer = running.get("/v1/models/nothing")
    expect_error(
        answer, 404, "there is no model 'nothing': choose one of moves, words.", code="model_not_found"
    )


def test_full_queue_refuses_and_says_when_to_return(classifier):
    slow = Slow(classifier)
    limits = Limits(max_texts=4, queue_texts=4)
    with run_server({"moves": slow}, limits=limits) as running, ThreadPoolExecutor(8) as pool:
        first = pool.submit(running.post, "/v1/predict", {"input": "a first text"})
        assert slow.entered.wait(30)
        second = pool.submit(running.post, "/v1/predict", {"input": TEXTS[:3]})
        wait_until(lambda: running.batcher._n_waiting == 3)
        answer = running.post("/v1/predict", {"input": TEXTS[:2]})
        slow.go.set()
        assert first.result().status_code == second.result().status_code == 200
    expect_error(
        answer, 429, "3 texts wait already, and the queue holds 4: try again in 1 s.", code="queue_full"
    )
    assert answer.headers["Retry-After"] == "1"


def test_what_would_wait_too_long_is_refused_at_once(classifier):
    slow = Slow(classifier)
    with (
        run_server({"moves": slow}, limits=Limits(max_delay_ms=25)) as running,
        ThreadPoolExecutor(8) as pool,
    ):
        first = pool.submit(
            running.post, "/v1/predict", {"input": TEXTS[:3]}
        )  # more than 25 ms, but none is before it
        assert slow.entered.wait(30)
        answer = running.post("/v1/predict", {"input": TEXTS[:2]})
        slow.go.set()
        assert first.result().status_code == 200
        assert running.post("/v1/predict", {"input": TEXTS[:2]}).status_code == 200
    said = "3 texts are before these, and would take 30 ms: try again in 1 s."
    expect_error(answer, 429, said, code="queue_full")
    assert answer.headers["Retry-After"] == "1"


def test_what_has_no_room_is_refused_before_its_body_comes(classifier):
    slow = Slow(classifier)
    with run_server({"moves": slow}, limits=Limits(max_delay_ms=5)) as running, ThreadPoolExecutor(8) as pool:
        first = pool.submit(running.post, "/v1/predict", {"input": TEXTS[:3]})
        assert slow.entered.wait(30)
        address = (running.server.config.host, int(running.url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 429")
        assert running.get("/v1/models").status_code == 200
        slow.go.set()
        assert first.result().status_code == 200


def test_key_is_needed_where_there_is_one(lexical):
    with run_server({"words": lexical}, key="sésame") as running:
        refused = [
            running.get("/v1/models"),
            running.get("/metrics"),
            running.post("/v1/predict", {"input": "sales rose"}),
            running.post("/v1/predict", {"input": "a"}, headers={"Authorization": "Bearer sesame"}),
            running.post("/v1/predict", {"input": "a"}, headers={"Authorization": b"Bearer s\xe9same"}),
            running.post("/v1/predict", {"input": "a"}, headers={"Authorization": "Basic sesame"}),
            running.post("/v1/predict", content=b" " * 10**7),
        ]
        accepted = running.post(
            "/v1/predict", {"input": "a"}, headers={"Authorization": "Bearer sésame".encode()}
        )
        opened = [
            running.get(path).status_code for path in ("/health", "/ready", "/", "/docs", "/openapi.json")
        ]
    for answer in refused:
        message = "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'."
        expect_error(answer, 401, message, code="invalid_api_key", type="authentication_error")
    assert accepted.status_code == 200
    assert opened == [200] * 5


def test_key_of_other_bytes_than_utf8_is_compared_as_bytes(lexical):
    with run_server({"words": lexical}, key=os.fsdecode(b"k\xff")) as running:
        refused = running.get("/v1/models", headers={"Authorization": b"Bearer k"})
        accepted = running.get("/v1/models", headers={"Authorization": b"Bearer k\xff"})
    assert (refused.status_code, accepted.status_code) == (401, 200)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_health_turns_red_when_memory_ran_out(classifier, error):
    slow = Slow(classifier, error=error)
    slow.go.set()
    with run_server({"moves": slow}) as running:
        answer = running.post("/v1/predict", {"input": ["a text", "another"]})
        slow.error = None
        later = running.post("/v1/predict", {"input": "a text"})
        health, ready, metrics = running.get("/health"), running.get("/ready"), running.get("/metrics")
    expect_error(answer, 503, "memory ran out: send fewer or shorter texts.", code="out_of_memory")
    assert later.status_code == 200
    expect_error(health, 503, "memory ran out: restart the server.", code="unwell")
    assert ready.status_code == 503
    assert "embedtune_healthy 0.0" in metrics.text


def test_health_turns_red_when_the_worker_dies(classifier):
    slow = Slow(classifier, error=SystemExit())
    with run_server({"moves": slow}) as running, ThreadPoolExecutor(8) as pool:
        first = pool.submit(running.post, "/v1/predict", {"input": "a first text"})
        assert slow.entered.wait(30)
        second = pool.submit(running.post, "/v1/predict", {"input": "a second text"})
        wait_until(lambda: running.batcher._n_waiting == 1)
        slow.go.set()
        answers = [first.result(), second.result(), running.post("/v1/predict", {"input": "a third text"})]
        health = running.get("/health")
    for answer in answers:
        expect_error(answer, 503, "the server's worker is dead: it has to be restarted.", code="worker_dead")
    expect_error(health, 503, "the worker is dead: restart the server.", code="unwell")


def test_text_that_breaks_the_classifier_breaks_its_own_request_alone(classifier, caplog):
    class Choosy(Slow):
        def predict_proba(self, texts):
            if any("poison" in text for text in texts):
                raise ValueError(f"can't read {texts}")
            return super().predict_proba(texts)

    slow = Choosy(classifier)
    with run_server({"moves": slow}) as running, ThreadPoolExecutor(8) as pool:
        pool.submit(running.post, "/v1/predict", {"input": "a first text"})
        assert slow.entered.wait(30)
        asked = [
            pool.submit(running.post, "/v1/predict", {"input": text}) for text in ("good", "a poison", "fine")
        ]
        wait_until(lambda: running.batcher._n_waiting == 3)
        slow.go.set()
        good, bad, fine = (answer.result() for answer in asked)
        assert running.get("/health").status_code == 200
    assert (good.status_code, fine.status_code) == (200, 200)
    expect_error(bad, 500, "the classifier failed on these texts (ValueError).", code="classifier_failed")
    assert "poison" not in caplog.text


def test_error_in_a_route_is_answered_and_not_quoted(running, monkeypatch, caplog):
    def fail(*given, **options):
        raise RuntimeError("secret text")

    monkeypatch.setattr("embedtune.serve.answers.make_predictions", fail)
    answer = running.post("/v1/predict", {"model": "moves", "input": "secret text"})
    expect_error(answer, 500, "the server failed on this request.", code="internal")
    assert "secret" not in caplog.text
    assert "RuntimeError in fail" in caplog.text


def test_many_clients_that_hang_up_leave_the_server_well(running):
    host, port = running.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "moves", "input": TEXTS[:20]}).encode()
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    for sent in (head + body, head + body[:50], head, b"\x00\xff" * 50):
        for _ in range(5):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(sent)
    wait_until(lambda: running.batcher._n_waiting == 0)
    assert running.post("/v1/predict", {"model": "moves", "input": "sales rose"}).status_code == 200


def test_closing_server_refuses_and_finishes(classifier):
    slow = Slow(classifier)
    with run_server({"moves": slow}) as running, ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(running.post, "/v1/predict", {"input": TEXTS[:5]})]
        assert slow.entered.wait(30)
        accepted.append(pool.submit(running.post, "/v1/predict", {"input": TEXTS[5:9]}))
        wait_until(lambda: running.batcher._n_waiting == 4)
        running.batcher.close()
        refused, ready = running.post("/v1/predict", {"input": "late"}), running.get("/ready")
        slow.go.set()
        assert [answer.result().status_code for answer in accepted] == [200, 200]
    expect_error(refused, 503, "the server is stopping: ask another one.", code="stopping")
    expect_error(ready, 503, "the server is stopping.", code="stopping")


def test_request_of_a_connection_taken_just_before_the_end_is_answered(lexical, monkeypatch):
    taken = threading.Event()
    make = Connection.connection_made

    def take(self, transport):
        make(self, transport)
        taken.set()
        time.sleep(0.5)  # in which the request comes, and isn't read

    async def wait(self):
        while not taken.is_set():
            await asyncio.sleep(0)

    monkeypatch.setattr(Connection, "connection_made", take)
    monkeypatch.setattr(Server, "main_loop", wait)
    with run_server({"lexical": lexical}) as running:
        assert running.post("/v1/predict", {"input": "sales rose"}).status_code == 200


def test_bundles_are_named_by_folder_or_by_hand(lexical, classifier, tmp_path):
    path, other = lexical.save(tmp_path / "moves"), lexical.save(tmp_path / "else" / "moves")
    assert list(load_models([str(path), f"b={other}"])) == ["moves", "b"]
    with pytest.raises(ConfigError, match=r"two bundles are called 'moves' .* name one, as in other="):
        load_models([str(path), str(other)])
    with pytest.raises(ConfigError, match="'a b' can't name a model"):
        load_models([f"a b={path}"])
    with pytest.raises(ConfigError, match="no bundle is given"):
        load_models([])
    with pytest.raises(BundleError, match="is not a bundle"):
        load_models([str(tmp_path)])


def test_more_backbones_than_are_usually_kept_stay_loaded(tmp_path):
    from embedtune.embed.backbone import count_kept
    from tiny_models import build_tiny_bert

    paths = []
    for seed in range(3):
        bert = fit_bert(build_tiny_bert(tmp_path / f"bert{seed}", seed=seed))
        paths.append(str(bert.save(tmp_path / f"bundle{seed}")))
    models = load_models(paths, precision="float32")
    assert count_kept() >= 3
    loaded = [model.classifier.views_[0][1]._load() for model in models.values()]
    assert [model.classifier.views_[0][1]._load() for model in models.values()] == loaded


def test_limits_out_of_range_are_refused():
    with pytest.raises(
        ConfigError, match=r"^--max-texts is 0, which is out of range: set it to 1 or more\.$"
    ):
        Limits(max_texts=0)
    with pytest.raises(ConfigError, match="--max-wait-ms is nan"):
        Limits(max_wait_ms=float("nan"))
    with pytest.raises(ConfigError, match="--queue-texts 10 is below --max-texts 256"):
        Limits(queue_texts=10)


def test_taken_port_and_strange_host_are_told_in_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"^port {port} of 127.0.0.1 is taken by another program: choose"
        ):
            bind_address("127.0.0.1", port)
    with pytest.raises(ConfigError, match="choose another --host"):
        bind_address("203.0.113.7", 0)


def test_empty_key_is_refused(monkeypatch):
    monkeypatch.setenv("EMBEDTUNE_API_KEY", " ")
    with pytest.raises(ConfigError, match="EMBEDTUNE_API_KEY is set but empty"):
        read_key()


def test_metrics_count_what_was_done(lexical):
    with run_server({"words": lexical}) as running:
        for _ in range(3):
            running.post("/v1/predict", {"input": ["sales rose", "profit fell"]})
        running.get("/secret-path")
        lost = 'embedtune_requests_total{path="other",status="404"} 1.0'
        wait_until(lambda: lost in running.get("/metrics").text)
        told = running.get("/metrics")
    assert told.headers["Content-Type"].startswith("text/plain")
    lines = told.text.splitlines()
    assert 'embedtune_requests_total{path="/v1/predict",status="200"} 3.0' in lines
    assert 'embedtune_texts_total{model="words"} 6.0' in lines
    assert "embedtune_healthy 1.0" in lines
    assert "embedtune_queue_texts 0.0" in lines
    assert "secret-path" not in told.text


def test_benchmark_asks_each_text_once_and_times_it(lexical):
    load = SimpleNamespace(**runpy.run_path(str(Path(contestants.__file__).with_name("load.py"))))
    requests = [load._write_request("/v1/predict", {"input": [text]}) for text in TEXTS]
    with run_server({"words": lexical}) as running:
        port = int(running.url.rsplit(":", 1)[1])
        fast = asyncio.run(load._ask_all(port, requests, 4))
        calm = asyncio.run(load._ask_at_rate(port, requests, 500.0))
        told = running.get("/metrics").text
    assert len(fast) == len(calm) == len(TEXTS)
    assert min(fast + calm) > 0
    assert f'embedtune_texts_total{{model="words"}} {2 * len(TEXTS)}.0' in told.splitlines()


def test_keep_alive_connection_serves_many(running):
    with httpx.Client(base_url=running.url) as client:
        for text in TEXTS[:20]:
            assert client.post("/v1/predict", json={"model": "moves", "input": text}).status_code == 200
