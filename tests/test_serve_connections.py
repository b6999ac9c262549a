"""Connections of `embedtune serve`: half a request, none at all, too many of them; raw sockets on loopback."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from embedtune.classifier import EmbedClassifier
from embedtune.embed.lexical import LexicalEncoder
from embedtune.serve.limits import Limits
from embedtune.serve.run import allow_files
from serve_cases import LABELS, TEXTS, run_server, start_command, wait_until

SECONDS = 1.0
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
BODY = b'{"input": "sales rose"}'
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def lexical():
    return EmbedClassifier([LexicalEncoder()], "logistic", calibration="none").fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def running(lexical):
    with run_server(
        {"moves": lexical}, limits=Limits(request_seconds=SECONDS, max_connections=20)
    ) as running:
        yield running


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read_all(connection):
    """Return what comes until the server closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            found += piece
    return found


def split(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def count(running, path, status):
    line = f'embedtune_requests_total{{path="{path}",status="{status}"}} '
    found = [row for row in running.get("/metrics").text.splitlines() if row.startswith(line)]
    return float(found[0].split()[-1]) if found else 0.0


@pytest.mark.parametrize(
    ("part", "path", "sent"),
    [
        ("body", "/v1/predict", WHOLE[:-5]),
        ("body", "/v1/predict", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"),
        ("head", "other", HEAD),
        ("head", "other", b"G"),
    ],
)
@pytest.mark.parametrize("drips", [False, True])
def test_half_a_request_is_refused_in_time_and_counted(running, part, path, sent, drips):
    before, started = count(running, path, 408), time.monotonic()
    with connect(running.url) as connection:
        connection.sendall(sent)
        with contextlib.suppress(ConnectionError):
            for _ in range(3 if drips else 0):
                time.sleep(SECONDS / 4)
                connection.sendall(b" " if part == "body" and b"chunked" not in sent else b"x")
        status, error = split(read_all(connection))
    assert SECONDS * 0.9 < time.monotonic() - started < 20
    assert status == 408
    assert error == {
        "message": f"the request's {part} wasn't whole after 1 s: send it at once.",
        "type": "invalid_request_error",
        "param": None,
        "code": "too_slow",
    }
    assert count(running, path, 408) == before + 1


def test_silent_connection_is_closed_without_a_word(running):
    before = count(running, "other", 408)
    with connect(running.url) as connection:
        assert read_all(connection) == b""
    assert count(running, "other", 408) == before


def test_rest_of_a_body_that_nobody_reads_is_not_waited_for(running):
    started = time.monotonic()
    with connect(running.url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"half")
        assert b"408" not in read_all(connection)
    assert time.monotonic() - started < 20  # uvicorn alone waits for ever


def test_what_is_no_http_is_told_in_the_shape_of_errors(running):
    before = count(running, "other", 400)
    with connect(running.url) as connection:
        connection.sendall(b"\x16\x03\x01 secret\r\n\r\n")
        status, error = split(read_all(connection))
    assert (status, error["code"]) == (400, "invalid_http")
    assert error["message"] == "the request isn't HTTP/1.1."
    assert count(running, "other", 400) == before + 1


def test_broken_chunk_is_told_and_counted_once(running):
    before = count(running, "other", 400) + count(running, "/v1/predict", 400)
    with connect(running.url) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        status, error = split(read_all(connection))
    assert (status, error["code"]) == (400, "invalid_http")
    wait_until(lambda: count(running, "/v1/predict", 400) + count(running, "other", 400) == before + 1)


def test_client_that_leaves_in_the_middle_is_no_fault_of_the_server(running):
    before = count(running, "/v1/predict", 500)
    gone = count(running, "/v1/predict", 400)
    with connect(running.url) as connection:
        connection.sendall(WHOLE[:-5])
    wait_until(lambda: count(running, "/v1/predict", 400) == gone + 1)
    assert count(running, "/v1/predict", 500) == before


def test_requests_that_come_in_pieces_one_after_another_or_at_once_are_answered(running):
    with connect(running.url) as connection:
        for pieces in ((WHOLE[:20], WHOLE[20:]), (WHOLE[:-3], WHOLE[-3:]), (WHOLE + WHOLE[:9], WHOLE[9:])):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(SECONDS / 3)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 200 OK") == 5


def test_connection_beyond_the_last_closes_the_one_that_waited_longest(running):
    with contextlib.ExitStack() as stack:
        idle = []
        for _ in range(20):
            idle.append(stack.enter_context(connect(running.url)))
            idle[-1].sendall(HEAD)
        assert running.post("/v1/predict", {"input": "sales rose"}).status_code == 200
        assert read_all(idle[0]) == b""
        assert split(read_all(idle[-1]))[0] == 408


def test_thousands_of_half_requests_keep_nobody_out(lexical, tmp_path):
    allow_files(4000)
    with (
        start_command([str(lexical.save(tmp_path / "bundle")), "-q"]) as (_, url, said),
        contextlib.ExitStack() as stack,
    ):
        for n in range(2500):
            half = stack.enter_context(connect(url))
            half.sendall(HEAD if n % 2 else WHOLE[:-5])
            if n % 500 == 499:
                with connect(url) as connection:
                    started = time.monotonic()
                    connection.sendall(WHOLE)
                    assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
                    assert time.monotonic() - started < 8  # the default time for a request is 10
        assert said.read_text().count("\n") == 1
