"""Contests: the same job done by several contestants, in turns, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedtune.errors import ResourceError
from embedtune.progress import track

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Contestant:
    """One way to do a job.

    Attributes
    ----------
    name : str
    script : Path
        A Python file with ``prepare(job) -> run``; see `embedtune.bench.worker`.
    job : dict
        Whatever the script wants to know; goes through JSON.
    python : str
        The interpreter that has what the script imports.
    """

    name: str
    script: Path
    job: dict[str, Any] = field(default_factory=dict)
    python: str = sys.executable


class Ratio(NamedTuple):
    """How many times as long one contestant takes as another: the median, least and most over the rounds."""

    median: float
    low: float
    high: float


@dataclass
class Times:
    """What a contestant's runs took, one entry a round; arrays and facts are those of the last."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def over(self, other: Times) -> Ratio:
        """Return how many times as long this took as `other`, round by round."""
        ratios = [ours / theirs for ours, theirs in zip(self.seconds, other.seconds, strict=True)]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def describe(self) -> dict[str, Any]:
        """Return what goes into the JSON."""
        return {
            "seconds": [round(s, 4) for s in self.seconds],
            "median_seconds": round(self.median, 4),
            "cpu_seconds": [round(s, 4) for s in self.cpu_seconds],
            "peak_mib": round(self.peak_bytes / 2**20, 1),
            "facts": self.facts[-1] if self.facts else {},
        }


def hold(contestants: Sequence[Contestant], *, rounds: int = 5, warm_up: bool = True) -> dict[str, Times]:
    """Have every contestant do its job once a round, in turns, and return their times by name.

    A process prepares (imports, loads) outside the time, runs once uncounted with `warm_up`, and sleeps
    while others run.

    Raises
    ------
    ResourceError
        If a contestant's process fails; what it printed is in the message.
    """
    found = {contestant.name: Times() for contestant in contestants}
    with tempfile.TemporaryDirectory(prefix="embedtune-bench-") as place, contextlib.ExitStack() as stack:
        workers = {
            contestant.name: stack.enter_context(_start(contestant, Path(place) / str(number)))
            for number, contestant in enumerate(contestants)
        }
        total = len(contestants) * (rounds + warm_up)
        with track("contest", total, unit="runs") as bar:
            for turn in range(-1 if warm_up else 0, rounds):
                for name, worker in workers.items():
                    answer = worker.ask("run")
                    if turn >= 0:
                        _note(found[name], answer, last=turn == rounds - 1)
                    bar.advance()
    return found


def _note(times: Times, answer: dict[str, Any], *, last: bool) -> None:
    times.seconds.append(answer["seconds"])
    times.cpu_seconds.append(answer["cpu_seconds"])
    times.peak_bytes = max(times.peak_bytes, answer["peak_bytes"])
    times.facts.append(answer["facts"])
    for name, path in answer["arrays"].items():
        if last:
            times.arrays[name] = np.load(path)
        Path(path).unlink()


class _Worker(NamedTuple):
    name: str
    process: subprocess.Popen[str]
    errors: Path

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if not answer:
            printed = self.errors.read_text(errors="replace").strip().splitlines()
            raise ResourceError(
                f"benchmark '{self.name}' stopped with code {self.process.wait()}: "
                f"{printed[-1] if printed else 'it printed nothing'} (set --peers-python to a Python that has what it "
                "imports)."
            )
        result: dict[str, Any] = json.loads(answer)
        return result


@contextlib.contextmanager
def _start(contestant: Contestant, folder: Path) -> Iterator[_Worker]:
    folder.mkdir()
    job, errors = folder / "job.json", folder / "stderr.txt"
    job.write_text(json.dumps(contestant.job), encoding="utf-8")
    with errors.open("w") as sink:
        process = subprocess.Popen(
            [contestant.python, str(WORKER), str(contestant.script), str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
        )
        worker = _Worker(contestant.name, process, errors)
        try:
            worker.read()
            yield worker
            with contextlib.suppress(BrokenPipeError):
                assert process.stdin is not None
                process.stdin.write("stop\n")
                process.stdin.flush()
            process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]
