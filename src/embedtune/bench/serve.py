"""The server beside the library it serves, and beside a plain server of sentence-transformers."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from embedtune.bench.contest import Contestant, Times, hold
from embedtune.bench.machine import describe_machine
from embedtune.bench.suite import Options, Report, Row
from embedtune.classifier import EmbedClassifier
from embedtune.data.sources import load_dataset
from embedtune.embed.checkpoints import resolve_model
from embedtune.embed.encoder import TransformerEncoder

_SCRIPTS = Path(__file__).parent / "contestants"
_N_SMOKE_ROWS = 200
#: Texts that are sent, of those trained on.
_N_TEXTS = 640
#: Texts per request and requests at once: many texts, and many clients with one each.
_MANY, _ONE = (32, 8), (1, 64)
#: Share of the most single requests per second at which the spread of their times is measured.
_LOAD = 0.7


def run(options: Options) -> Report:
    """Train a bundle on the bundled sample, serve it, and ask it from another process, on a core of its own."""
    machine = describe_machine()
    rounds = 1 if options.smoke else options.rounds
    with tempfile.TemporaryDirectory(prefix="embedtune-bench-") as place:
        rows, bundle = _train(Path(place), smoke=options.smoke)
        jobs = _Jobs(bundle, list(dict.fromkeys(rows["texts"]))[:_N_TEXTS], options)
        contestants = [
            Contestant("library", _SCRIPTS / "predict.py", {**jobs.shared, "bundle": str(bundle)}),
            jobs.serve("server, many texts", *_MANY),
            jobs.serve("server, single texts", *_ONE),
            jobs.serve("server, single texts, float32", *_ONE, "--precision", "float32"),
        ]
        if options.peers is not None:
            contestants.append(
                jobs.serve_plainly(options.peers / "serve_plain.py", Path(place) / "rows.json")
            )
        found = hold(contestants, rounds=rounds)
        rate = _LOAD * jobs.n_texts / found["server, single texts"].median
        calm = hold([jobs.serve("server at 70 % load", *_ONE, rate=rate)], rounds=rounds)
    found |= calm
    details = {name: times.describe() | {"facts": times.facts} for name, times in found.items()}
    return Report(_judge(found, jobs.n_texts, rate), machine, details)


class _Jobs:
    """What contestants are told: the texts, and which cores are the server's and which the client's."""

    def __init__(self, bundle: Path, texts: list[str], options: Options) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.bundle, self.options, self.n_texts = bundle, options, len(texts)
        self.shared: dict[str, Any] = {"texts": texts, "cores": cores[1:] or cores, "client_cores": cores[:1]}

    def serve(
        self, name: str, texts_per_request: int, connections: int, *arguments: str, rate: float | None = None
    ) -> Contestant:
        command = [
            sys.executable,
            "-m",
            "embedtune",
            "serve",
            str(self.bundle),
            "--port",
            "{port}",
            "-q",
            *arguments,
        ]
        job = {"command": command, "path": "/v1/predict", "field": "input", "ready": "/ready", "rate": rate}
        return self._load(name, job, texts_per_request, connections)

    def serve_plainly(self, script: Path, rows: Path) -> Contestant:
        model = str(resolve_model("all-MiniLM-L6-v2"))
        command = [self.options.peers_python, str(script), model, str(rows), "{port}"]
        job = {"command": command, "path": "/predict", "field": "texts", "ready": "/health", "rate": None}
        return self._load("plain server, single texts", job, *_ONE)

    def _load(self, name: str, job: dict[str, Any], texts_per_request: int, connections: int) -> Contestant:
        job |= {**self.shared, "texts_per_request": texts_per_request, "connections": connections}
        return Contestant(name, _SCRIPTS / "load.py", job)


def _train(folder: Path, *, smoke: bool) -> tuple[dict[str, list[str]], Path]:
    data = load_dataset("sentiment")
    n_rows = _N_SMOKE_ROWS if smoke else len(data.texts)
    rows = {"texts": list(data.texts[:n_rows]), "labels": [str(label) for label in data.labels[:n_rows]]}
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    views = [TransformerEncoder()] if smoke else None
    classifier = EmbedClassifier(views, "logistic" if smoke else "auto").fit(rows["texts"], rows["labels"])
    return rows, classifier.save(folder / "sentiment")


def _judge(found: dict[str, Times], n_texts: int, rate: float) -> list[Row]:
    library, many, single = found["library"], found["server, many texts"], found["server, single texts"]
    exact, calm = found["server, single texts, float32"], found["server at 70 % load"]
    spreads = sorted(facts["p99_ms"] / facts["p50_ms"] for facts in calm.facts)
    median, low, high = (round(part, 3) for part in (statistics.median(spreads), spreads[0], spreads[-1]))
    last = calm.facts[-1]
    plain = found.get("plain server, single texts")
    against = "a plain FastAPI server of sentence-transformers"

    def note(ours: Times) -> str:
        theirs = "; the plain server needs --peers" if plain is None else f" / {n_texts / plain.median:.0f}"
        return f"{n_texts / ours.median:.0f}{theirs} requests per second, one text each, {_ONE[1]} at once"

    def compare(what: str, ours: Times, aim: float | None) -> Row:
        if plain is None:
            return Row(what, against, None, aim=aim, note=note(ours))
        return Row.of(what, against, plain.over(ours), aim=aim, note=note(ours))

    speeds = f"{n_texts / many.median:.0f} / {n_texts / library.median:.0f} texts per second"
    return [
        Row.of(
            "server, texts per second", "the library on all texts", library.over(many), aim=0.8, note=speeds
        ),
        Row(
            "server at 70 % load, 99th percentile",
            "median",
            median,
            low,
            high,
            aim=3,
            at_most=True,
            note=f"{last['p99_ms']} / {last['p50_ms']} ms at {rate:.0f} requests per second, random gaps",
        ),
        compare("server, requests per second", single, 3),
        compare("server in float32, requests per second", exact, None),
    ]
