"""The one worker thread: texts of requests that arrive together are read together.

Requests wait in queues, one for each model and kind of reading. The worker takes from a queue until it has a batch
of `batch_tokens`, or its first text has waited `max_wait_ms`; of a long request it takes a share and puts the rest
behind the others, so that a short one never waits for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedtune.embed.backbone import hold_descriptions
from embedtune.memory import is_out_of_memory
from embedtune.serve.limits import Limits
from embedtune.serve.metrics import Metrics
from embedtune.serve.models import Kind, ServedModel, TokenCounts
from embedtune.serve.refusals import Refusal

#: A request takes no more than this part of a batch while others wait.
SHARE = 0.25

log = logging.getLogger(__name__)


class Reading(NamedTuple):
    """What was read of a request's texts: one row each, and their tokens."""

    rows: NDArray[Any]
    counts: TokenCounts


@dataclass(eq=False)
class _Job:
    model: ServedModel
    kind: Kind
    texts: Sequence[str]
    future: asyncio.Future[Reading]
    arrived: float = field(default_factory=time.monotonic)
    counts: TokenCounts | None = None
    n_taken: int = 0
    parts: list[NDArray[Any]] = field(default_factory=list)
    n_done: int = 0
    failed: bool = False

    @property
    def key(self) -> tuple[str, Kind]:
        return self.model.name, self.kind


class _Part(NamedTuple):
    """Some texts of a job."""

    job: _Job
    texts: Sequence[str]


