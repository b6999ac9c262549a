"""Which layers of MiniLM to read: what `layers: auto` chooses, and how a ridge head does on several choices.

    python benchmarks/layer_rules.py DATA [--task TASK] [--max-rows N] [--seed S]

Choices are judged by three-fold cross-validation inside tune + train; figures of the test rows are reported, and decide
nothing. docs/results.md has the figures.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from sklearn.metrics import f1_score
from threadpoolctl import threadpool_limits

from embedtune import TransformerEncoder, load_dataset
from embedtune.data.prepare import prepare_splits
from embedtune.heads.crossfit import assign_folds, subsample_rows
from embedtune.heads.layerscan import choose_reading, scan_layers
from embedtune.heads.table import make_head

RULES = {
    "the last layer": (6,),
    "the last five": (6, 5, 4, 3, 2),
    "five ending at layer 5": (5, 4, 3, 2, 1),
    "five ending at layer 4": (4, 3, 2, 1, 0),
    "layer 3 and the last": (6, 3),
}


def score(
    columns: Any, y: Any, groups: Any, rows: tuple[Any, Any], *, n_layers: int, seed: int
) -> tuple[float, float]:
    """Return macro-F1 of a ridge head inside the training rows, cross-validated, and on the test rows."""
    training, test = rows
    widths = (columns.shape[1] // n_layers,) * n_layers
    predicted = np.empty_like(y[training])

    def fit(rows: Any) -> Any:
        return make_head("ridge", widths=widths, random_state=seed).fit(
            columns[rows], y[rows], groups=groups[rows]
        )

    folds = assign_folds(y[training], groups=groups[training], n_folds=3, random_state=100 + seed)
    for seen, unseen in folds:
        predicted[unseen] = fit(training[seen]).predict(columns[training[unseen]])
    inside = f1_score(y[training], predicted, average="macro")
    return inside, f1_score(y[test], fit(training).predict(columns[test]), average="macro")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--task")
    parser.add_argument("--max-rows", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    splits, _ = prepare_splits(
        load_dataset(given.data, task=given.task), max_rows=given.max_rows, seed=given.seed
    )
    y, groups = np.unique(splits.labels, return_inverse=True)[1], np.asarray(splits.groups)
    encoder = TransformerEncoder("all-MiniLM-L6-v2", layers="all")
    X = encoder.transform(splits.texts).reshape(len(y), 7, -1)
    train = splits.rows("train")
    pilot = train[subsample_rows(y[train], groups=groups[train], n_rows=2000, random_state=given.seed)]
    with threadpool_limits(limits=1):
        for n in (1, 5):
            probes = scan_layers(
                X[pilot].reshape(len(pilot), -1),
                y[pilot],
                widths=encoder.widths_,
                n_together=n,
                groups=groups[pilot],
                random_state=given.seed,
            )
            curve = " ".join(f"{probe.score:.3f}" for probe in probes)
            _, layer = choose_reading({"mean": probes})
            sys.stdout.write(f"probe of {n}: layer {layer} of {curve}\n")
        for name, layers in RULES.items():
            columns = np.ascontiguousarray(X[:, layers].reshape(len(y), -1))
            rows = (splits.rows("tune", "train"), splits.rows("test"))
            inside, test = score(columns, y, groups, rows, n_layers=len(layers), seed=given.seed)
            sys.stdout.write(f"{name}: {inside:.3f} inside the training rows, {test:.3f} on test\n")


if __name__ == "__main__":
    main()
