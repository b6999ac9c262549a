"""From bundles to a listening socket, and to an end that leaves no request without its answer."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from embedtune.errors import ConfigError, MissingExtraError
from embedtune.serve.limits import Limits

try:
    import uvicorn

    from embedtune.serve.app import make_app
    from embedtune.serve.batcher import Batcher
    from embedtune.serve.connections import Connections
    from embedtune.serve.metrics import Metrics
    from embedtune.serve.models import load_models
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in ("uvicorn", "fastapi", "starlette", "prometheus_client"):
        raise
    raise MissingExtraError(
        f"serving needs {error.name}, which isn't installed: pip install 'embedtune[serve]'"
    ) from None

KEY_NAME = "EMBEDTUNE_API_KEY"

#: At the end, answers that are under way may take so many seconds.
GRACE_SECONDS = 30

#: Connections that the system may keep until they are accepted.
BACKLOG = 2048

#: Files that the server itself may have open: libraries, weights, the listener.
_OWN_FILES = 256

#: Turns of the event loop in which a waiting connection is taken, set up and read; it needs five.
_READING_TURNS = 10

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """A uvicorn server that, once told to stop, takes no more texts but answers those it took."""

    def __init__(self, config: uvicorn.Config, batcher: Batcher) -> None:
        super().__init__(config)
        self.batcher = batcher

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal stops at once."""
        self.batcher.close()
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what waits to be taken, then nothing more; read what was sent, and end once it is answered.

        uvicorn alone would reset connections whose request has come and isn't read yet.
        """
        await _let_loop_turn()
        for server in self.servers:
            server.close()
        await _let_loop_turn()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals, and don't raise them again: stopping when told to is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


async def _let_loop_turn() -> None:
    for _ in range(_READING_TURNS):
        await asyncio.sleep(0.01)


def serve(
    bundles: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    device: str = "auto",
    precision: str | None = None,
    announce: Callable[[str], None] = log.info,
) -> None:
    """Serve bundles until a signal says stop.

    Parameters
    ----------
    bundles : sequence of str
        Paths, or ``name=path``.
    host, port : str, int
        Where to listen; port 0 takes a free one.
    limits : Limits, optional
    device, precision : str
        As `load_models` takes them.
    announce : callable
        Told the address once requests are taken.

    Raises
    ------
    ConfigError
        If the address can't be had, the key in the environment is empty, or bundles are named badly.
    BundleError, BackboneError, ResourceError
        If a bundle or its backbone can't be loaded.
    """
    limits, key = limits or Limits(), read_key()
    allow_files(limits.max_connections + BACKLOG + _OWN_FILES)
    with bind_address(host, port) as listener:
        models = load_models(bundles, device=device, precision=precision)
        metrics = Metrics()
        batcher = Batcher(limits, metrics)
        server = make_server(make_app(models, batcher, metrics, key=key), batcher)
        # What is loaded stays: no collection need walk it, neither between answers nor, for a second, at the end.
        gc.collect()
        gc.freeze()
        if key is None and not _is_loopback(host):
            log.warning("%s is reachable from elsewhere and no key is needed: set %s", host, KEY_NAME)
        port = listener.getsockname()[1]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        announce(f"{', '.join(models)} at {address} (Ctrl-C stops)")
        server.run(sockets=[listener])
        batcher.close()
        batcher.join(GRACE_SECONDS)


def make_server(app: uvicorn.config.ASGIApplication, batcher: Batcher) -> Server:  # type: ignore[name-defined]
    """Return a server of the application that leaves logging to it."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=Connections(batcher.limits, batcher.metrics),  # type: ignore[arg-type]
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return Server(config, batcher)


def allow_files(n_files: int) -> None:
    """Raise how many files the process may have open, a connection being one, as far as the system allows."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such number
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n_files if hard == resource.RLIM_INFINITY else min(n_files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def read_key() -> str | None:
    """Return the API key of the environment.

    Raises
    ------
    ConfigError
        If it is set and empty.
    """
    key = os.environ.get(KEY_NAME)
    if key is not None and not key.strip():
        raise ConfigError(f"{KEY_NAME} is set but empty: give it a key, or unset it to serve without one.")
    return key


def bind_address(host: str, port: int) -> socket.socket:
    """Return a socket that holds the address and doesn't listen yet, so that nobody waits while models load.

    Raises
    ------
    ConfigError
        If the address is taken, forbidden or not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{host} port {port} is no address to listen at ({error}): choose another --host."
        ) from None
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken by another program: choose another --port, or stop that program."
            ) from None
        raise ConfigError(
            f"can't listen at {host} port {port} ({error}): choose another --host or --port."
        ) from None
    return listener


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")
