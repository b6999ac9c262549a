"""What an attacker sends to the server, byte by byte: lines, headers, bodies, keys."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import socket
from random import Random
from typing import Any

#: A request that is answered, whatever was sent before it.
HONEST = {"input": "sales rose in the north"}

TARGETS = (
    b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"/..%2f..%2fetc%2fpasswd", b"//etc/passwd",
    b"/page.js/../../x",
    b"/v1/models/..%2f..%2fetc%2fpasswd", b"/v1/models/%00", b"/v1/models/\xff", b"/..\\..\\etc\\passwd",
    b"/%c0%ae%c0%ae/",
    b"/" + b"a" * 100_000, b"/v1/models/" + b"%41" * 2000, b"http://elsewhere/v1/models", b"*", b"",
    b"elsewhere:1", b"/?\0",
    b"/v1/predict/", b"/V1/PREDICT", b"/v1//predict", b"/v1/predict;x=1", b"/v1/predict?input=x",
    b"/openapi.json?x=\r\n",
    b"/static/../../../../etc/passwd", b"/docs/%2e%2e", b"file:///etc/passwd", b"/.git/config", b"/.env",
    b"/metrics", b"/v1",
)  # fmt: skip
METHODS = (
    b"GET",
    b"POST",
    b"get",
    b"PUT",
    b"DELETE",
    b"TRACE",
    b"CONNECT",
    b"OPTIONS",
    b"HEAD",
    b"PRI",
    b"G\0T",
    b"",
    b"A" * 9000,
)
VERSIONS = (
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.9",
    b"HTTP/11",
    b"http/1.1",
    b"",
    b"HTTP/1.1 x",
)
HEADERS = (
    b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 5\r\nContent-Length: 5",
    b"Content-Length: 5, 5",
    b"Content-Length: -1", b"Content-Length: +5", b"Content-Length: 0x5", b"Content-Length: 5 5",
    b"Content-Length: " + b"9" * 5000,
    b"Content-Length: 99999999999999999999", b"Content-Length: \xb2", b"Content-Length: ",
    b"Content-Length : 5",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: xchunked", b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Transfer-Encoding : chunked",
    b"Transfer-Encoding: gzip",
    b"X: a\r\n b", b" X: a", b"X\0: a", b"X: \0", b"X: \xff\xfe", b"X y: a", b"no colon", b": a",
    b"X: " + b"a" * 200_000,
    b"\r\n".join(b"X%d: a" % n for n in range(3000)), b"Host: elsewhere\r\nHost: here", b"Host: ../../etc",
    b"Host: \0",
    b"X-Forwarded-For: 127.0.0.1\r\nX-Original-URL: /metrics", b"X-HTTP-Method-Override: DELETE",
    b"Upgrade: websocket",
    b"Expect: 100-continue", b"Expect: everything", b"Connection: Authorization", b"Content-Encoding: gzip",
    b"Content-Type: multipart/form-data; boundary=" + b"x" * 5000,
    b"Content-Type: application/json; charset=utf-7",
    b"Authorization: Basic Og==", b"Cookie: " + b"a=b; " * 5000, b"Range: bytes=0-,-1", b"X: a\nY: b",
    b"X: a\rY: b",
)  # fmt: skip
VALUES = (
    "[" * 100_000, '{"a":' * 50_000, "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "1" * 400,
    "null", "true", "[]",
    "{}", '""', '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '[["x"]]', '[{"input": "x"}]', '["x", null]',
    '[1]', '"\ufeff"',
    '"' + "a" * 30_000 + '"', "[" + ",".join(['"x"'] * 5000) + "]", "-0", "0.5", "1e-999", '"x"', '["x"]',
    "[" + "1," * 100_000 + "1]",
    '{"__class__": "os.system"}', '"' + "a " * 9000 + '"', '"' + "\U0001f40d" * 900 + '"',
    '"' + "a\u0301" * 9000 + '"',
)  # fmt: skip
FIELDS = (
    "input",
    "model",
    "top_k",
    "threshold",
    "coverage",
    "encoding_format",
    "dimensions",
    "user",
    "__proto__",
    "in\\u0070ut",
)


def make_request(random: Random, key: str) -> tuple[bytes, str]:
    """Return the bytes of a hostile request, and what they are."""
    target, method, version = (
        random.choice((b"/v1/predict", b"/v1/embeddings", b"/v1/explain")),
        b"POST",
        b"HTTP/1.1",
    )
    extra, body = [], json.dumps(HONEST).encode()
    kind = random.randrange(4)
    if kind == 0:
        method, target, version = (
            random.choice((b"GET", b"POST")),
            random.choice(TARGETS),
            random.choice((version, *VERSIONS)),
        )
        if random.random() < 0.3:
            method = random.choice(METHODS)
    elif kind == 1:
        extra = random.sample(HEADERS, random.choice((1, 1, 2)))
    else:
        body = make_body(random)
    head = [b"%s %s %s" % (method, target, version), b"Host: here", b"Connection: close"]
    if random.random() < 0.8:
        head.append(b"Authorization: Bearer " + key.encode())
    lengths = (b"content-length", b"transfer-encoding")
    if not any(line.lower().startswith(lengths) for line in extra):
        head.append(b"Content-Length: %d" % len(body))
    elif random.random() < 0.5:  # a request hidden in what two readers would part otherwise
        body = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"
    sent = b"\r\n".join([*head, *extra]) + b"\r\n\r\n" + body
    damage = random.random()
    if damage < 0.08:
        sent = sent[: random.randrange(len(sent))]
    elif damage < 0.16:
        place = random.randrange(len(sent))
        sent = sent[:place] + random.randbytes(random.choice((1, 3, 50))) + sent[place:]
    elif damage < 0.2:
        sent *= 3  # pipelined
    elif damage < 0.22:
        sent = random.randbytes(random.choice((1, 100, 70_000)))
    return sent, repr(sent[:160])


def make_body(random: Random) -> bytes:
    """Return JSON that isn't what the routes take, or isn't JSON."""
    pairs = [
        f'"{random.choice(FIELDS)}": {random.choice(VALUES)}' for _ in range(random.choice((1, 1, 2, 3)))
    ]
    if random.random() < 0.5:
        pairs.insert(random.randrange(len(pairs) + 1), '"input": "sales rose"')  # twice, at times
    text = "{" + ", ".join(pairs) + "}" if random.random() < 0.8 else random.choice(VALUES)
    data = text.encode(
        random.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32")), "surrogatepass"
    )
    return gzip.compress(b" " * 3_000_000) if random.random() < 0.02 else data


def make_guess(random: Random, key: str) -> list[bytes]:
    """Return lines of Authorization that aren't the key's."""
    alike = str.maketrans("aeocpx", "\u0430\u0435\u043e\u0441\u0440\u0445")
    encoded = key.encode()
    place = random.randrange(len(key))
    other = random.choice([letter for letter in "0123456789abcdef" if letter != key[place]])
    values = (
        b"", b"Bearer", b"Bearer ", b"Bearer " + encoded[:place], b"Bearer " + encoded + b"x",
        b"Bearer x" + encoded,
        b"Bearer " + (key[:place] + other + key[place + 1 :]).encode(), b"Bearer " + key.swapcase().encode(),
        encoded,
        b"Bearer " + key.translate(alike).encode(), b"Basic " + base64.b64encode(b":" + encoded),
        b"Bearer " + encoded * 500,
        b"Bearer " + encoded + b" " + encoded, b"Bearer," + encoded, b"Token " + encoded,
        b"Bearer \xef\xbb\xbf" + encoded,
        b"Bearer " + base64.b64encode(encoded), b"Bearer '" + encoded + b"'", b"Bearer null", b"Bearer *",
        b"Bearer \xff\xfe",
        b"Bearer " + b"a" * 50_000, b"Bearer " + encoded[::-1], b"Bearer " + encoded + b"\xcc\x81",
        b"Bearer none",
        b"Bearer " + random.randbytes(len(key)).hex().encode(),
        b"Bearer " + b"".join(b"%%%02x" % c for c in encoded),
    )  # fmt: skip
    lines = [b"Authorization: " + random.choice(values)]
    if random.random() < 0.2:
        name = random.choice(
            (b"X-Api-Key", b"Api-Key", b"Cookie", b"Proxy-Authorization", b"X-Authorization")
        )
        lines = [name + b": Bearer " + encoded, *lines][: random.choice((1, 2))]
    return lines


def send(url: str, data: bytes, *, seconds: float = 3.0) -> bytes:
    """Send bytes on a connection of their own and return what comes back until the server closes, or falls silent."""
    host, port = url.removeprefix("http://").split(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        with contextlib.suppress(OSError):  # it may have been refused before all was sent
            connection.sendall(data)
        with contextlib.suppress(OSError):
            while piece := connection.recv(1 << 16):
                found += piece
    return found


def ask(url: str, key: str, value: Any, *, path: str = "/v1/predict") -> bytes:
    """Send an honest request."""
    body = json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
    return send(url, head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body, seconds=30.0)


def list_statuses(answer: bytes) -> list[int]:
    """Return the statuses of all answers that came."""
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
