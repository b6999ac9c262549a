"""Files and folders written whole or not at all, and a full disk recognised whichever library met it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedtune.errors import EmbedtuneError, ResourceError

_MESSAGE = re.compile(r"no space left|disk quota exceeded|os error (28|122)\b", re.IGNORECASE)

#: torch says only that a write failed; with less than this left, in bytes, the disk is why.
_NEXT_TO_NOTHING = 1 << 20


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


@contextmanager
def replace_dir(path: Path) -> Iterator[Path]:
    """Fill a temporary folder that takes `path`'s place when the block ends well."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if path.exists():
            shutil.rmtree(path)
        scratch.replace(path)
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
    failed_write = "write" in str(error) and folder is not None and folder.exists()
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
        if not is_disk_full(error, folder):
            raise
        raise ResourceError(
            f"the disk of '{folder}' is full: free some space and give the same command again; "
            "what was finished is kept."
        ) from error
