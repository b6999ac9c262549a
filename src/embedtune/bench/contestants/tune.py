"""fine_tune on the job's texts: each run another seed, the trunk computed anew or kept from before."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Train on a few rows once; where the trunk is to be there already, compute it."""
    from embedtune.finetune.trunk import release_trunks

    seeds = itertools.count()
    _tune(job, n_rows=len(job["texts"]) if job["keeps_trunk"] else 64, seed=0, epochs=1)

    def run() -> dict[str, Any]:
        if not job["keeps_trunk"]:
            release_trunks()
        return _tune(job, n_rows=len(job["texts"]), seed=next(seeds))

    return run


def _tune(job: dict[str, Any], *, n_rows: int, seed: int, **changes: Any) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    from embedtune import TransformerEncoder
    from embedtune.finetune.train import fine_tune

    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        found = fine_tune(
            job["model"],
            job["texts"][:n_rows],
            labels=job["labels"][:n_rows],
            label_names=[str(number) for number in range(job["n_labels"])],
            output_dir=place,
            max_length=job["max_length"],
            seed=seed,
            device="cpu",
            **{**job["settings"], **changes},
        )
        seconds = time.perf_counter() - started
        encoder = TransformerEncoder(
            job["model"], adapter=Path(place), max_length=job["max_length"], device="cpu", backend="torch"
        )
        assert found.head_weight is not None
        assert found.head_bias is not None
        scores = encoder.transform(job["test_texts"]) @ found.head_weight.T + found.head_bias
    score = f1_score(job["test_labels"], scores.argmax(axis=1), average="macro")
    return {
        "training_seconds": seconds,
        "trunk_seconds": found.trunk_seconds,
        "macro_f1": float(score),
        "precision": found.precision,
    }
