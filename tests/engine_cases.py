"""What engines' workers are given in tests; a module, since workers are other processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from embedtune.embed.spread import _Done, _Filler, _Part
from embedtune.errors import DataError


def count(source: int) -> Iterator[int]:
    """Yield `source` numbers."""
    yield from range(source)


def make_adder(start: int, folder: Path, n_workers: int) -> Callable[[int], tuple[int, int]]:
    """Return a worker that adds `start` and says which process did, once all of them are there."""
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < n_workers and time.monotonic() < deadline:
        time.sleep(0.05)
    return lambda item: (item + start, os.getpid())


def make_refuser() -> Callable[[int], int]:
    """Return a worker that has a user's error to tell."""
    return refuse


def make_suicide() -> Callable[[int], int]:
    """Return a worker that is killed by its second piece of work."""
    return lambda item: item if item < 1 else os.kill(os.getpid(), signal.SIGKILL) or 0


def refuse(item: int) -> int:
    """Raise for 2."""
    if item == 2:
        raise DataError("row 2 has no text: give it one.")
    return item


def describe_group(job: int) -> tuple[int, int, int]:
    """Return the job and this process's place in its group."""
    import torch

    return job, torch.distributed.get_rank(), torch.distributed.get_world_size()


def tune(arguments: dict[str, Any]) -> int:
    """Fine-tune, and return how many processes did."""
    from embedtune.finetune.group import find_group
    from embedtune.finetune.train import fine_tune

    fine_tune(**arguments)
    return find_group().size


def tune_somewhere(arguments: dict[str, Any]) -> int:
    """Fine-tune, and write down on which node."""
    import ray

    with arguments["output_dir"].with_suffix(".nodes").open("a") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()}\n")
    return tune(arguments)


class LoggingFiller(_Filler):
    """Writes down how many texts each piece of work ran."""

    def __init__(self, encoder: Any, log: Path) -> None:
        super().__init__(encoder)
        self._log = log

    def __call__(self, item: _Part) -> _Done:
        done = super().__call__(item)
        with self._log.open("a") as file:
            file.write(f"{done.n_computed}\n")
        return done
