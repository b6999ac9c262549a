"""A full disk, recognised whichever library met it."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedtune.errors import EmbedtuneError, ResourceError

_MESSAGE = re.compile(r"no space left|disk quota exceeded|os error (28|122)\b", re.IGNORECASE)

#: torch says only that a write failed; with less than this left, in bytes, the disk is why.
_NEXT_TO_NOTHING = 1 << 20


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
