"""Suites: what `embedtune bench` can run, and what a suite's result is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from embedtune.bench.contest import Ratio
from embedtune.errors import ConfigError, suggest_nearest

#: Name -> what it measures, for a list of suites. `embedtune.bench.NAME` has ``run(options) -> Report``.
SUITES = {
    "cpu": "extraction on a CPU, beside sentence-transformers and the machine's matrix-product rate",
    "finetune": "fine-tuning with a cached trunk, beside transformers' Trainer",
    "heads": "a grid of co-occurrence heads trained together, beside one after the other",
    "store": "a run that finds everything stored, and what storing costs",
    "scale": "time and memory over 10 thousand to 1 million rows",
    "run": "a whole run, beside a script that does the same arms",
    "startup": "the command's --help and the import",
    "serve": "the server under load, beside the library and a plain server",
    "gpu": "extraction and LoRA fine-tuning of a 7B-shaped decoder on a CUDA device",
}


@dataclass(frozen=True)
class Options:
    """How a suite is run.

    Attributes
    ----------
    rounds : int
        Times each contestant runs, in turns.
    peers : Path or None
        Folder with the peers' scripts; without it only what the package itself can run takes part.
    peers_python : str
        The interpreter that has the peers installed.
    smoke : bool
        A small part of the data and a single round: whether the suite works, not what it measures.
    only : tuple of str
        Parts of the suite to run, all by default.
    model : str
        The backbone of the suites that let it be chosen.
    """

    rounds: int = 5
    peers: Path | None = None
    peers_python: str = sys.executable
    smoke: bool = False
    only: tuple[str, ...] = ()
    model: str = "all-MiniLM-L6-v2"


class Row(NamedTuple):
    """One line of a suite's table.

    Attributes
    ----------
    what, against : str
    value : float or None
        The median; None if it wasn't measured, and `note` says why.
    low, high : float or None
        Over the rounds.
    unit : str
        ``"×"`` for a ratio.
    aim : float or None
    at_most : bool
        Whether the aim is an upper bound.
    note : str
        What limits it, how outputs compare.
    """

    what: str
    against: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = "×"
    aim: float | None = None
    at_most: bool = False
    note: str = ""

    @classmethod
    def of(cls, what: str, against: str, ratio: Ratio, *, aim: float | None = None, note: str = "") -> Row:
        """Return a ratio's row."""
        median, low, high = (round(part, 3) for part in ratio)
        return cls(what, against, median, low, high, aim=aim, note=note)

    @property
    def reached(self) -> bool | None:
        """Whether the aim is reached; None without an aim or a value."""
        if self.aim is None or self.value is None:
            return None
        return self.value <= self.aim if self.at_most else self.value >= self.aim


@dataclass(frozen=True)
class Report:
    """What a suite found: its rows, the machine, and all else worth keeping (times, texts' lengths, work counted)."""

    rows: list[Row]
    machine: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON holds."""
        return {
            "machine": self.machine,
            "rows": [{**row._asdict(), "reached": row.reached} for row in self.rows],
            "details": self.details,
        }


def load_suite(name: str) -> Callable[[Options], Report]:
    """Return a suite's function.

    Raises
    ------
    ConfigError
        If there is no such suite.
    """
    if name not in SUITES:
        raise ConfigError(
            f"suite {name!r} is unknown{suggest_nearest(name, SUITES)}: choose one of {', '.join(SUITES)}."
        )
    run: Callable[[Options], Report] = importlib.import_module(f"embedtune.bench.{name}").run
    return run
