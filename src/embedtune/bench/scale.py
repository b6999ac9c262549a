"""Time and memory of `embedtune predict` over JSON lines: is the one linear, and the other flat?"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from embedtune.bench.machine import describe_machine
from embedtune.bench.suite import Options, Report, Row
from embedtune.bench.texts import choose_texts, load_data
from embedtune.classifier import EmbedClassifier
from embedtune.embed.encoder import WINDOW_TEXTS, TransformerEncoder
from embedtune.errors import ResourceError
from embedtune.progress import track

#: Rows per file by part of the suite.
SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}
SMOKE_SIZES = {"10k": 200, "100k": 400, "1m": 800}

#: What a row's time is compared with.
REFERENCE = "100k"

#: Runs the command and prints what it took: a process's own children are counted with it, this suite's others not.
_WATCH = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "code": done.returncode, "printed": done.stderr}))
"""


class Cost(NamedTuple):
    """What one command took: wall time, and the highest resident memory of any of its processes."""

    seconds: float
    peak_bytes: int


def run(options: Options) -> Report:
    """Label files of growing size, each in a new process; the time of a single row is taken off as start-up."""
    chosen = SMOKE_SIZES if options.smoke else SIZES
    sizes = {name: n for name, n in chosen.items() if not options.only or name in options.only}
    with tempfile.TemporaryDirectory(prefix="embedtune-scale-") as place:
        folder = Path(place)
        bundle = _make_bundle(folder / "bundle", options)
        sentences = choose_texts(n_each=0 if options.smoke else 1500)
        found: dict[str, Cost] = {}
        with track("scale", len(sizes) + 1, unit="files") as bar:
            start_up = _label(bundle, folder, sentences, 1)
            bar.advance()
            for name, n_rows in sizes.items():
                found[name] = _label(bundle, folder, sentences, n_rows)
                bar.advance()
    return Report(
        _make_rows(found, sizes, start_up),
        describe_machine(),
        {
            "model": options.model,
            "window_texts": WINDOW_TEXTS,
            "start_up": start_up._asdict(),
            "files": {name: {"rows": sizes[name], **cost._asdict()} for name, cost in found.items()},
        },
    )


def write_texts(path: Path, sentences: Sequence[str], n_rows: int, *, seed: int = 0) -> None:
    """Write JSON lines whose texts are the beginning, middle and end of three sentences: nearly all distinct."""
    draw = random.Random(seed)
    words = [sentence.split() for sentence in sentences]
    with path.open("w", encoding="utf-8") as file:
        for number in range(n_rows):
            first, second, third = draw.choices(words, k=3)
            parts = [
                *first[: len(first) // 3],
                *second[len(second) // 3 : len(second) * 2 // 3],
                *third[len(third) * 2 // 3 :],
            ]
            file.write(json.dumps({"id": number, "text": " ".join(parts)}, ensure_ascii=False) + "\n")


def _make_bundle(path: Path, options: Options) -> Path:
    data = load_data("sentiment")
    texts, labels = data.texts[:200], data.labels[:200]
    encoder = TransformerEncoder(options.model)
    EmbedClassifier([("transformer", encoder)], "logistic").fit(texts, labels).save(path)
    return path


def _label(bundle: Path, folder: Path, sentences: Sequence[str], n_rows: int) -> Cost:
    source, target = folder / "texts.jsonl", folder / "labelled.jsonl"
    write_texts(source, sentences, n_rows)
    target.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "embedtune",
        "predict",
        str(bundle),
        str(source),
        "-o",
        str(target),
        "-q",
    ]
    watched = subprocess.run([sys.executable, "-c", _WATCH, *command], capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(watched.stdout)
    if answer["code"]:
        raise ResourceError(f"labelling {n_rows:,} rows failed: {answer['printed'].strip().splitlines()[-1]}")
    with target.open(encoding="utf-8") as file:
        n_labelled = sum('"prediction":' in line for line in file)
    if n_labelled != n_rows:
        raise ResourceError(f"labelling {n_rows:,} rows wrote {n_labelled:,}: the output is incomplete.")
    return Cost(answer["seconds"], answer["peak_bytes"])


def _make_rows(found: dict[str, Cost], sizes: dict[str, int], start_up: Cost) -> list[Row]:
    rows = []
    each = {name: (cost.seconds - start_up.seconds) / sizes[name] for name, cost in found.items()}
    for name, cost in found.items():
        what = f"{sizes[name]:,} rows"
        note = f"{1 / each[name]:,.0f} rows/s, {cost.seconds:.1f} s with {start_up.seconds:.1f} s of start-up"
        if name != REFERENCE and REFERENCE in each:
            ratio = each[name] / each[REFERENCE]
            against = f"a row's time at {sizes[REFERENCE]:,} rows"
            rows.append(Row(what, against, round(ratio, 3), aim=1.1, at_most=True, note=note))
        else:
            rows.append(Row(what, "a new process", round(cost.seconds, 2), unit="s", note=note))
        peak = round(cost.peak_bytes / 2**20)
        rows.append(
            Row(f"{what}: peak memory", "all of the process", peak, unit="MiB", aim=2048, at_most=True)
        )
    if found:
        first, last = next(iter(found.values())), list(found.values())[-1]
        growth = round(last.peak_bytes / first.peak_bytes, 3)
        rows.append(Row("peak memory, largest file", "smallest file", growth))
    return rows
