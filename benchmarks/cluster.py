"""What a cluster adds and what it can't take off: the figures that docs/scale.md plans with.

    python benchmarks/cluster.py label --rows 20000      MiniLM's labels: one process, and Ray's workers, a core each
    python benchmarks/cluster.py files --rows 1000000    reading a table, and putting parts together
    python benchmarks/cluster.py store --rows 1000000    a store's size and time by its number of rows

`label` starts a Ray cluster of nodes on this machine, as many as it has cores, each with one. `-o` adds the figures to
a file of JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from predict_scale import write_bundle, write_rows

from embedtune.bench.machine import describe_machine
from embedtune.data.places import find_place
from embedtune.data.stream import open_table
from embedtune.embed.encoder import WINDOW_TEXTS
from embedtune.embed.store import EmbeddingStore, StoreKey, column_name, hash_text
from embedtune.engine import open_engine
from embedtune.predict import predict_file
from embedtune.predict.output import Tables, write_tables

#: Vectors are written in so many rows at a time.
_APPEND_ROWS = 50_000


def label(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Label the same file by one process, and by Ray's workers."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    bundle, source = write_bundle(folder / "bundle", "minilm"), folder / "rows.csv"
    write_rows(source, options.rows)
    cores = sorted(os.sched_getaffinity(0))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for core in cores:
        os.sched_setaffinity(0, {core})  # what is started now has this core alone, its workers too
        cluster.add_node(num_cpus=1)
    single = None
    for name, n_workers in [("local", 1), *(("ray", n) for n in range(1, len(cores) + 1))]:
        os.sched_setaffinity(0, cores[:1] if name == "local" else cores)
        address = cluster.address if name == "ray" else None
        with open_engine(name, n_workers=n_workers, address=address) as engine:
            seconds = []
            for n_rows in (1, options.rows):  # one row: what starting takes
                write_rows(source, n_rows)
                started = time.perf_counter()
                predict_file(bundle, source, folder / f"{name}{n_workers}-{n_rows}.csv", engine=engine)
                seconds.append(time.perf_counter() - started)
        rate = options.rows / (seconds[1] - seconds[0])
        single = single or rate
        yield {
            "what": f"label, {name}, {n_workers} workers",
            "rows": options.rows,
            "seconds": round(seconds[1], 1),
            "rows_per_second": round(rate),
            "to_one_process": round(rate / single, 2),
            "start_up_seconds": round(seconds[0], 1),
        }
    cluster.shutdown()


def files(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Read tables to the end, and write them out as labelled ones are."""
    for suffix in ("csv", "parquet"):
        source = folder / f"rows.{suffix}"
        write_rows(source, options.rows)
        started = time.perf_counter()
        table = open_table(find_place(source), piece_rows=WINDOW_TEXTS)
        pieces = [piece.table for piece in table.read()]
        read = time.perf_counter() - started
        tables = Tables(
            lambda found=pieces: (one.schema for one in found), lambda found=pieces: iter(found), []
        )
        started = time.perf_counter()
        with (folder / f"out.{suffix}").open("wb") as file:
            write_tables(file, tables, suffix=f".{suffix}", raw_cells=False)
        written = time.perf_counter() - started
        for what, seconds in (("read", read), ("put together", written)):
            yield {
                "what": f"{what}, {suffix}",
                "rows": options.rows,
                "seconds": round(seconds, 1),
                "rows_per_second": round(options.rows / seconds),
            }


def store(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Fill a store with vectors of MiniLM's last layer, and ask it what it lacks."""
    key = StoreKey("random", "0", None, "0", 128, "", "float32")
    place, column = EmbeddingStore(folder / "store"), column_name(6, "mean")
    table = place.table(key)
    draw = np.random.default_rng(0)
    appended = 0.0
    for start in range(0, options.rows, _APPEND_ROWS):
        hashes = [hash_text(f"text {i}") for i in range(start, start + _APPEND_ROWS)]
        vectors = draw.standard_normal((_APPEND_ROWS, 384), dtype=np.float32)
        started = time.perf_counter()
        table.append(hashes, {column: vectors})
        appended = time.perf_counter() - started
        n_rows = start + _APPEND_ROWS
        if n_rows in (options.rows // 10, options.rows):
            started = time.perf_counter()
            table.find_missing([hash_text(f"text {i}") for i in range(WINDOW_TEXTS)], [column])
            asked = time.perf_counter() - started
            yield {
                "what": "store, one layer of MiniLM",
                "rows": n_rows,
                "append_rows_per_second": round(_APPEND_ROWS / appended),
                "find_missing_seconds": round(asked, 3),
                "bytes_per_row": round(place.list()[0].n_bytes / n_rows),
            }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("label", "files", "store"))
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--work", type=Path, help="where files go for as long as it takes")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(words)
    measure = {"label": label, "files": files, "store": store}[options.what]
    with tempfile.TemporaryDirectory(prefix="embedtune-cluster-", dir=options.work) as folder:
        for figures in measure(options, Path(folder)):
            sys.stdout.write(json.dumps(figures) + "\n")
            sys.stdout.flush()
            if options.output:
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(figures | {"machine": describe_machine()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
