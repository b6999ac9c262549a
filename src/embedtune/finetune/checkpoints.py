"""Checkpoints of an unfinished fine-tuning: which of them can be trusted, and what they say.

A checkpoint counts once its `READY` file is there, which is written last and atomically; anything half-written is
ignored. `KEY` beside the checkpoints says what they belong to.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from embedtune.files import hash_file, read_sealed, write_json, write_sealed

log = logging.getLogger(__name__)

KEY = "key.json"
READY = "ready.json"
STATE = "trainer_state.json"
WEIGHTS = "weights.safetensors"


class Epoch(NamedTuple):
    """One evaluation on the validation part, after `step` steps."""

    step: int
    epoch: float
    macro_f1: float
    log_loss: float


def open_checkpoints(folder: Path, key: dict[str, Any]) -> None:
    """Make `folder` hold checkpoints of `key` only: what belongs to other arguments is deleted."""
    if folder.exists() and _read_json(folder / KEY) != key:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / KEY, key)


def find_last(folder: Path) -> Path | None:
    """Return the newest complete checkpoint if all are as they were written; None, and no checkpoint, otherwise.

    One that is damaged takes the others with it: the best epoch's weights may be in it, and training from the start
    has the same result.
    """
    ready = _list_ready(folder)
    damaged = next((checkpoint for checkpoint in ready if not _is_whole(checkpoint)), None)
    if damaged is not None:
        log.warning("%s is not as it was written: the training begins anew", damaged)
        delete_spent(folder, keep=set())
        return None
    return max(ready, key=_number, default=None)


def mark_ready(checkpoint: Path, *, seconds: float) -> None:
    """Declare a checkpoint complete; `seconds` is the training time that led to it."""
    files = {path.name: hash_file(path) for path in sorted(checkpoint.iterdir()) if path.is_file()}
    write_sealed(checkpoint / READY, {"seconds": seconds, "files": files})


def read_seconds(checkpoint: Path) -> float:
    """Return the training time that led to a complete checkpoint."""
    return float(_read_ready(checkpoint)["seconds"])


def read_epochs(log_history: Sequence[dict[str, Any]]) -> list[Epoch]:
    """Return the evaluations that a Trainer's log holds, in order."""
    return [
        Epoch(entry["step"], entry["epoch"], entry["eval_macro_f1"], entry["eval_log_loss"])
        for entry in log_history
        if "eval_macro_f1" in entry
    ]


def read_log(checkpoint: Path) -> list[dict[str, Any]]:
    """Return a complete checkpoint's Trainer log."""
    log: list[dict[str, Any]] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["log_history"]
    return log


def find_best(epochs: Sequence[Epoch]) -> Epoch:
    """Return the epoch of highest macro-F1; of several the one of lowest log loss, then the first."""
    return max(epochs, key=lambda epoch: (epoch.macro_f1, -epoch.log_loss))


def has_stalled(epochs: Sequence[Epoch], *, patience: int | None) -> bool:
    """Tell whether the last `patience` evaluations all failed to beat the best one; None never stalls."""
    if not epochs or patience is None:
        return False
    return len(epochs) - 1 - epochs.index(find_best(epochs)) >= patience


def delete_spent(folder: Path, *, keep: set[int]) -> None:
    """Delete all complete checkpoints but those after the given steps, and all half-written ones."""
    for checkpoint in folder.glob("checkpoint-*"):
        if _number(checkpoint) not in keep:
            # Unmark first: what is left by a kill in the middle of deleting must not count.
            (checkpoint / READY).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)


def _list_ready(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if (path / READY).exists()]


def _is_whole(checkpoint: Path) -> bool:
    try:
        files = _read_ready(checkpoint)["files"]
        if STATE in files:
            read_epochs(read_log(checkpoint))
        return all(hash_file(checkpoint / name) == written for name, written in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_ready(checkpoint: Path) -> dict[str, Any]:
    return read_sealed(checkpoint / READY, {"seconds": (int, float), "files": dict}, again="begin anew")


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
