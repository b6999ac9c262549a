"""Memory that ran out, whichever library met it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from embedtune.errors import EmbedtuneError, ResourceError

#: Of torch's allocator, oneDNN (which has no other word for it), OpenVINO, cuBLAS, C++, threads and libraries that
#: find no room.
_SIGNS = (
    "allocate.*memory",
    "memory.*allocate",
    "could not create a primitive$",
    "can't alloc",
    "ALLOC_FAILED",
    "bad_alloc",
    "Resource temporarily unavailable",
    "can't start new thread",
    "failed to map segment",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, on a device or here, for which torch has no kind of error of its own."""
    if isinstance(error, MemoryError | ResourceError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | ImportError) and any(
        re.search(sign, str(error), re.DOTALL) for sign in _SIGNS
    )


@contextmanager
def explain_out_of_memory(line: str) -> Iterator[None]:
    """Turn what libraries raise when memory runs out into a line that says what to do.

    Raises
    ------
    ResourceError
    """
    try:
        yield
    except EmbedtuneError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(line) from error
