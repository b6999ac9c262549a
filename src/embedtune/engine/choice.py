"""Engines by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from embedtune.engine.base import Engine, LocalEngine
from embedtune.errors import ConfigError, suggest_nearest

ENGINES = ("local", "processes", "ray")


@contextmanager
def open_engine(
    name: str = "local",
    *,
    n_workers: int | None = None,
    n_together: int = 1,
    address: str | None = None,
) -> Iterator[Engine]:
    """Start an engine, and stop what was started when the block ends.

    Parameters
    ----------
    name : {"local", "processes", "ray"}
        This process; several of this machine; a Ray cluster.
    n_workers : int, optional
        By default one for each GPU, without GPUs two processes or one worker for each node of the cluster.
    n_together : int
        Processes that train one model together.
    address : str, optional
        A Ray cluster's. By default ``$RAY_ADDRESS``, else a cluster that runs on this machine, else one is started.

    Raises
    ------
    ConfigError
        If the name is unknown, a number is out of range, or an option belongs to another engine.
    MissingExtraError
        If Ray isn't installed.
    ResourceError
        If the cluster can't be reached.
    """
    if name not in ENGINES:
        raise ConfigError(
            f"no engine '{name}'{suggest_nearest(name, ENGINES)}: choose one of {', '.join(ENGINES)}."
        )
    for option, number in (("--workers", n_workers), ("--train-together", n_together)):
        if number is not None and number < 1:
            raise ConfigError(f"{option} {number} is out of range: give 1 or more.")
    if name != "ray" and address is not None:
        raise ConfigError(f"--address is of a Ray cluster, and the engine is {name}: add --engine ray.")
    if name == "local":
        if (n_workers or 1) > 1 or n_together > 1:
            raise ConfigError("the engine local is one process: for several add --engine processes, or ray.")
        yield LocalEngine()
    elif name == "processes":
        from embedtune.engine.processes import ProcessEngine

        yield ProcessEngine(n_workers, n_together=n_together)
    else:
        from embedtune.engine.ray import open_ray

        with open_ray(address, n_workers=n_workers, n_together=n_together) as engine:
            yield engine
