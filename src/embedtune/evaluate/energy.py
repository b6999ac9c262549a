"""Energy that work took, by counters of the processor and of NVIDIA devices; where there are none, none is guessed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_POWERCAP = Path("/sys/class/powercap")


class Energy(NamedTuple):
    """Joules, and where they come from: ``"RAPL"``, ``"NVML"``, or ``"RAPL + NVML"``."""

    joules: float
    source: str


def open_meter() -> Callable[[], Energy | None]:
    """Start to count; the function returned says what was used since, None where nothing tells.

    RAPL counts whole processor packages and NVML (extra ``energy``) whole devices, so other processes' work is in it.
    """
    before = _read_counters()
    return (lambda: _subtract(before, _read_counters())) if before else (lambda: None)


def _subtract(
    before: dict[str, tuple[str, float, float]], after: dict[str, tuple[str, float, float]]
) -> Energy:
    joules, sources = 0.0, []
    for name, (source, start, span) in before.items():
        if name in after:
            used = after[name][1] - start
            joules += used if used >= 0 else used + span  # a counter begins anew at its span
            sources.append(source)
    return Energy(joules, " + ".join(dict.fromkeys(sources)))


def _read_counters() -> dict[str, tuple[str, float, float]]:
    """Return each counter's source, joules so far and span, by its name."""
    found = {}
    for folder in sorted(_POWERCAP.glob("*-rapl:[0-9]*")):
        if folder.name.count(":") == 1:  # packages; their parts are counted in them
            try:
                joules, span = (
                    int((folder / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj")
                )
            except (OSError, ValueError):  # often for root alone
                continue
            found[folder.name] = ("RAPL", joules, span)
    for number, handle in enumerate(_list_devices()):
        import pynvml

        try:
            millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError:
            continue
        found[f"device {number}"] = ("NVML", millijoules / 1e3, 0.0)
    return found


@cache
def _list_devices() -> tuple[Any, ...]:
    if importlib.util.find_spec("pynvml") is None:
        return ()
    import pynvml

    try:
        pynvml.nvmlInit()
        return tuple(pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
