"""Automatic layers and pooling: all of a backbone's, read and probed on some training rows, and the choice recorded.

The choice is made inside the train rows, which every arm's head is trained on, so no arm is told more than another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from embedtune.assemble import build_encoder
from embedtune.config import TransformerView
from embedtune.data.splits import Splits
from embedtune.embed.checkpoints import name_model
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.spread import spread_texts
from embedtune.evaluate.cost import Cost, measure
from embedtune.heads.crossfit import subsample_rows
from embedtune.heads.layerscan import Probe, choose_reading, scan_layers
from embedtune.plan import (
    N_AUTOMATIC,
    TaskRun,
    embed_step,
    find_scan,
    list_scans,
    list_window,
    scan_key,
    scan_step,
)

#: Only so many train rows are run through all layers.
N_PILOT = 2000


def scan_views(run: TaskRun) -> None:
    """Choose the layers of every view that leaves them open."""
    for view in list_scans(run):

        def compute(view: TransformerView = view) -> dict[str, Any]:
            splits = run.splits
            rows = _choose_pilot(run, splits)
            encoder = build_encoder(run, view, adapter=None)
            texts = [splits.texts[i] for i in rows]
            with measure() as cost:
                stored = spread_texts(encoder, texts, run.engine)
                probes = _probe(run, splits, encoder, rows)
            pooling, layer = choose_reading(probes)
            n_texts = len(set(texts))
            return {
                "layers": list_window(layer),
                "pooling": pooling,
                "n_layers": len(probes[pooling]) - 1,
                "scores": {name: [probe.score for probe in found] for name, found in probes.items()},
                "n_rows": len(rows),
                "n_texts": n_texts,
                "seconds": stored.seconds if stored.n_computed == n_texts else None,
                **(cost if run.engine.is_here else Cost()).as_record(),
            }

        run.folder.run_step(scan_step(view), scan_key(run, view), compute)


def draw_curves(run: TaskRun, scan: TransformerView, *, adapter: Path | None) -> list[dict[str, Any]]:
    """Return what probes.json says of a scanned view: the recorded scan, or the same of a fine-tuned backbone."""
    found = run.record(scan_step(scan))["result"]
    shared: dict[str, Any] = {
        "view": name_model(scan.model),
        "adapter": "frozen",
        "layers": list(range(found["n_layers"] + 1)),
        "n_together": N_AUTOMATIC,
        "n_rows": found["n_rows"],
    }
    if adapter is None:
        return [
            {**shared, "pooling": pooling, "scores": scores}
            | ({"chosen": found["layers"]} if pooling == found["pooling"] else {})
            for pooling, scores in found["scores"].items()
        ]
    splits = run.splits
    read = scan.model_copy(update={"layers": "all", "pooling": found["pooling"]})
    encoder = build_encoder(run, read, adapter=adapter)
    (probes,) = _probe(run, splits, encoder, _choose_pilot(run, splits)).values()
    scores = [probe.score for probe in probes]
    return [{**shared, "adapter": "tuned", "pooling": found["pooling"], "scores": scores}]


def read_embed_cost(run: TaskRun, view: TransformerView) -> dict[str, Any]:
    """Return what extraction with a frozen backbone recorded, its scan's time and memory included."""
    record: dict[str, Any] = run.record(embed_step(view))["result"]
    found = find_scan(run, view)
    if found is None:
        return record
    scan = run.record(scan_step(found))["result"]
    seconds = [record["seconds"], scan["seconds"]]
    peaks = [record["peak_memory_bytes"], scan["peak_memory_bytes"]]
    joules = [record["joules"], scan["joules"]]
    return {
        **record,
        "joules": None if None in joules else sum(joules),
        "seconds": None if None in seconds else sum(seconds),
        "peak_memory_bytes": None if None in peaks else max(peaks),
    }


def count_scanned(run: TaskRun, view: TransformerView) -> int:
    """Return how many distinct texts a scan has read before the view itself is."""
    scan = find_scan(run, view)
    return 0 if scan is None else int(run.record(scan_step(scan))["result"]["n_texts"])


def _choose_pilot(run: TaskRun, splits: Splits) -> NDArray[np.int64]:
    rows = splits.rows("train")
    y, groups = splits.codes[rows], np.asarray(splits.groups)[rows]
    chosen: NDArray[np.int64] = rows[
        subsample_rows(y, groups=groups, n_rows=N_PILOT, random_state=run.experiment.seeds[0])
    ]
    return chosen


def _probe(
    run: TaskRun, splits: Splits, encoder: TransformerEncoder, rows: NDArray[np.int64]
) -> dict[str, list[Probe]]:
    """Probe each layer under each pooling that the encoder reads."""
    X = encoder.transform([splits.texts[i] for i in rows])
    poolings = [encoder.pooling] if isinstance(encoder.pooling, str) else list(encoder.pooling)
    blocks = np.split(X, len(poolings), axis=1)
    # SciPy's threads mostly wait for each other here: on a busy machine two took fifteen times as long as one
    with threadpool_limits(limits=1):
        return {
            pooling: scan_layers(
                block,
                splits.codes[rows],
                widths=encoder.widths_[: len(encoder.layers_)],
                n_together=N_AUTOMATIC,
                groups=np.asarray(splits.groups)[rows],
                random_state=run.experiment.seeds[0],
            )
            for pooling, block in zip(poolings, blocks, strict=True)
        }
