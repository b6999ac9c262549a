"""Does `embedtune predict` keep its memory however many rows there are, and its output however often it is killed?

    python benchmarks/predict_scale.py measure --rows 1000000 --formats csv parquet --views lexical static
    python benchmarks/predict_scale.py kill --rows 200000 --kills 8

Both label files that are made here: texts put together from the bundled sample's sentences, nearly all distinct, beside
a number and a short string. `measure` reports seconds, rows a second and the highest resident memory of a process that
does nothing else; `kill` ends a process with -9 at random moments, repeats the command until it finishes, and compares
the output, byte for byte, with an undisturbed one's. Exit code 1 if memory or output is not what it should be. `-o`
adds the figures to a file of JSON lines.
"""

from __future__ import annotations

import argparse
import csv
import filecmp
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedtune import EmbedClassifier, LexicalEncoder, StaticEncoder, TransformerEncoder
from embedtune.bench.machine import describe_machine
from embedtune.bench.texts import choose_texts, load_data

MOST_BYTES = 2 << 30
VIEWS = {"lexical": LexicalEncoder, "static": StaticEncoder, "minilm": TransformerEncoder}
_WATCH = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.run(sys.argv[1:]).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"seconds": time.perf_counter() - started, "peak_bytes": peak, "code": code}))
"""


def make_rows(n_rows: int, seed: int = 0) -> Iterator[tuple[int, str, str]]:
    """Yield an id, a text of the beginning, middle and end of three sentences, and a source."""
    draw = random.Random(seed)
    words = [sentence.split() for sentence in choose_texts(n_each=0)]
    for number in range(n_rows):
        first, second, third = draw.choices(words, k=3)
        cut = [len(part) // 3 for part in (first, second, third)]
        text = [*first[: cut[0]], *second[cut[1] : 2 * cut[1]], *third[2 * cut[2] :]]
        yield number, " ".join(text), f"source {number % 7}"


def write_rows(path: Path, n_rows: int) -> None:
    names = ("id", "text", "source")
    rows = make_rows(n_rows)
    if path.suffix == ".parquet":
        schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("source", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            while block := list(islice(rows, 100_000)):
                writer.write_table(
                    pa.table(dict(zip(names, zip(*block, strict=True), strict=True)), schema=schema)
                )
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
        else:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([names, *rows])


def write_bundle(path: Path, view: str) -> Path:
    data = load_data("sentiment")
    EmbedClassifier([(view, VIEWS[view]())], "logistic").fit(data.texts[:400], data.labels[:400]).save(path)
    return path


def make_command(bundle: Path, source: Path, output: Path) -> list[str]:
    words = [
        "predict",
        str(bundle),
        str(source),
        "-o",
        str(output),
        "--coverage",
        "0.9",
        "--abstain-cost",
        "0.25",
    ]
    return [sys.executable, "-m", "embedtune", *words, "-q"]


def measure(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    for form in options.formats:
        source = folder / f"rows.{form}"
        write_rows(source, options.rows)
        for view in options.views:
            output = folder / f"{view}.{form}"
            command = make_command(write_bundle(folder / view, view), source, output)
            watched = subprocess.run([sys.executable, "-c", _WATCH, *command], capture_output=True, text=True)
            found = json.loads(watched.stdout)
            if found["code"]:
                raise SystemExit(watched.stderr)
            yield {
                "what": f"{form}, {view}",
                "rows": options.rows,
                "seconds": round(found["seconds"], 1),
                "rows_per_second": round(options.rows / found["seconds"]),
                "peak_mib": round(found["peak_bytes"] / 2**20),
                "input_mib": round(source.stat().st_size / 2**20),
                "right": found["peak_bytes"] < MOST_BYTES,
            }
            output.unlink()
        source.unlink()


def kill(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    moments = random.Random(options.seed)
    for form in options.formats:
        source = folder / f"rows.{form}"
        write_rows(source, options.rows)
        for view in options.views:
            bundle = write_bundle(folder / view, view)
            whole, killed = folder / f"whole.{form}", folder / f"killed.{form}"
            started = time.perf_counter()
            subprocess.run(make_command(bundle, source, whole), check=True)
            seconds = time.perf_counter() - started
            n_killed = 0
            for _ in range(options.kills):
                process = subprocess.Popen(make_command(bundle, source, killed))
                try:
                    process.wait(moments.uniform(*options.moments) * seconds)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    n_killed += 1
                if killed.exists():
                    break
            if not killed.exists():
                subprocess.run(make_command(bundle, source, killed), check=True)
            equal = filecmp.cmp(whole, killed, shallow=False)
            yield {
                "what": f"{form}, {view}: killed and repeated",
                "rows": options.rows,
                "undisturbed_seconds": round(seconds, 1),
                "kills": n_killed,
                "right": equal and n_killed > 0 and not (folder / f"killed.{form}.partial").exists(),
            }
            whole.unlink()
            killed.unlink()


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measure", "kill"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", default=["csv", "parquet"])
    parser.add_argument("--views", nargs="+", default=["lexical", "static"], choices=list(VIEWS))
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument(
        "--moments",
        type=float,
        nargs=2,
        default=(0.1, 0.5),
        help="of an undisturbed call's time, when it is killed",
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--work", type=Path, help="where files go for as long as it takes")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(words)
    right = True
    with tempfile.TemporaryDirectory(prefix="embedtune-scale-", dir=options.work) as folder:
        for figures in (measure if options.what == "measure" else kill)(options, Path(folder)):
            sys.stdout.write(json.dumps(figures) + "\n")
            sys.stdout.flush()
            right = right and figures["right"]
            if options.output:
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(figures | {"machine": describe_machine()}) + "\n")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
