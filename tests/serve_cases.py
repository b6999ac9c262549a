"""Bundles and servers for the tests of `embedtune serve`: real ones, on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from embedtune.classifier import EmbedClassifier
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.lexical import LexicalEncoder
from embedtune.serve.app import make_app
from embedtune.serve.batcher import Batcher
from embedtune.serve.limits import Limits
from embedtune.serve.metrics import Metrics
from embedtune.serve.models import ServedModel
from embedtune.serve.run import Server, bind_address, make_server

SUBJECTS = ("sales", "profit", "orders", "income", "revenue", "demand")
TEXTS = [
    f"{subject} {move} {end}"
    for subject in SUBJECTS
    for move in ("rose", "grew", "fell", "shrank")
    for end in ("in the north", "for the bank this year")
]
#: Every seventh is wrong, so that no probability is certain.
LABELS = [
    "up" if (" rose " in text or " grew " in text) != (n % 7 == 0) else "down" for n, text in enumerate(TEXTS)
]


def fit_bert(folder: Path, **settings: Any) -> EmbedClassifier:
    """Fit two layers of a tiny BERT and TF-IDF, read exactly."""
    encoder = TransformerEncoder(str(folder), layers=(-1, -2), max_length=24, precision="float32", **settings)
    return EmbedClassifier([("bert", encoder), ("lexical", LexicalEncoder())], "logistic").fit(TEXTS, LABELS)


class Running(NamedTuple):
    """A server in a thread of the test's own process."""

    url: str
    batcher: Batcher
    models: dict[str, ServedModel]
    server: Server

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """Send one request, with a connection of its own."""
        given = {"json": body} if body is not None else {}
        return httpx.post(self.url + path, timeout=60, **given, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Ask one question."""
        return httpx.get(self.url + path, timeout=60, **options)


@contextmanager
def run_server(
    classifiers: dict[str, Any], *, limits: Limits | None = None, key: str | None = None
) -> Iterator[Running]:
    """Serve fitted classifiers by name, as `embedtune.serve.run.serve` does, until the block ends."""
    models = {name: ServedModel(name, classifier) for name, classifier in classifiers.items()}
    metrics = Metrics()
    batcher = Batcher(limits or Limits(), metrics)
    server = make_server(make_app(models, batcher, metrics, key=key), batcher)
    with bind_address("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield Running(url, batcher, models, server)
        finally:
            batcher.close()
            server.should_exit = True
            thread.join(30)
            batcher.join(30)
    assert not thread.is_alive()


@contextmanager
def start_command(
    arguments: Sequence[str], *, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """Run ``embedtune serve`` as a user would; yield the process, its address and the file of what it says."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "stderr.txt"
        with said.open("w") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "embedtune", "serve", *arguments, "--port", "0"],
                stdout=sink,
                stderr=sink,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        try:
            pattern = re.compile(r"http://\S+:\d+")
            wait_until(lambda: process.poll() is not None or pattern.search(said.read_text()), seconds=90)
            found = pattern.search(said.read_text())
            assert found, said.read_text()
            wait_until(lambda: _answers(found[0]))
            yield process, found[0], said
        finally:
            process.kill()
            process.wait()


def wait_until(condition: Any, *, seconds: float = 30) -> None:
    """Wait for a condition to hold."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False
