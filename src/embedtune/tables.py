"""The run folder's CSV tables: every setting tried on the validation rows, every arm on the test rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedtune.files import write_text

#: What a row of validation.csv tells, beside its arm and seed: `heads.grid.Cell`, and whether it was chosen.
CELL_COLUMNS = ("epochs", "learning_rate", "sigma", "log_loss", "accuracy", "macro_f1", "chosen")


def list_cells(head: Any) -> list[dict[str, Any]]:
    """Return what a fitted head's settings scored on its validation rows; nothing for a head that tries none."""
    chosen = [getattr(head, f"{name}_", None) for name in ("epochs", "learning_rate", "sigma")]
    return [
        {**cell, "chosen": [cell[name] for name in ("epochs", "learning_rate", "sigma")] == chosen}
        for cell in getattr(head, "cells_", [])
    ]


def write_validation_table(
    path: Path, cells: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
) -> None:
    """Write a row per arm, seed and setting; `cells` holds what `list_cells` gave, by arm and seed."""
    rows = [
        [arm, seed, *(cell[name] for name in CELL_COLUMNS)]
        for arm, by_seed in cells.items()
        for seed, found in by_seed.items()
        for cell in found
    ]
    _write(path, ["arm", "seed", *CELL_COLUMNS], rows)


def write_test_table(path: Path, arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a row per arm: each metric with its interval, and what the arm cost; `arms` is results.json's."""
    metrics = [name for name, value in next(iter(arms.values())).items() if _is_interval(value)]
    header = ["arm", *(f"{name}{end}" for name in metrics for end in ("", "_low", "_high")), "seconds"]
    rows = [
        [
            arm,
            *(scores[name][part] for name in metrics for part in ("value", "low", "high")),
            (scores.get("cost") or {}).get("seconds"),
        ]
        for arm, scores in arms.items()
    ]
    _write(path, header, rows)


def _is_interval(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= set(value)


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
