"""The parts of results.json that are no scores: what an arm cost and where the run took place."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import embedtune

Record = Mapping[str, Any]


def sum_costs(
    *, fit: Sequence[Record], embed: Sequence[Record] = (), finetune: Sequence[Record] = (), n_seeds: int = 1
) -> dict[str, Any]:
    """Add up what an arm's steps recorded, over all its backbones, folds and seeds.

    Returns
    -------
    dict
        ``seconds`` in all and by stage; ``rows_per_second`` of the slowest backbone's extraction; ``joules`` of all
        stages, ``joules_per_1000`` of reading a thousand texts with all backbones, ``joules_source``;
        ``trained_parameters`` and ``total_parameters`` of all backbones and folds of one seed, ``peak_memory_bytes``.
        What wasn't measured is None: seconds of texts that an earlier run had left in the store, for one.
    """
    stages = {"embed": embed, "finetune": finetune, "fit": fit}
    seconds = {
        f"{name}_seconds": _add(record["seconds"] for record in records) for name, records in stages.items()
    }
    rates = [record["rows_per_second"] for record in embed]
    peaks = [record["peak_memory_bytes"] for records in stages.values() for record in records]
    parameters = [record["total_parameters"] for record in finetune or embed]
    return {
        "seconds": _add(seconds.values()),
        **seconds,
        "rows_per_second": min(rates) if rates and None not in rates else None,
        **_sum_energy([record for records in stages.values() for record in records], embed),
        "trained_parameters": sum(record["trained_parameters"] for record in finetune) // n_seeds,
        "total_parameters": None if None in parameters else sum(parameters) // (n_seeds if finetune else 1),
        "peak_memory_bytes": None if None in peaks else max(peaks),
    }


def compare_with_prompting(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return what reading a text costs each arm that reads backbones, over what asking the decoder does.

    Returns
    -------
    dict of str to dict
        By arm ``time``, ``energy`` and ``parameters``, as shares of the arm prompt's; None where one of the two wasn't
        measured. Empty without that arm.

    References
    ----------
    arXiv 2406.03725, abstract: 4 % of the parameters, 1.8 % of the electricity, 1.5 % of the time, against a
    decoder 25 times as large. Here both arms may read the same one.
    """
    if "prompt" not in arms:
        return {}
    asked = arms["prompt"]["cost"]

    def divide(part: float | None, whole: float | None) -> float | None:
        return None if part is None or not whole else part / whole

    return {
        name: {
            "time": divide(asked["rows_per_second"], arm["cost"]["rows_per_second"]),
            "energy": divide(arm["cost"]["joules_per_1000"], asked["joules_per_1000"]),
            "parameters": divide(arm["cost"]["total_parameters"], asked["total_parameters"]),
        }
        for name, arm in arms.items()
        if name != "prompt" and arm["cost"]["rows_per_second"]
    }


def _sum_energy(records: Sequence[Record], embed: Sequence[Record]) -> dict[str, Any]:
    found = [record.get("joules") for record in records]
    sources = dict.fromkeys(record["joules_source"] for record in records if record.get("joules_source"))
    reading = [
        1000 * record["joules"] / record["n_computed"]
        if record.get("joules") is not None and record.get("n_computed")
        else None
        for record in embed
    ]
    return {
        "joules": _add(found),
        "joules_per_1000": _add(reading) if reading else None,
        "joules_source": ", ".join(sources) or None,
    }


def describe_environment(*, command: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Say what ran, on what: versions, processor, command, seeds, time."""
    import torch

    return {
        "embedtune": embedtune.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "scikit-learn")},
        "platform": platform.platform(),
        "cpu": _name_processor(),
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": command,
        "seeds": list(seeds),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _add(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if any(value is None for value in known) else float(sum(value or 0.0 for value in known))


def _name_processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
