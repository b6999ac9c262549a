"""Runs a fault's cases inside a time budget and counts what was tried, survived and lost."""

from __future__ import annotations

import importlib
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from torture.workshop import Workshop

#: Modules of this package, in the order they are run, and each one's share of the time.
FAULTS = {
    "kills": 4, "together": 2, "disk": 3, "memory": 3, "rot": 4, "surroundings": 2, "versions": 2, "inputs": 2,
    "values": 2, "repeats": 1, "load": 4, "attackers": 3,
}  # fmt: skip


class Outcome(NamedTuple):
    """What came of one try.

    Attributes
    ----------
    how : str
        How it was survived, in a word or two: "detected", "no effect".
    lost : str
        What was lost, with all that is needed to see it again; empty where nothing was.
    """

    how: str
    lost: str = ""


class NotHere(Exception):
    """This machine or user can't try a case: no loss, and told."""


class Case(NamedTuple):
    """One thing to try again and again.

    Attributes
    ----------
    what : str
        A line of the table.
    attempts : callable
        Takes the workshop and a random generator, yields outcomes for as long as it is asked.
    most : int
        Tries after which it is enough.
    """

    what: str
    attempts: Callable[[Workshop, Random], Iterator[Outcome]]
    most: int


@contextmanager
def open_workshop() -> Iterator[Workshop]:
    """Make a workshop, for all faults of a call, and throw it away."""
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        yield Workshop(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_fault(
    name: str, workshop: Workshop, *, seed: int, seconds: float, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Try a fault's cases for about `seconds`, each at least once, and return what came of it, JSON-able.

    `tell` is given each case's row when it is there.
    """
    module = importlib.import_module(f"torture.{name}")
    started = time.perf_counter()
    rows = []
    left = seconds
    for number, case in enumerate(module.CASES):
        share = max(0.0, left) / (len(module.CASES) - number)
        rows.append(_run_case(case, workshop, Random(f"{seed}/{name}/{case.what}"), seconds=share))
        left -= rows[-1]["seconds"]
        tell(rows[-1])
    took = round(time.perf_counter() - started, 1)
    return {"fault": name, "title": module.TITLE, "seed": seed, "seconds": took, "rows": rows}


def _run_case(case: Case, workshop: Workshop, random: Random, *, seconds: float) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    lost: list[str] = []
    attempts = case.attempts(workshop, random)
    started = None
    try:
        for outcome in attempts:
            started = started or time.perf_counter()  # what a case makes first isn't counted
            counts[outcome.how] += 1
            if outcome.lost:
                lost.append(outcome.lost)
            if counts.total() >= case.most or time.perf_counter() - started >= seconds:
                break
    except NotHere as error:
        counts[f"not tried: {error}"] = 0
    except Exception:  # the case itself gave up: that is a loss too, and the other cases go on
        counts["broke off"] += 1
        lost.append(traceback.format_exc())
    finally:
        if hasattr(attempts, "close"):
            attempts.close()
    return {
        "what": case.what,
        "tried": counts.total(),
        "outcomes": dict(counts.most_common()),
        "lost": lost,
        "seconds": round(time.perf_counter() - (started or time.perf_counter()), 1),
    }
