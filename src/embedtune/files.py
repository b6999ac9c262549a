"""Files and folders written whole or not at all, and a full disk recognised whichever library met it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedtune.errors import EmbedtuneError, ResourceError

_MESSAGE = re.compile(r"no space left|disk quota exceeded|os error (28|122)\b", re.IGNORECASE)

#: How libraries tell that a file can't grow, or a write failed, for another reason; torch's is the second.
_FAILED_WRITE = re.compile(r"os error (5|27|30)\b|unexpected pos \d+ vs \d+", re.IGNORECASE)

#: torch says only that a write failed; with less than this left, in bytes, the disk is why.
_NEXT_TO_NOTHING = 1 << 20

_SEAL = "sha256"
_hashes: dict[tuple[str, int, int], str] = {}


class OtherRelease(ValueError):
    """What another release of embedtune wrote; the message goes on after the file's name and says what to do."""


class NewerRelease(OtherRelease):
    """What a newer release wrote: it isn't to be made anew."""


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Write a temporary file that takes `path`'s place when the block ends well.

    A reader, or a killed writer, sees the old file or the new one and nothing between.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replace_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with its own hash, so that `read_sealed` notices a change of a single byte."""
    write_json(path, {**value, _SEAL: _hash_value(value)})


def read_sealed(
    path: Path, shape: Mapping[str, Any], *, schema: int | None = None, again: str
) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Parameters
    ----------
    path : Path
    shape : mapping of str to type, or tuple of types
        Fields that it has to have.
    schema : int, optional
        What its field ``schema`` has to be, where it has one.
    again : str
        What to do about a file of an earlier release: "fine-tune again".

    Raises
    ------
    OSError
        If it isn't there or isn't a file.
    OtherRelease
        If it is of another schema, lacks a field, or was written before files had hashes.
    ValueError
        If it is anything else.
    """
    refuse_endless(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("it isn't a JSON object")
    sealed = value.pop(_SEAL, None)
    if sealed is None:
        check_release(value, {}, schema=schema, again=again)
        raise OtherRelease(f"has no {_SEAL}, as files of earlier releases: {again}")
    if sealed != _hash_value(value):
        raise ValueError(f"its contents don't agree with its {_SEAL}")
    check_release(value, shape, schema=schema, again=again)
    return value


def check_release(
    value: Mapping[str, Any], shape: Mapping[str, Any], *, schema: int | None = None, again: str
) -> None:
    """Check that a file's contents are of a schema and shape, as `read_sealed` does.

    Raises
    ------
    OtherRelease
    """
    found = value.get("schema", schema)
    if schema is not None and found != schema:
        told = f"release of embedtune (schema {found!r:.20}, and this one reads {schema})"
        if isinstance(found, int) and found > schema:
            raise NewerRelease(f"was written by a newer {told}: upgrade embedtune")
        raise OtherRelease(f"was written by an earlier {told}: {again}")
    for name, kind in shape.items():
        if name not in value or not isinstance(value[name], kind):
            what = "of another kind" if name in value else "lacking"
            raise OtherRelease(f"was written by another release of embedtune ('{name}' is {what}): {again}")


def _hash_value(value: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(value))  # keys that were numbers sort otherwise
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return a file's sha256, computed once per process as long as its size and time stamp stay.

    Raises
    ------
    OSError
        If it isn't there or isn't a file.
    """
    refuse_endless(path)
    stat = path.stat()
    key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
    if key not in _hashes:
        with path.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]


def refuse_endless(path: Path) -> None:
    """Check that reading a path comes to an end: what is there is no pipe and no device.

    Raises
    ------
    OSError
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "is a pipe or a device", str(path))


@contextmanager
def replace_dir(path: Path) -> Iterator[Path]:
    """Fill a temporary folder that takes `path`'s place when the block ends well.

    The old folder is moved aside, whole, before the new one takes its name, and only then deleted.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    old = path.with_name(f".{path.name}.old")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.replace(old)
        scratch.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def link_or_copy(source: str, target: str) -> None:
    """Hard-link a file where the disk allows it, else copy it; weights are large and never edited in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def is_disk_full(error: BaseException, folder: Path | None = None) -> bool:
    """Tell whether an error comes from a full disk, or a used-up quota; `folder` is where it wrote."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if _MESSAGE.search(str(error)):
        return True
    if folder is None or not folder.exists():
        return False
    failed_write = "write" in str(error) or _FAILED_WRITE.search(str(error)) is not None
    return failed_write and shutil.disk_usage(str(folder)).free < _NEXT_TO_NOTHING


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn what libraries raise when `folder`'s disk is full into one line.

    Raises
    ------
    ResourceError
    """
    try:
        yield
    except EmbedtuneError:
        raise
    except Exception as error:  # safetensors and others raise kinds of their own
        is_full = is_disk_full(error, folder)
        if not is_full and _FAILED_WRITE.search(str(error)):
            raise ResourceError(
                f"'{folder}' can't be written ({' '.join(str(error).split())}): see to its disk, and to limits on the "
                "size of files, and give the same command again; what was finished is kept."
            ) from error
        if not is_full:
            raise
        raise ResourceError(
            f"the disk of '{folder}' is full: free some space and give the same command again; "
            "what was finished is kept."
        ) from error
