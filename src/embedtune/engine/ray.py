"""RayEngine: a Ray cluster's workers. Ray Data's actors hold what is dear to make, Ray Train's groups train.

Workers import embedtune, which must be installed on every node, and see the same files: models and run folder lie in a
folder that all nodes mount, the store there or in an object store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import embedtune
from embedtune.engine.base import Make
from embedtune.engine.processes import check_together
from embedtune.errors import ConfigError, EmbedtuneError, MissingExtraError, ResourceError

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

#: A group that lost a node starts again so often, and so do actors that ended before they stood.
MAX_FAILURES = 8


@contextlib.contextmanager
def open_ray(
    address: str | None, *, n_workers: int | None = None, n_together: int = 1
) -> Iterator[RayEngine]:
    """Connect to a cluster, or start one on this machine, and leave it when the block ends.

    Raises
    ------
    MissingExtraError
        If Ray isn't installed.
    ResourceError
        If the cluster can't be reached.
    ConfigError
        If it has too few nodes or GPUs for `n_workers`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
        import ray.train
    except ImportError as error:
        raise MissingExtraError(
            f"the engine ray needs {error.name or 'ray'}: pip install 'embedtune[ray]'."
        ) from error
    address = address or os.environ.get("RAY_ADDRESS")
    was_open = ray.is_initialized()
    if not was_open:
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ResourceError(
                f"no Ray cluster at {address or 'this machine'}: {reason.rstrip('.')}. "
                "Start one with `ray start --head`, or check --address."
            ) from error
    try:
        with _set_up_ray_data():
            yield RayEngine(n_workers, n_together=n_together)
    finally:
        if not was_open:
            ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError if nobody listens at an address: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


