"""Processes that train one model together, as torch.distributed has set them up; usually a group of one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch

R = TypeVar("R")


class Group(NamedTuple):
    """This process's place among those that train together.

    Attributes
    ----------
    rank, size : int
        From 0; the first one leads, and writes what is written.
    """

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def take(self, rows: Sequence[int]) -> list[int]:
        """Return this process's rows of a batch; none where there are fewer than processes."""
        return list(rows[self.rank :: self.size])

    def ask_leader(self, function: Callable[[], R]) -> R:
        """Call a function in the leading process, and return or raise in all of them what it returns or raises."""
        if self.size == 1:
            return function()
        outcome: list[bytes | None] = [None]
        if self.leads:
            try:
                outcome[0] = pickle.dumps((function(), None))
            except Exception as failure:
                outcome[0] = pickle.dumps((None, failure))
        torch.distributed.broadcast_object_list(outcome)
        assert outcome[0] is not None
        value, error = pickle.loads(outcome[0])
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Return once all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()


def find_group() -> Group:
    """Return this process's place."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Group(0, 1)
    return Group(torch.distributed.get_rank(), torch.distributed.get_world_size())
