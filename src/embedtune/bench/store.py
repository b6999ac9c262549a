"""What the store saves a second run, and what it costs the first."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from embedtune.bench.contest import Contestant, Times, hold
from embedtune.bench.machine import describe_machine
from embedtune.bench.suite import Options, Report, Row
from embedtune.bench.texts import choose_texts, load_data
from embedtune.errors import ResourceError
from embedtune.progress import track

_EXTRACT = Path(__file__).with_name("contestants") / "extract.py"

#: Runs the stages up to embed and prints what the embed stage alone took.
_STAGE = """
import json, sys, time
from pathlib import Path
from embedtune.cli.runs import read_experiment
from embedtune.pipeline import run_stages
from embedtune.plan import TaskRun
from embedtune.runfolder import RunFolder
words, source, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
experiment = read_experiment(words, source)
(task,) = experiment.tasks
run = TaskRun(experiment, task, RunFolder(out, identity=task), "bench")
run_stages(run, first="prepare", last="prepare")
started = time.perf_counter()
run_stages(run, first="embed", last="embed")
print(json.dumps({"seconds": time.perf_counter() - started}))
"""


def run(options: Options) -> Report:
    """Run the embed stage with an empty store and a full one, and the encoder with and without a store."""
    wanted = options.only or ("stage", "extract")
    rows: list[Row] = []
    details: dict[str, Any] = {"model": options.model, "layers": _choose_layers(options)}
    with tempfile.TemporaryDirectory(prefix="embedtune-store-") as place:
        if "stage" in wanted:
            rows += _time_stage(options, Path(place), details)
        if "extract" in wanted:
            rows += _time_extraction(options, place, details)
    return Report(rows, describe_machine(), details)


def _time_stage(options: Options, place: Path, details: dict[str, Any]) -> list[Row]:
    """Repeat: a new store, a run up to its embed stage, and the same in another run folder."""
    names = ("sentiment",) if options.smoke else ("phrasebank", "gold_sentiment")
    rows = [row for data in map(load_data, names) for row in zip(data.texts, data.labels, strict=True)]
    source = place / "rows.csv"
    _write_rows(source, *zip(*rows, strict=True))
    view = {"kind": "transformer", "model": options.model, "layers": _choose_layers(options)}
    first, second, whole_first, whole_second = Times(), Times(), Times(), Times()
    with track("embed stage", 2 * options.rounds, unit="runs") as bar:
        for turn in range(options.rounds):
            words = [
                f"embed.store={place / f'store-{turn}'}",
                f"embed.views={json.dumps({'transformer': view})}",
            ]
            for name, stage, whole in (("a", first, whole_first), ("b", second, whole_second)):
                started = time.perf_counter()
                stage.seconds.append(_run_stage(words, source, place / f"run-{turn}-{name}"))
                whole.seconds.append(time.perf_counter() - started)
                bar.advance()
    details["stage"] = {
        "texts": len(dict(rows)),
        "first_seconds": first.seconds,
        "second_seconds": second.seconds,
        "whole_first_seconds": whole_first.seconds,
        "whole_second_seconds": whole_second.seconds,
    }
    note = (
        f"{len(dict(rows))} texts, {first.median:.2f} s and {second.median:.3f} s, loading the model included"
    )
    return [
        Row.of("embed stage, everything stored", "first run's", first.over(second), aim=50, note=note),
        Row.of(
            "the whole command up to embed",
            "first run's",
            whole_first.over(whole_second),
            note=f"{whole_first.median:.1f} s and {whole_second.median:.1f} s, imports and prepare included",
        ),
    ]


def _time_extraction(options: Options, place: str, details: dict[str, Any]) -> list[Row]:
    texts = choose_texts(n_each=0 if options.smoke else 1500)
    jobs = {
        name: {
            "model": options.model,
            "layers": _choose_layers(options),
            "texts": texts,
            "store": name,
            "folder": place,
        }
        for name in ("none", "new", "full")
    }
    found = hold([Contestant(name, _EXTRACT, job) for name, job in jobs.items()], rounds=options.rounds)
    none, new, full = found["none"], found["new"], found["full"]
    exact, kept, read = (times.arrays["vectors"] for times in (none, new, full))
    # A value can differ from the unstored one by its rounding to half precision and by nothing else.
    if not (np.array_equal(kept, exact.astype(np.float16).astype(np.float32)) and np.array_equal(kept, read)):
        raise ResourceError(
            "what the store returned isn't what was put in: run `embedtune store verify` and report it."
        )
    details["extract"] = {name: times.describe() for name, times in found.items()}
    details["extract"]["texts"] = len(texts)
    ratio = new.over(none)
    median, low, high = (round(part, 3) for part in ratio)
    return [
        Row(
            "extraction into a new store",
            "without a store",
            median,
            low,
            high,
            aim=1.05,
            at_most=True,
            note=f"{len(texts)} texts, {_choose_layers(options)} layers; the same values, rounded to half precision",
        ),
        Row.of(
            "transform, everything stored",
            "without a store, model loaded",
            none.over(full),
            note=f"{full.median * 1000:.0f} ms",
        ),
    ]


def _choose_layers(options: Options) -> str:
    return "last2" if options.smoke else "last5"


def _write_rows(path: Path, texts: tuple[str, ...], labels: tuple[str, ...]) -> None:
    import pandas as pd

    pd.DataFrame({"text": texts, "label": labels}).to_csv(path, index=False)


def _run_stage(words: list[str], source: Path, out: Path) -> float:
    arguments = [json.dumps(words), json.dumps({"source": str(source)}), str(out)]
    done = subprocess.run([sys.executable, "-c", _STAGE, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise ResourceError(f"the embed stage failed: {done.stderr.strip().splitlines()[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])
