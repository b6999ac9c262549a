"""How long work reports its progress, whoever is watching.

Library code opens a bar with `track`; what the bar looks like is decided once, at the rim, with
`use_progress`. By default nobody watches and a bar costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol


class Bar(Protocol):
    """A running count of finished units."""

    def advance(self, n: int = 1) -> None:
        """Report `n` more units done."""


#: Opens a bar for (description, total units, name of one unit).
Progress = Callable[[str, int, str], AbstractContextManager[Bar]]


class _SilentBar:
    def advance(self, n: int = 1) -> None:
        pass


def _show_nothing(description: str, total: int, unit: str) -> AbstractContextManager[Bar]:
    return nullcontext(_SilentBar())


_current: ContextVar[Progress] = ContextVar("embedtune_progress", default=_show_nothing)


def track(description: str, total: int, *, unit: str = "rows") -> AbstractContextManager[Bar]:
    """Open a bar over `total` units of work, shown by whatever `use_progress` set."""
    return _current.get()(description, total, unit)


@contextmanager
def use_progress(progress: Progress) -> Iterator[None]:
    """Show every bar opened inside the block through `progress`."""
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)


def use_silence() -> AbstractContextManager[None]:
    """Show no bar that is opened inside the block, whose whole work has a bar already."""
    return use_progress(_show_nothing)
