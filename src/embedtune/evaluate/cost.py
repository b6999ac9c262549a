"""What a stretch of work cost: wall time, peak resident memory of this process, energy."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedtune.evaluate.energy import Energy, open_meter

_STATUS_PATH = Path("/proc/self/status")
_CLEAR_PATH = Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """What was measured; filled in when the measured block ends.

    Attributes
    ----------
    seconds : float
        Wall time.
    peak_memory_bytes : int or None
        Highest resident memory of this process during the block, everything it already held included;
        child processes and accelerator memory are not. None where the system doesn't tell.
    energy : Energy or None
        None where nothing tells it.
    """

    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    energy: Energy | None = None

    def as_record(self) -> dict[str, Any]:
        """Return memory and energy as steps record them."""
        joules, source = self.energy or (None, None)
        return {"peak_memory_bytes": self.peak_memory_bytes, "joules": joules, "joules_source": source}


#: Blocks being measured. An inner block resets the mark, so what it erases is first noted in these.
_open: list[Cost] = []


@contextmanager
def measure() -> Iterator[Cost]:
    """Measure the block; blocks may be nested.

    On Linux the kernel's high-water mark is reset when the block starts. Where that isn't possible the mark
    is the process's whole life: it is then reported only if it rose during the block, else None.

    Examples
    --------
    >>> with measure() as cost:
    ...     _ = sum(range(10))
    >>> cost.seconds < 60
    True
    """
    before = _read_peak()
    if before is not None:
        for outer in _open:
            outer.peak_memory_bytes = max(outer.peak_memory_bytes or 0, before)
    was_reset = _reset_peak()
    cost = Cost()
    _open.append(cost)
    read_energy = open_meter()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        cost.energy = read_energy()
        # by identity: two blocks may hold equal figures
        _open[:] = [other for other in _open if other is not cost]
        cost.peak_memory_bytes = _conclude_peak(cost, before=before, was_reset=was_reset)


def _conclude_peak(cost: Cost, *, before: int | None, was_reset: bool) -> int | None:
    after = _read_peak()
    if after is None or before is None:
        return None
    if was_reset:
        return max(after, cost.peak_memory_bytes or 0)
    return after if after > before else None


def _read_peak() -> int | None:
    """Return the process's high-water mark of resident memory in bytes, or None."""
    if _STATUS_PATH.exists():
        for line in _STATUS_PATH.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak() -> bool:
    """Set the high-water mark back to what is resident now; return whether the kernel did it."""
    try:
        _CLEAR_PATH.write_text("5")  # proc(5): "write 5 to reset the peak resident set size"
    except OSError:
        return False
    return True
