"""How long the command takes to answer, and the package to be imported."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from embedtune.bench.machine import describe_machine
from embedtune.bench.suite import Options, Report, Row
from embedtune.errors import ResourceError

_IMPORT = """
import sys, time
started = time.perf_counter()
import embedtune
print(time.perf_counter() - started, 'torch' in sys.modules)
"""


def run(options: Options) -> Report:
    """Time both in new processes; the first of each, which reads from the disk, isn't counted."""
    machine = describe_machine()
    helps, imports, torch_there = [], [], False
    for _ in range(options.rounds + 1):
        started = time.perf_counter()
        _run(["-m", "embedtune", "--help"])
        helps.append(time.perf_counter() - started)
        seconds, has_torch = _run(["-c", _IMPORT]).split()
        imports.append(float(seconds))
        torch_there |= has_torch == "True"
    note = "it imports torch" if torch_there else "it doesn't import torch"
    return Report(
        [
            _make_row("embedtune --help", helps[1:], aim=0.3),
            _make_row("import embedtune", imports[1:], aim=0.1, note=note),
        ],
        machine,
    )


def _make_row(what: str, seconds: list[float], *, aim: float, note: str = "") -> Row:
    median, low, high = (round(part, 3) for part in (statistics.median(seconds), min(seconds), max(seconds)))
    return Row(what, "a new process", median, low, high, unit="s", aim=aim, at_most=True, note=note)


def _run(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise ResourceError(f"python {' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout
