"""Where a run's settings, trainings and results can be sent: a module for each tracker, all of one shape.

A tracker is another's program, and often on another's machine: what goes wrong there is told once, and the run goes on.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from embedtune.errors import MissingExtraError
from embedtune.trackers.secrets import hide_secrets

log = logging.getLogger(__name__)

#: By name: the package that a tracker needs, and what pip installs it by.
PACKAGES = {
    "mlflow": ("mlflow", "'embedtune[track]'"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "'wandb>=0.31'"),
}
_T = TypeVar("_T")


class About(NamedTuple):
    """What a tracked run is called, its settings by dotted key, and the tracked run that it is a part of."""

    experiment: str
    name: str
    settings: Mapping[str, str]
    parent: str | None = None


class Found(NamedTuple):
    """What came out of a run.

    Attributes
    ----------
    figures : mapping of str to float
    words : mapping of str to str
    files : sequence of Path
    curves : sequence of (int, str, float)
        Step, name and value, named as the Trainer logs them.
    """

    figures: Mapping[str, float] = {}
    words: Mapping[str, str] = {}
    files: tuple[Path, ...] = ()
    curves: tuple[tuple[int, str, float], ...] = ()


class Tracker(Protocol):
    """What a tracker's module gives as ``Tracker(folder)``; every method may raise anything."""

    @property
    def place(self) -> str:
        """Where its runs are kept; may hold a password."""

    def start(self, about: About) -> str:
        """Begin a tracked run and return its id."""

    def knows(self, run_id: str) -> bool:
        """Tell whether a tracked run is still there."""

    def watch(self, run_id: str, about: About) -> Any:
        """Return the Trainer's callback that logs into a tracked run, with a ``close(failed=…)``; None for none."""

    def write(self, run_id: str, about: About, found: Found) -> None:
        """Write what came out into a tracked run, and end it."""


class Link:
    """The way to a tracker; `failed` once something went wrong there."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.failed = name, folder, False

    @functools.cached_property
    def tracker(self) -> Tracker:
        """The tracker; its package is imported at the first use."""
        tracker: Tracker = importlib.import_module(f"embedtune.trackers.{self.name}").Tracker(self.folder)
        return tracker

    def attempt(self, do: Callable[[], _T]) -> _T | None:
        """Return what `do` does, or None where it failed, which is told the first time."""
        try:
            with _hush():
                return do()
        except Exception as error:  # whatever another's library raises
            if not self.failed:
                said = hide_secrets(" ".join(str(error).split()) or type(error).__name__)
                log.warning(
                    "%s can't be reached or refuses (%s): the run goes on, and the same command sends what is missing.",
                    self.name,
                    said[:200].rstrip("."),
                )
            self.failed = True
            return None


def open_links(names: Iterable[str], folder: Path) -> tuple[Link, ...]:
    """Return a link to each tracker named; `folder` is the run's.

    Raises
    ------
    MissingExtraError
        If a tracker's package isn't installed.
    """
    for name in names:
        package, requirement = PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"track names {name}, which isn't installed: pip install {requirement}.")
    return tuple(Link(name, folder) for name in names)


@contextmanager
def _hush() -> Iterator[None]:
    """Hold back what trackers' libraries log and warn of; errors they raise."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
