"""A server at twice its capacity, among slow, half-sent, poisoned and idle clients, and stopped in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from serve_cases import start_command
from torture.runner import Case, Outcome
from torture.workshop import Workshop

TITLE = "a server under load"
N_IDLE, N_SLOW, N_HALF = 1000, 8, 8
REQUEST_SECONDS = 5.0
#: One request in so many is poisoned.
POISON = 100
#: Seconds after which memory and time are judged for the first time, and then again and again.
WARM, WINDOW = 30, 10
EXACT = 1e-5
DEAR = {"input": "market " * 2800}
POISONS: tuple[tuple[bytes, tuple[int, ...]], ...] = (
    (b"\x00\xff\xfe", (400,)),
    (b'{"input": ', (400,)),
    (b"[" * 100_000, (400,)),
    (b'{"input": 1e999}', (422,)),
    (b'{"input": null}', (422,)),
    (b'{"input": [{"input": "a"}]}', (422,)),
    (b'{"input": "\\ud800 lone"}', (200, 422)),
    (b'{"input": "\\u0000\\u202e"}', (200, 422)),
    (b'{"input": ""}', (422,)),
    (json.dumps({"input": "x" * 20_001}).encode(), (422,)),
    (json.dumps({"input": ["x"] * 257}).encode(), (422,)),
    (json.dumps({"input": "x", "top_k": -1}).encode(), (422,)),
    (json.dumps({"input": "x", "model": "../../etc/passwd"}).encode(), (404,)),
    (json.dumps({"input": "x" * (4 << 20)}).encode(), (413,)),
    (json.dumps(DEAR).encode(), (200, 429)),
)


class Answer(NamedTuple):
    """A response's status, headers in lower case, and body."""

    status: int
    head: str
    body: bytes


class Service(NamedTuple):
    """A served bundle, what the library says of its texts, and how fast the server is."""

    bundle: Path
    texts: list[str]
    expected: dict[str, dict[str, float]]
    capacity: float
    p99: float

    @property
    def arguments(self) -> list[str]:
        """Of ``embedtune serve``: a wait bounded by what a single request takes, and room for all clients."""
        delay = str(max(1.0, 1000 * self.p99))
        return [str(self.bundle), *OPTIONS, "--max-delay-ms", delay]


OPTIONS = ("--max-connections", "2000", "--request-seconds", str(REQUEST_SECONDS))