class Batcher:
    """A queue and the thread that empties it.

    Parameters
    ----------
    limits : Limits
    metrics : Metrics

    Attributes
    ----------
    fault : str or None
        Why the server is unwell: memory ran out once, or the worker died. It stays until a restart.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self.fault: str | None = None
        self._wake = threading.Condition()
        self._queues: OrderedDict[tuple[str, Kind], deque[_Job]] = OrderedDict()
        self._open: set[_Job] = set()
        self._n_waiting = self._n_unread = 0
        self._texts_per_second = 100.0
        self._is_closing = self._is_dead = False
        self._thread = threading.Thread(target=self._work, name="embedtune-worker", daemon=True)
        self._thread.start()

    async def read(self, model: ServedModel, kind: Kind, texts: Sequence[str]) -> Reading:
        """Queue texts and wait for what the model reads of them.

        Raises
        ------
        Refusal
            If the queue is full (429), the server stops, its worker is dead or memory ran out (503), or these texts
            make the classifier fail (500).
        """
        future: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()
        job = _Job(model, kind, texts, future)
        with self._wake:
            self.check(len(texts))
            self._queues.setdefault(job.key, deque()).append(job)
            self._open.add(job)
            self._n_unread += len(texts)
            self._count_waiting(len(texts))
            self._wake.notify()
        return await future

    def close(self) -> None:
        """Refuse further texts; what waits is still read. A signal handler may call this."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()

    def join(self, seconds: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(seconds)

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    def check(self, n_texts: int) -> None:
        """Raise the Refusal that so many further texts would meet now."""
        if self._is_closing:
            raise Refusal(503, "the server is stopping: ask another one.", code="stopping")
        if self._is_dead:
            raise _refuse_dead()
        if self._n_waiting + n_texts > self.limits.queue_texts:
            raise self._refuse_full(
                f"{self._n_waiting} texts wait already, and the queue holds {self.limits.queue_texts}"
            )
        if self._delay > self.limits.max_delay_ms / 1000:
            raise self._refuse_full(
                f"{self._n_unread} texts are before these, and would take {1000 * self._delay:.0f} ms"
            )

    @property
    def _delay(self) -> float:
        """Seconds that what was accepted is expected to take."""
        return self._n_unread / self._texts_per_second

    def _refuse_full(self, why: str) -> Refusal:
        seconds = max(1, math.ceil(self._delay))
        return Refusal(
            429, f"{why}: try again in {seconds} s.", code="queue_full", headers={"Retry-After": str(seconds)}
        )

    def _count_waiting(self, change: int) -> None:
        self._n_waiting += change
        self.metrics.queue_texts.set(self._n_waiting)

    def _work(self) -> None:
        try:
            with hold_descriptions():
                while parts := self._collect():
                    self._compute(parts)
        except BaseException as error:  # whatever ends the thread must not leave requests waiting
            self.fault = "the worker is dead"
            log.critical("the worker died of %s; restart the server", type(error).__name__)
            with self._wake:
                self._is_dead = True
                jobs = list(self._open)
                self._queues.clear()
                self._count_waiting(-self._n_waiting)
            for job in jobs:
                self._fail(job, _refuse_dead())

    def _collect(self) -> list[_Part]:
        """Return the next batch, of one model and kind; an empty one when all is done and the server stops."""
        with self._wake:
            while not self._queues:
                if self._is_closing:
                    return []
                self._wake.wait()
            key, jobs = next(iter(self._queues.items()))
            self._queues.move_to_end(key)
            deadline = jobs[0].arrived + self.limits.max_wait_ms / 1000
        parts: list[_Part] = []
        left = self.limits.batch_tokens
        while left > 0 and (job := self._pop(key, deadline, waits=bool(parts))):
            part, n_tokens = self._take(job, max(1, min(left, int(self.limits.batch_tokens * SHARE))))
            if part is not None:
                parts.append(part)
                left -= n_tokens
        return parts or self._collect()

    def _pop(self, key: tuple[str, Kind], deadline: float, *, waits: bool) -> _Job | None:
        """Take the first job of a queue, waiting for one until the deadline."""
        with self._wake:
            while not (jobs := self._queues.get(key)):
                seconds = deadline - time.monotonic()
                if not waits or seconds <= 0 or self._is_closing:
                    return None
                self._wake.wait(seconds)
            job = jobs.popleft()
            if not jobs:
                del self._queues[key]
            return job

    def _take(self, job: _Job, max_tokens: int) -> tuple[_Part | None, int]:
        """Take texts of a job, one at least, and put the job back if it has more."""
        if job.counts is None:
            try:
                job.counts = job.model.count_tokens(job.kind, job.texts)
            except Exception as error:
                with self._wake:
                    self._count_waiting(-len(job.texts))
                self._blame(job, error)
                return None, 0
        totals = np.cumsum(job.counts.read[job.n_taken :])
        n_texts = max(1, int(np.searchsorted(totals, max_tokens, side="right")))
        texts = job.texts[job.n_taken : job.n_taken + n_texts]
        job.n_taken += len(texts)
        with self._wake:
            self._count_waiting(-len(texts))
            if job.n_taken < len(job.texts):
                self._queues.setdefault(job.key, deque()).append(job)
        return _Part(job, texts), int(totals[len(texts) - 1])

    def _compute(self, parts: list[_Part]) -> None:
        job = parts[0].job
        texts = [text for part in parts for text in part.texts]
        started = time.perf_counter()
        try:
            rows = job.model.read(job.kind, texts)
        except Exception as error:
            if len(parts) == 1 or is_out_of_memory(error):
                for part in parts:
                    self._blame(part.job, error)
            else:  # one request's texts must not be another's error
                for part in parts:
                    self._compute([part])
            return
        seconds = time.perf_counter() - started
        self.metrics.observe_batch(len(texts), seconds)
        self._texts_per_second += 0.1 * (len(texts) / max(seconds, 1e-6) - self._texts_per_second)
        start = 0
        for part in parts:
            self._add(part.job, rows[start : start + len(part.texts)])
            start += len(part.texts)

    def _add(self, job: _Job, rows: NDArray[Any]) -> None:
        job.parts.append(rows)
        job.n_done += len(rows)
        if job.n_done == len(job.texts) and not job.failed:
            assert job.counts is not None
            self.metrics.count_texts(job.model.name, job.counts)
            self._settle(job, Reading(np.concatenate(job.parts), job.counts))

    def _blame(self, job: _Job, error: Exception) -> None:
        """Answer a job with the error it met, and be unwell if that was for want of memory."""
        name = type(error).__name__  # its message might quote the text
        if is_out_of_memory(error):
            self.fault = "memory ran out"
            log.error("%s: memory ran out (%s); /health is red until a restart", job.model.name, name)
            refusal = Refusal(503, "memory ran out: send fewer or shorter texts.", code="out_of_memory")
        else:
            log.error("%s: these texts failed with %s", job.model.name, name)
            refusal = Refusal(
                500, f"the classifier failed on these texts ({name}).", code="classifier_failed"
            )
        self._fail(job, refusal)

    def _fail(self, job: _Job, refusal: Refusal) -> None:
        if job.failed:
            return
        job.failed = True
        with self._wake:
            if (jobs := self._queues.get(job.key)) and job in jobs:
                jobs.remove(job)
                self._count_waiting(job.n_taken - len(job.texts))
                if not jobs:
                    del self._queues[job.key]
        self._settle(job, refusal)

    def _settle(self, job: _Job, outcome: Reading | Refusal) -> None:
        with self._wake:
            if job in self._open:
                self._open.discard(job)
                self._n_unread -= len(job.texts)

        def answer() -> None:
            if job.future.done():
                return
            if isinstance(outcome, Refusal):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)

        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits
            job.future.get_loop().call_soon_threadsafe(answer)


def _refuse_dead() -> Refusal:
    return Refusal(503, "the server's worker is dead: it has to be restarted.", code="worker_dead")
