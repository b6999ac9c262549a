"""The folder that a fine-tuning works in: held by one process, published whole, read back when it is done."""

from __future__ import annotations

import contextlib
import fnmatch
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from embedtune.embed.checkpoints import hash_adapter
from embedtune.errors import BackboneError, BundleError, RunFolderError
from embedtune.files import NewerRelease
from embedtune.finetune import saved
from embedtune.finetune.saved import FineTuned, read_finetuned

CHECKPOINTS, LOGS, _LOCK = "checkpoints", "logs", ".lock"
_WEIGHTS = ("config.json", "generation_config.json", "model*.safetensors*", "adapter_config.json")
_RESULTS = (*_WEIGHTS, "adapter_model.safetensors", saved.HEAD)
#: Patterns of what a finished or a killed call leaves.
_OURS = (*_RESULTS, saved.FACTS, f".{saved.FACTS}.*", CHECKPOINTS, LOGS, _LOCK)


def publish(folder: Path, write: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Let `write` fill a temporary folder, move its files into place, then declare them finished."""
    for pattern in (*_RESULTS, f".{saved.FACTS}.*"):
        for path in folder.glob(pattern):
            path.unlink()
    temporary = folder / CHECKPOINTS / "result"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    for path in sorted(temporary.iterdir()):
        if path.name != "README.md":  # peft's model card, a form nobody filled in
            path.replace(folder / path.name)
    saved.write_facts(folder, facts)


def read_finished(folder: Path, key: dict[str, Any], *, replace: bool) -> FineTuned | None:
    """Return an earlier call's result if it had the same arguments and is whole; with `replace`, forget it otherwise.

    Raises
    ------
    RunFolderError
        If it had others, without `replace`.
    BundleError
        If a file has changed, without `replace`; if a newer release wrote it.
    """
    try:
        facts = saved.read_facts(folder)
        if facts is None:
            return None
        if facts["backbone_sha256"] != hash_adapter(folder):
            raise BundleError(
                f"the weights in '{folder}' aren't those that were written: delete it and fine-tune again."
            )
        finished = read_finetuned(folder)
    except (BundleError, BackboneError) as error:
        if not replace or isinstance(error.__cause__, NewerRelease):
            raise
        (folder / saved.FACTS).unlink()
        return None
    changed = sorted(name for name in key if facts["key"].get(name) != key[name] and name != "torch")
    if changed and replace:
        (folder / saved.FACTS).unlink()
        return None
    if changed:
        raise RunFolderError(
            f"output folder '{folder}' holds a finished fine-tuning with other {' and '.join(changed)}: "
            "give another folder, or delete this one."
        )
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return finished


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Make the folder and keep other processes out of it.

    Raises
    ------
    RunFolderError
        If it holds files that fine-tuning doesn't write, or another process is in it.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"output folder '{folder}' is a file: give a folder.")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    strange = [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in _OURS)]
    if strange:
        raise RunFolderError(
            f"output folder '{folder}' holds '{strange[0]}', which fine-tuning didn't write: give an empty folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = filelock.FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise RunFolderError(
            f"output folder '{folder}' is in use by another process: wait for it, or give another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()