class Client:
    """Many clients of one server, in one event loop; what they meet is counted.

    Attributes
    ----------
    outcomes : list of Outcome
        One for each request that ended, until they are taken.
    seconds : list of float
        How long accepted requests took, from when they were due.
    n_right : int
        Accepted requests that were answered right.
    """

    def __init__(self, url: str, service: Service, random: Random) -> None:
        self.service, self.random = service, random
        self.host, self.port = urlsplit(url).hostname, urlsplit(url).port
        self.outcomes: list[Outcome] = []
        self.seconds: list[float] = []
        self.n_right = 0
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something go on beside everything else."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def load(self, seconds: float, *, rate: float) -> None:
        """Send requests at random gaps, `rate` a second, whatever comes back."""
        due = time.perf_counter()
        until = due + seconds
        while (due := due + self.random.expovariate(rate)) < until:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            is_poisoned = self.random.randrange(POISON) == 0
            self.start(
                self.poison() if is_poisoned else self.ask(self.random.choice(self.service.texts), due)
            )

    async def finish(self) -> None:
        """Wait for all that was started."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def ask(self, text: str, due: float) -> None:
        """Send one honest request and judge its answer."""
        answer = await self._send(json.dumps({"input": text}).encode())
        if answer is None:
            self.outcomes.append(Outcome("closed before it was accepted"))
        elif answer.status == 429:
            told = "retry-after: " in answer.head
            self.outcomes.append(
                Outcome("refused with 429", "" if told else f"429 without Retry-After: {answer.body!r}")
            )
        elif answer.status == 503 and b'"stopping"' in answer.body:
            self.outcomes.append(Outcome("refused, since it stops"))
        elif answer.status != 200:
            self.outcomes.append(
                Outcome("wrong status", f"{answer.status} for an honest text: {answer.body!r}")
            )
        else:
            self.seconds.append(time.perf_counter() - due)
            off = self._compare(text, json.loads(answer.body))
            self.n_right += off <= EXACT
            self.outcomes.append(
                Outcome("answered right", "" if off <= EXACT else f"{text!r} is off by {off}")
            )

    async def poison(self) -> None:
        """Send what can't be answered, or what is dear to answer."""
        body, statuses = self.random.choice(POISONS)
        answer = await self._send(body)
        if answer is None:
            self.outcomes.append(Outcome("closed before it was accepted"))
            return
        fits = answer.status in (*statuses, 429, 503)
        self.outcomes.append(
            Outcome("poison refused or read", "" if fits else f"{answer.status} for {body[:60]!r}")
        )

    async def drip(self) -> None:
        """Send a request byte by byte, again and again, in as much time as a server grants, or more."""
        while True:
            text = self.random.choice(self.service.texts)
            request = self._write(json.dumps({"input": text}).encode())
            gap = self.random.uniform(0.5, 2.5) * REQUEST_SECONDS / len(request)
            answer = await self._talk([request[n : n + 1] for n in range(len(request))], gap)
            statuses = (200, 429, 408)
            said = "" if answer is None or answer.status in statuses else f"{answer.status} for a slow client"
            self.outcomes.append(Outcome("a slow client, answered or told 408", said))

    async def send_half(self) -> None:
        """Send half a request and no more, again and again: it must be ended in time."""
        while True:
            request = self._write(json.dumps({"input": "half of it"}).encode())
            started = time.perf_counter()
            answer = await self._talk([request[: self.random.randrange(1, len(request))]], 0.0)
            seconds = time.perf_counter() - started
            is_told = answer is not None and answer.status in (408, 429)  # refused before the rest is due
            is_well = is_told and seconds < 2 * REQUEST_SECONDS
            said = "" if is_well else f"{answer} after {seconds:.1f} s for half a request"
            self.outcomes.append(Outcome("half a request, told 408 or 429", said))

    async def hold(self) -> None:
        """Keep a connection open and say nothing; open another when it is closed."""
        await asyncio.sleep(self.random.uniform(0, REQUEST_SECONDS))
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                await reader.read()
                writer.close()
            await asyncio.sleep(self.random.uniform(0, REQUEST_SECONDS))

    def _compare(self, text: str, said: dict[str, Any]) -> float:
        given = {score["label"]: score["probability"] for score in said["data"][0]["probabilities"]}
        expected = self.service.expected[text]
        if set(given) != set(expected):
            return 1.0
        return max(abs(given[label] - expected[label]) for label in expected)

    def _write(self, body: bytes) -> bytes:
        head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def _send(self, body: bytes) -> Answer | None:
        """Send a request on a connection that is open already, if there is one."""
        try:
            reader, writer = await self._connect()
            with contextlib.suppress(ConnectionError):  # refused before all was sent: the answer says so
                writer.write(self._write(body))
                await writer.drain()
            answer = await _receive(reader)
        except (OSError, asyncio.IncompleteReadError):
            return None
        if "connection: close" in answer.head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Take a connection that is open and has nothing to do, or open one."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self.host, self.port)

    async def _talk(self, pieces: list[bytes], gap: float) -> Answer | None:
        """Send pieces on a connection of their own, until an answer comes."""
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            await asyncio.sleep(0.1)
            return None
        answer = asyncio.ensure_future(_receive(reader))
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.wait([answer], timeout=gap or None)
                if answer.done():
                    break
            return await answer
        except (OSError, asyncio.IncompleteReadError):
            return None
        finally:
            answer.cancel()
            writer.close()