class RayEngine:
    """Does work on the nodes of the cluster that this process is connected to.

    A worker gets a GPU, or where there are none all processors of a node.

    Parameters
    ----------
    n_workers : int, optional
        By default as many as there are GPUs, or nodes with a processor.
    n_together : int
        Workers that train one model together.

    Raises
    ------
    ConfigError
        If there are fewer GPUs, or processors, than workers asked for.
    """

    is_here = False
    is_remote = True

    def __init__(self, n_workers: int | None = None, *, n_together: int = 1) -> None:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
        n_gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if not cpus:
            raise ConfigError(
                "the Ray cluster has no node with a processor to work on: add one with `ray start`."
            )
        self.n_workers = n_workers or n_gpus or len(cpus)
        self.n_together = n_together
        check_together(n_together, self.n_workers)
        if n_gpus:
            most, self._resources = n_gpus, {"CPU": 1.0, "GPU": 1.0}
        else:
            # As many processors for each as lets all of them find room.
            share = max(
                (k for k in range(1, max(cpus) + 1) if sum(n // k for n in cpus) >= self.n_workers), default=1
            )
            most, self._resources = sum(cpus), {"CPU": float(share)}
        if self.n_workers > most:
            raise ConfigError(
                f"--workers {self.n_workers} is more than the cluster has room for: give {most} or less, or add nodes."
            )

    def map(self, make: Make[T, R], sources: Iterable[S], expand: Callable[[S], Iterable[T]]) -> Iterator[R]:
        """Yield what the actors make of it, in the order that they do.

        What a dead node was doing is done again elsewhere.
        """
        import ray

        packed = [{"packed": _pack(source)} for source in sources]
        if not packed:
            return
        setting = _Setting()
        # Reading takes no processor from the actors, which may have them all; so it needs a limit of its own.
        items = ray.data.from_items(packed, override_num_blocks=len(packed)).map_batches(
            _Expander(expand, setting),  # type: ignore[arg-type]
            batch_size=1,
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(size=min(self.n_workers, len(packed))),
        )
        done = items.map_batches(
            _Worker,
            fn_constructor_args=(_pack(make), setting),
            batch_size=1,
            # one at a time: the first actor to stand would take what the others could do
            compute=ray.data.ActorPoolStrategy(size=self.n_workers, max_tasks_in_flight_per_actor=1),
            num_cpus=self._resources["CPU"],
            num_gpus=self._resources.get("GPU"),
        )
        with _explain_failures():
            for row in done.iter_rows():
                yield _unpack(row["packed"])

    def launch(
        self, function: Callable[[T], R], jobs: Sequence[T], *, folder: Path
    ) -> Iterator[tuple[int, R]]:
        """Yield the jobs' results, as many groups at a time as there is room for."""
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.absolute()))
        try:
            with ThreadPoolExecutor(max(1, self.n_workers // self.n_together)) as pool:
                numbers = {
                    pool.submit(self._train, function, job, scratch / str(number)): number
                    for number, job in enumerate(jobs)
                }
                try:
                    for future in as_completed(numbers):
                        yield numbers[future], future.result()
                finally:
                    pool.shutdown(cancel_futures=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _train(self, function: Callable[[T], R], job: T, folder: Path) -> R:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(
            _train_together,
            train_loop_config={
                "packed": _pack((function, job)),
                "setting": _Setting(),
                "outcome": str(folder / "outcome"),
            },
            scaling_config=ScalingConfig(
                num_workers=self.n_together,
                use_gpu="GPU" in self._resources,
                resources_per_worker=self._resources,
            ),
            run_config=RunConfig(
                name="group",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        with _explain_failures():
            trainer.fit()
        result: R = _unpack((folder / "outcome").read_bytes())
        return result


class _Setting:
    """What a worker takes over from the process that started the work: its folder, its version."""

    def __init__(self) -> None:
        self.folder, self.version = str(Path.cwd()), embedtune.__version__
        self.environment = {
            name: value for name, value in os.environ.items() if name in ("EMBEDTUNE_STORE", "HF_HOME")
        }

    def take_over(self) -> None:
        """Work as that process does.

        Raises
        ------
        ConfigError
            If another version of embedtune is installed here.
        """
        if embedtune.__version__ != self.version:
            raise ConfigError(
                f"a node of the cluster has embedtune {embedtune.__version__}, and this is {self.version}: "
                "install the same one everywhere."
            )
        os.environ.update(self.environment)
        if Path(self.folder).is_dir():
            os.chdir(self.folder)


class _Expander:
    def __init__(self, expand: Callable[[Any], Iterable[Any]], setting: _Setting) -> None:
        self._packed, self._setting = _pack(expand), setting

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        try:
            self._setting.take_over()
            expand = pickle.loads(self._packed)
            for packed in batch["packed"]:
                for item in expand(pickle.loads(packed)):
                    yield {"packed": [_pack(item)]}
        except EmbedtuneError as error:
            yield {"packed": [_pack(error)]}


class _Worker:
    def __init__(self, packed: bytes, setting: _Setting) -> None:
        self._setting, self._packed = setting, packed
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"packed": [_pack(self._do(packed)) for packed in batch["packed"]]}

    def _do(self, packed: bytes) -> Any:
        try:
            item = _unpack(packed)
            if self._work is None:  # not in __init__, where what it raises would be Ray's to tell
                self._setting.take_over()
                self._work = pickle.loads(self._packed)()
            return self._work(item)
        except EmbedtuneError as error:
            return error


def _train_together(config: dict[str, Any]) -> None:
    from ray import train

    config["setting"].take_over()
    function, job = pickle.loads(config["packed"])
    try:
        outcome = function(job)
    except EmbedtuneError as error:
        outcome = error
    if train.get_context().get_world_rank() == 0 or isinstance(outcome, EmbedtuneError):
        Path(config["outcome"]).write_bytes(_pack(outcome))


def _pack(value: Any) -> bytes:
    from ray import cloudpickle

    packed: bytes = cloudpickle.dumps(value)  # type: ignore[no-untyped-call]
    return packed


def _unpack(packed: bytes) -> Any:
    """Return what was packed, or raise it: errors of a user's travel as values, since Ray would wrap or repeat them."""
    value = pickle.loads(packed)
    if isinstance(value, EmbedtuneError):
        raise value
    return value


@contextlib.contextmanager
def _explain_failures() -> Iterator[None]:
    """Say in one line that Ray gave up."""
    import ray

    try:
        yield
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        told = str(error).strip().splitlines()
        # of an actor Ray says last that it never ran, and why in the line before
        reasons = [line for line in told if not line.startswith("The actor never ran")]
        reason = (reasons or [type(error).__name__])[-1]
        raise ResourceError(
            f"the Ray cluster didn't finish the work ({reason.rstrip('.')}): give the same command again, it goes on."
        ) from error


@contextlib.contextmanager
def _set_up_ray_data() -> Iterator[None]:
    """Have each piece of work be a block of its own, and Ray Data print nothing: our own bars count.

    An actor that ends while it starts, as on a node that is busy or dying, is replaced.
    """
    import ray

    context = ray.data.DataContext.get_current()
    settings = {
        "enable_progress_bars": False,
        "target_max_block_size": 1,
        "max_consecutive_actor_init_deaths": MAX_FAILURES,
    }
    before = {name: getattr(context, name) for name in settings}
    levels = {name: logging.getLogger(name).level for name in ("ray.data", "ray.train", "ray.tune")}
    for name, value in settings.items():
        setattr(context, name, value)
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # that less work came than could be done together
            warnings.filterwarnings("ignore", module=r"ray\.")
            yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
