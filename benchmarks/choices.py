"""What was tried on training rows and left out: whitened blocks, weights for macro-F1, further poolings.

    python benchmarks/choices.py SOURCE ... [--max-rows 5000]

A source is a file or a built-in task. Everything is judged out of fold inside tune + train of seed 0; test rows aren't
looked at.
docs/quality.md has the figures.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold

from embedtune import EmbedClassifier, LexicalEncoder, StaticEncoder, TransformerEncoder, load_dataset
from embedtune.data.prepare import prepare_splits
from embedtune.embed.store import EmbeddingStore
from embedtune.heads.crossfit import subsample_rows
from embedtune.heads.decision import choose_weights, decide
from embedtune.heads.linear import LogisticHead

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
N_REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--max-rows", type=int, default=5000)
    given = parser.parse_args()
    sys.stdout.write(
        "| data | standardised | whitened | likeliest label | weighted | mean pooling | with max and cls |\n"
    )
    sys.stdout.write("|---" * 7 + "|\n")
    for source in given.sources:
        splits, _ = prepare_splits(load_dataset(source))
        rows = splits.rows("tune", "train")
        y, groups = splits.codes[rows], np.asarray(splits.groups)[rows]
        chosen = subsample_rows(y, groups=groups, n_rows=given.max_rows, random_state=0)
        texts, y, groups = [splits.texts[row] for row in rows[chosen]], y[chosen], groups[chosen]
        figures = [
            *compare_scalings(texts, y, groups),
            *compare_decisions(fit(texts, y, groups, poolings=["mean"]), y, groups),
            measure(fit(texts, y, groups, poolings=["mean"]), y),
            measure(fit(texts, y, groups, poolings=["mean", "max", "cls"]), y),
        ]
        cells = " | ".join(f"{100 * figure:.2f}" for figure in figures)
        sys.stdout.write(f"| {source.rpartition('/')[2]} | {cells} |\n")
        sys.stdout.flush()


def compare_scalings(
    texts: list[str], y: NDArray[np.int64], groups: NDArray[np.int64]
) -> tuple[float, float]:
    """Return the macro-F1 of logistic regression on the last five layers, each standardised or whitened."""
    encoder = read("mean")
    X = encoder.transform(texts)
    whitened = np.hstack([whiten(block) for block in np.split(X, len(encoder.widths_), axis=1)])
    head = LogisticHead(encoder.widths_)
    scaled, white = (measure(head.fit_out_of_fold(columns, y, groups), y) for columns in (X, whitened))
    return scaled, white


def whiten(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a block's columns rotated and scaled to a covariance of one."""
    left, _, _ = np.linalg.svd(block - block.mean(axis=0), full_matrices=False)
    scaled: NDArray[np.float32] = (left * np.sqrt(len(block))).astype(np.float32)
    return scaled


def compare_decisions(
    probabilities: NDArray[np.float64], y: NDArray[np.int64], groups: NDArray[np.int64]
) -> tuple[float, float]:
    """Return the macro-F1 of the likeliest labels and of weighted ones, the weights chosen on other folds."""
    likeliest, weighted = [], []
    for repeat in range(N_REPEATS):
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=repeat).split(texts_like(y), y, groups)
        for seen, unseen in folds:
            weights = choose_weights(probabilities[seen], y[seen])
            likeliest.append(measure(probabilities[unseen], y[unseen]))
            named = decide(probabilities[unseen], weights)
            weighted.append(f1_score(y[unseen], named, average="macro", zero_division=0))
    return float(np.mean(likeliest)), float(np.mean(weighted))


def texts_like(y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a column for a splitter that looks at its length only."""
    return np.zeros((len(y), 1), dtype=np.int64)


def fit(
    texts: list[str], y: NDArray[np.int64], groups: NDArray[np.int64], *, poolings: list[str]
) -> NDArray[np.float64]:
    """Return a stack's out-of-fold probabilities, the backbone read under one or several poolings."""
    views = [*(read(pooling) for pooling in poolings), StaticEncoder(), LexicalEncoder()]
    classifier = EmbedClassifier(views, "stack").fit(texts, y, groups=groups)
    found: NDArray[np.float64] = classifier.out_of_fold_
    return found


def read(pooling: str) -> TransformerEncoder:
    return TransformerEncoder(MODEL, layers="last5", pooling=pooling, store=EmbeddingStore(None))


def measure(probabilities: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    return float(f1_score(y, probabilities.argmax(axis=1), average="macro", zero_division=0))


if __name__ == "__main__":
    main()
