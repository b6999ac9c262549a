"""What an engine does, and the one that does it in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

#: Makes what does the work, once per worker.
Make = Callable[[], Callable[[T], R]]


class Engine(Protocol):
    """Does work somewhere.

    Attributes
    ----------
    n_workers : int
        How many things are done at the same time.
    is_here : bool
        Whether this process itself does it.
    is_remote : bool
        Whether workers may be on other machines, and see other files than this process does.
    """

    n_workers: int
    is_here: bool
    is_remote: bool

    def map(self, make: Make[T, R], sources: Iterable[S], expand: Callable[[S], Iterable[T]]) -> Iterator[R]:
        """Yield what workers make of everything that sources hold, in any order.

        Parameters
        ----------
        make : callable
            Returns a worker; called once for each of them, and again for one that died.
        sources : iterable
        expand : callable
            Returns the pieces of work in a source, one after the other.

        Raises
        ------
        EmbedtuneError
            The first one that a worker raises, or ResourceError where workers died.
        """

    def launch(
        self, function: Callable[[T], R], jobs: Sequence[T], *, folder: Path
    ) -> Iterator[tuple[int, R]]:
        """Yield each job's number and what the first process of its group returns, in any order.

        All processes of a group call the function with the job, with torch.distributed set up between them. A group
        that lost one starts again, so the function has to go on where it was.

        Parameters
        ----------
        function : callable
        jobs : sequence
        folder : Path
            For files that are needed meanwhile; all workers must see it.

        Raises
        ------
        EmbedtuneError
            The first one that a process raises, or ResourceError where groups died.
        """


class LocalEngine:
    """Does everything here, one after the other."""

    n_workers = 1
    is_here = True
    is_remote = False

    def map(self, make: Make[T, R], sources: Iterable[S], expand: Callable[[S], Iterable[T]]) -> Iterator[R]:
        """Yield what one worker makes of it, in order."""
        work = make()
        for source in sources:
            for item in expand(source):
                yield work(item)

    def launch(
        self, function: Callable[[T], R], jobs: Sequence[T], *, folder: Path
    ) -> Iterator[tuple[int, R]]:
        """Yield each job's result, in order."""
        for number, job in enumerate(jobs):
            yield number, function(job)
