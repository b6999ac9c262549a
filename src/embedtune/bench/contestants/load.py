"""A server under load: started as a process of its own, asked over many connections, its answers timed.

Requests come as fast as they are answered, over a number of connections, or at a given rate, whatever was answered:
their gaps are then random (exponential), and a request's time counts from when it was due.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import random
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes) -> bytes:
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        body = await self.reader.readexactly(length)
        if " 200 " not in lines[0]:
            raise RuntimeError(f"the server answered {lines[0]}: {body[:200]!r}")
        return body


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Start the server, on its own cores, and wait until it answers."""
    if job["cores"]:
        os.sched_setaffinity(0, job["cores"])
    port = _find_port()
    process = subprocess.Popen([part.replace("{port}", str(port)) for part in job["command"]])
    atexit.register(process.wait)
    atexit.register(process.terminate)
    if job["client_cores"]:
        os.sched_setaffinity(0, job["client_cores"])
    _wait_for(f"http://127.0.0.1:{port}{job['ready']}", process)
    texts, size = job["texts"], job["texts_per_request"]
    requests = [
        _write_request(job["path"], {job["field"]: texts[start : start + size]})
        for start in range(0, len(texts), size)
    ]

    def run() -> dict[str, Any]:
        ask = (
            _ask_at_rate(port, requests, job["rate"])
            if job["rate"]
            else _ask_all(port, requests, job["connections"])
        )
        taken = np.array(asyncio.run(ask))
        p50, p99 = np.percentile(taken, [50, 99]).tolist()
        return {"p50_ms": round(1e3 * p50, 2), "p99_ms": round(1e3 * p99, 2), "n_requests": len(requests)}

    return run


async def _ask_all(port: int, requests: list[bytes], n_connections: int) -> list[float]:
    remaining, taken = iter(requests), []

    async def work() -> None:
        connection = await _connect(port)
        for request in remaining:
            started = time.perf_counter()
            await connection.ask(request)
            taken.append(time.perf_counter() - started)
        connection.writer.close()

    await asyncio.gather(*(work() for _ in range(n_connections)))
    return taken


async def _ask_at_rate(port: int, requests: list[bytes], rate: float) -> list[float]:
    draw, idle, taken = random.Random(0), [await _connect(port) for _ in range(64)], []

    async def ask(request: bytes, due: float) -> None:
        connection = idle.pop() if idle else await _connect(port)
        await connection.ask(request)
        taken.append(time.perf_counter() - due)
        idle.append(connection)

    due, tasks = time.perf_counter(), []
    for request in requests:
        due += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(request, due)))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.writer.close()
    return taken


async def _connect(port: int) -> _Connection:
    return _Connection(*await asyncio.open_connection("127.0.0.1", port))


def _write_request(path: str, body: dict[str, Any]) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server stopped with code {process.returncode} before it answered")
