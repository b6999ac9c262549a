"""RunFolder: what a run has finished, so that the same command goes on and a changed setting redoes only its own.

A step is one unit of a stage (one arm's fit, one backbone's fine-tuning). Its key is a digest of all it depends on, its
record the small facts later stages need. A record is written only once the step's files are complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from embedtune.errors import RunFolderError
from embedtune.files import (
    OtherRelease,
    explain_full_disk,
    hash_file,
    read_sealed,
    refuse_endless,
    write_sealed,
)

log = logging.getLogger(__name__)

#: Of the folder: what lies where, and what records say.
SCHEMA = 1
_STATE = ".state"


def digest(*parts: Any) -> str:
    """Return a short digest of JSON-able values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Hold a run folder for this process; a killed process lets go of it.

    Raises
    ------
    RunFolderError
        If another process holds it.
    """
    lock = FileLock(path / _STATE / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(
            f"another process is running in {path}: wait for it, stop it, or choose another --out."
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_outputs(path: Path, *names: str) -> None:
    """Check that files of a run folder are those that its finished steps wrote; what isn't there isn't checked.

    Raises
    ------
    RunFolderError
        If one has changed.
    """
    for record_path in sorted((path / _STATE).glob("*.json")):
        try:
            written = _read_record(record_path)["files"]
        except ValueError:
            continue  # The step counts as not done.
        for name in sorted(written.keys() & set(names)):
            if (path / name).is_file() and hash_file(path / name) != written[name]:
                raise RunFolderError(
                    f"{path / name} is not the file that was written: give the command of the whole run again, "
                    "which makes it anew."
                )


def read_output(path: Path) -> Any:
    """Return what a stage wrote as JSON.

    Raises
    ------
    FileNotFoundError
    RunFolderError
        If it is no longer JSON.
    """
    try:
        refuse_endless(path)
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged ({error}): run its stage again.") from error


def _read_record(path: Path) -> dict[str, Any]:
    return read_sealed(path, {"key": str, "result": dict, "files": dict}, again="do the step again")


def _list_files(outputs: Sequence[Path]) -> Iterator[Path]:
    for output in outputs:
        inside = sorted(output.iterdir()) if output.is_dir() else [output]
        yield from (path for path in inside if path.is_file() and not path.name.startswith("."))


class RunFolder:
    """A folder holding one task's run.

    Parameters
    ----------
    path : Path
        Made when missing.
    identity : str
        Says which experiment on which data the folder is for; a folder with another identity is refused. It is
        written with the first finished step: until then nothing would be lost to another experiment.
    inside : RunFolder, optional
        The folder of an experiment of several tasks that this task's folder lies in.

    Raises
    ------
    RunFolderError
        If `path` is a file, holds something else, or belongs to another experiment or a newer release.
    """

    def __init__(self, path: Path, *, identity: str, inside: RunFolder | None = None) -> None:
        self.path, self.identity, self.inside = path, identity, inside
        stamp = self._identity_path
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file, and a run needs a folder: choose another --out.")
        if path.is_dir() and not (path / _STATE).is_dir() and any(path.iterdir()):
            raise RunFolderError(f"{path} is not empty and holds no run: choose another --out, or empty it.")
        if stamp.exists():
            try:
                held = read_sealed(
                    stamp,
                    {"identity": str},
                    schema=SCHEMA,
                    again="choose another --out, or delete the folder",
                )["identity"]
            except OtherRelease as error:
                raise RunFolderError(f"{stamp} {error}.") from None
            except ValueError as error:
                raise RunFolderError(
                    f"{stamp} is damaged ({error}): if {path} is of {identity}, delete that file and give the "
                    "command again."
                ) from error
            if held != identity:
                raise RunFolderError(
                    f"{path} holds another experiment ({held}), and this is {identity}: "
                    "choose another --out, or delete it."
                )
        (path / _STATE).mkdir(parents=True, exist_ok=True)

    def read_record(self, step: str) -> dict[str, Any] | None:
        """Return what `step` recorded when it last finished, whatever its key, or None.

        A record that is damaged, or that another release wrote otherwise, is none.
        """
        try:
            return _read_record(self._record_path(step))
        except (FileNotFoundError, ValueError):
            return None

    def read_result(self, step: str, key: str, *, outputs: Sequence[Path] = ()) -> dict[str, Any] | None:
        """Return what `step` recorded if its `key` and `outputs` still stand, or None."""
        record = self.read_record(step)
        if record is None or record["key"] != key or not all(path.exists() for path in outputs):
            return None
        changed = [name for name, written in record["files"].items() if self._hash(name) != written]
        if changed:
            log.warning("%s is not the file that was written: it is made again", self.path / changed[0])
            return None
        result: dict[str, Any] = record["result"]
        return result

    def run_step(
        self, step: str, key: str, compute: Callable[[], dict[str, Any]], *, outputs: Sequence[Path] = ()
    ) -> dict[str, Any]:
        """Return `step`'s result: the recorded one when `key` and `outputs` still stand, else a newly computed one.

        Parameters
        ----------
        step, key : str
        compute : callable
        outputs : sequence of Path
            Files that it writes, inside the folder; a folder stands for the files in it.

        Raises
        ------
        ResourceError
            If the disk is full.
        """
        found = self.read_result(step, key, outputs=outputs)
        if found is not None:
            return found
        self._record_path(step).unlink(missing_ok=True)
        with explain_full_disk(self.path):
            result = compute()
            self._claim()
            files = {path.relative_to(self.path).as_posix(): hash_file(path) for path in _list_files(outputs)}
            write_sealed(self._record_path(step), {"key": key, "result": result, "files": files})
        return result

    @property
    def scratch(self) -> Path:
        """A folder for files that are needed meanwhile."""
        return self.path / _STATE / "scratch"

    def _hash(self, name: str) -> str | None:
        return hash_file(self.path / name) if (self.path / name).is_file() else None

    def _claim(self) -> None:
        if self.inside is not None:
            self.inside._claim()
        if not self._identity_path.exists():
            write_sealed(self._identity_path, {"schema": SCHEMA, "identity": self.identity})

    @property
    def _identity_path(self) -> Path:
        return self.path / _STATE / "identity.json"

    def forget(self, stage: str) -> None:
        """Drop the records of a stage's steps, so that they are done again."""
        for path in (self.path / _STATE).glob(f"{stage}*.json"):
            if path.stem == stage or path.stem.startswith(f"{stage}."):
                path.unlink()

    def _record_path(self, step: str) -> Path:
        return self.path / _STATE / f"{step.replace('/', '__')}.json"
