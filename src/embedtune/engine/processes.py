"""ProcessEngine: several processes of this machine, one for each GPU where there are any."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from embedtune.engine.base import Make
from embedtune.errors import ConfigError, EmbedtuneError, ResourceError

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

#: Pieces of work that wait beside those being done, per process.
_AHEAD = 1

_work: Callable[[Any], Any]


class ProcessEngine:
    """Does work in processes of this machine, each with a GPU of its own where there are any.

    Parameters
    ----------
    n_workers : int, optional
        By default as many as there are GPUs, or two.
    n_together : int
        Processes that train one model together, one training after the other then.

    Raises
    ------
    ConfigError
        If there are fewer GPUs than `n_workers`, or fewer workers than `n_together`.
    """

    is_here = False
    is_remote = False

    def __init__(self, n_workers: int | None = None, *, n_together: int = 1) -> None:
        self._gpus = _list_gpus()
        self.n_workers = n_workers or max(len(self._gpus) or 2, n_together)
        self.n_together = n_together
        if self._gpus and self.n_workers > len(self._gpus):
            raise ConfigError(
                f"--workers {self.n_workers} is more than this machine's {len(self._gpus)} GPUs: give that or less."
            )
        check_together(n_together, self.n_workers)

    def map(self, make: Make[T, R], sources: Iterable[S], expand: Callable[[S], Iterable[T]]) -> Iterator[R]:
        """Yield what the processes make of it, in the order that they do."""
        items = (item for source in sources for item in expand(source))
        for _, result in self._map(make, enumerate(items)):
            yield result

    def launch(
        self, function: Callable[[T], R], jobs: Sequence[T], *, folder: Path
    ) -> Iterator[tuple[int, R]]:
        """Yield the jobs' results: as many at a time as there are workers, or one with `n_together` processes."""
        if self.n_together == 1:
            yield from self._map(partial(_return, function), enumerate(jobs))
            return
        for number, job in enumerate(jobs):
            yield number, _launch_group(function, job, n_processes=self.n_together, folder=folder)

    def _map(self, make: Any, items: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        context = multiprocessing.get_context("spawn")
        places = context.SimpleQueue()
        for number in range(self.n_workers):
            places.put(self._gpus[number] if self._gpus else None)
        n_threads = max(1, (os.cpu_count() or 1) // self.n_workers)
        remaining = iter(items)
        running: dict[Future[Any], int] = {}
        with ProcessPoolExecutor(
            self.n_workers, context, initializer=_start, initargs=(places, n_threads, make)
        ) as pool:
            try:
                while True:
                    n_free = self.n_workers * (1 + _AHEAD) - len(running)
                    for number, item in itertools.islice(remaining, n_free):
                        running[pool.submit(_do, item)] = number
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(future), future.result()
            except BrokenProcessPool:
                raise ResourceError(
                    "a worker process died, killed or out of memory: give the same command again, it goes on; "
                    "with less memory, set --workers lower."
                ) from None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def check_together(n_together: int, n_workers: int) -> None:
    """Raise ConfigError where more processes should train together than there are."""
    if n_together > n_workers:
        raise ConfigError(
            f"--train-together {n_together} is more than the {n_workers} workers: give that or less."
        )


def _return(function: Callable[[T], R]) -> Callable[[T], R]:
    return function


def _list_gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _start(places: Any, n_threads: int, make: Callable[[], Callable[[Any], Any]]) -> None:
    global _work
    gpu = places.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    else:
        import torch

        torch.set_num_threads(n_threads)
    _work = _Late(make)


class _Late:
    """A worker that is made when it is first needed: an initializer's error would only say that the pool broke."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._make = make
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, item: Any) -> Any:
        if self._work is None:
            self._work = self._make()
        return self._work(item)


def _do(item: Any) -> Any:
    return _work(item)


def _launch_group(function: Callable[[T], R], job: T, *, n_processes: int, folder: Path) -> R:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n_processes,
        run_id=scratch.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        results: dict[int, R] = elastic_launch(config, _join_group)(function, job, str(scratch))
    except ChildFailedError as error:
        for path in sorted(scratch.glob("error*")):
            raise pickle.loads(path.read_bytes()) from None
        rank, failure = error.get_first_failure()
        raise ResourceError(
            f"process {rank} of a training died ({failure.message or failure.exitcode}): "
            "give the same command again, it goes on."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return results[0]


def _join_group(function: Callable[[Any], Any], job: Any, scratch: str) -> Any:
    """Call the function in one process of a group; what a user can put right is left for the parent to read."""
    import torch

    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        return function(job)
    except EmbedtuneError as error:
        (Path(scratch) / f"error{rank}").write_bytes(pickle.dumps(error))
        raise
    finally:
        torch.distributed.destroy_process_group()