async def _receive(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = re.search(r"content-length: (\d+)", head)
    body = await reader.readexactly(int(length[1])) if length else b""
    return Answer(int(head.split(" ", 2)[1]), head, body)


def measure(workshop: Workshop) -> Service:
    """Train a bundle, and measure its server: the most requests a second that it answers, and one's time alone."""
    from embedtune import EmbedClassifier, TransformerEncoder, load_bundle
    from embedtune.data.sources import load_dataset

    data = load_dataset("sentiment")
    texts = list(dict.fromkeys(data.texts))[:400]
    labels = [str(label) for label in data.labels]
    bundle = workshop.fresh("served")
    EmbedClassifier([TransformerEncoder(precision="float32")], "logistic").fit(list(data.texts), labels).save(
        bundle
    )
    model = load_bundle(bundle)
    rows = [dict(zip(model.classes_, row, strict=True)) for row in model.predict_proba(texts).tolist()]
    service = Service(bundle, texts, dict(zip(texts, rows, strict=True)), 0.0, 0.0)
    with _serve([str(bundle), *OPTIONS]) as (_, url, _), asyncio.Runner() as runner:
        client = Client(url, service, Random(0))
        runner.run(_ask_one_by_one(client, texts[:100]))
        client.seconds.clear()
        runner.run(_ask_one_by_one(client, texts))
        alone = float(np.percentile(client.seconds, 99))
        started = time.perf_counter()
        runner.run(_ask_together(client, 2 * texts))
        capacity = 2 * len(texts) / (time.perf_counter() - started)
    return service._replace(capacity=capacity, p99=alone)


async def _ask_one_by_one(client: Client, texts: Iterable[str]) -> None:
    for text in texts:
        await client.ask(text, time.perf_counter())


async def _ask_together(client: Client, texts: list[str]) -> None:
    """Have 64 clients ask as fast as they are answered."""
    remaining = iter(texts)
    await asyncio.gather(*(_ask_one_by_one(client, remaining) for _ in range(64)))


@contextlib.contextmanager
def _serve(arguments: list[str]) -> Iterator[tuple[Any, str, Path]]:
    """Serve on all cores but the last, which is left to the clients."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[:-1])
    try:
        with start_command(arguments) as started:
            os.sched_setaffinity(0, cores[-1:])
            gc.collect()
            gc.freeze()  # walking all of torch takes a second, which would count as the server's
            yield started
    finally:
        os.sched_setaffinity(0, cores)


def overload(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Twice the capacity for as long as there is time, a second at a time; memory and time are judged as it goes on."""
    service = workshop.service
    with _serve(service.arguments) as (process, url, said), asyncio.Runner() as runner:
        client = Client(url, service, random)
        runner.run(_start_crowd(client))
        runner.run(asyncio.sleep(1.5 * REQUEST_SECONDS))
        sizes: list[int] = []
        while process.poll() is None:
            runner.run(client.load(1.0, rate=2 * service.capacity))
            yield from client.outcomes
            client.outcomes.clear()
            sizes.append(_read_memory(process.pid))
            if len(sizes) > WARM and len(sizes) % WINDOW == 0:
                yield _judge_memory(sizes)
                yield _judge_time(client.seconds, service.p99)
            if len(sizes) % WINDOW == 0:
                client.seconds.clear()
        yield Outcome("the server ended", f"code {process.returncode}: {said.read_text()[-500:]}")


async def _start_crowd(client: Client) -> None:
    for work, number in ((client.hold, N_IDLE), (client.drip, N_SLOW), (client.send_half, N_HALF)):
        for _ in range(number):
            client.start(work())


def _read_memory(process: int) -> int:
    """Return a process's resident memory in KiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) if found else 0


def _judge_memory(sizes: list[int]) -> Outcome:
    grown = statistics.median(sizes[-WINDOW:]) / statistics.median(sizes[WARM - WINDOW : WARM]) - 1
    bound = next((percent for percent in (1, 2, 5) if grown <= percent / 100), None)
    if bound is None:
        return Outcome("memory grew", f"by {grown:.1%} in {len(sizes)} s")
    return Outcome(f"looks at memory: within {bound} %")


def _judge_time(seconds: list[float], alone: float) -> Outcome:
    ratio = float(np.percentile(seconds, 99)) / alone
    if ratio > 4:
        return Outcome("too slow", f"p99 is {ratio:.1f} × {1000 * alone:.1f} ms, the unloaded one")
    return Outcome(f"looks at p99: within {max(1, int(np.ceil(ratio)))} × the unloaded one")


def stop(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """SIGTERM at twice the capacity: what the server answered has arrived, and it ends with 0."""
    service = workshop.service
    while True:
        with _serve(service.arguments) as (process, url, said), asyncio.Runner() as runner:
            client = Client(url, service, random)
            runner.run(client.load(random.uniform(0.5, 3.0), rate=2 * service.capacity))
            process.send_signal(signal.SIGTERM)
            runner.run(client.load(1.0, rate=2 * service.capacity))
            runner.run(client.finish())
            code = process.wait(40)
            text = said.read_text()
        lost = [outcome.lost for outcome in client.outcomes if outcome.lost]
        n_answered = len(re.findall(r"POST /v1/predict 200", text))
        if n_answered > len(client.seconds) + sum(o.how == "poison refused or read" for o in client.outcomes):
            lost.append(f"{n_answered} answered by the log, {len(client.seconds)} arrived")
        if code:
            lost.append(f"exit code {code}: {text[-300:]}")
        counts = Counter(outcome.how for outcome in client.outcomes)
        yield Outcome("stopped, with all answers delivered", f"{lost[:3]} {dict(counts)}" if lost else "")


CASES = (
    Case("SIGTERM at twice the capacity", stop, 10),
    Case("requests at twice the capacity, among bad clients", overload, 10_000_000),
)
