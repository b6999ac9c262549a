"""What was tried on training rows: whitened blocks, scaled vectors, heads, weights for macro-F1, poolings, few rows.

    python benchmarks/choices.py SOURCE ... [--max-rows 5000]

A source is a file or a built-in task. Everything is judged out of fold, or on other rows, inside tune + train of seed
0; test rows aren't looked at. docs/quality.md has the figures.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import StratifiedGroupKFold

from embedtune import EmbedClassifier, LexicalEncoder, StaticEncoder, TransformerEncoder, load_dataset
from embedtune.data.prepare import prepare_splits
from embedtune.heads import auto
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
    for source in given.sources:
        splits, _ = prepare_splits(load_dataset(source))
        rows = splits.rows("tune", "train")
        y, groups = splits.codes[rows], np.asarray(splits.groups)[rows]
        chosen = subsample_rows(y, groups=groups, n_rows=given.max_rows, random_state=0)
        texts, y, groups = [splits.texts[row] for row in rows[chosen]], y[chosen], groups[chosen]
        sys.stdout.write(f"{source.rpartition('/')[2]}, {len(y)} rows, macro-F1 in per cent\n")
        for name, score in compare_scalings(texts, y, groups).items():
            say(f"logistic regression on five layers, {name}", score)
        for head, (score, loss) in compare_heads(texts, y, groups).items():
            say(f"trained on half, judged on the rest, head {head}, log loss {loss:.3f}", score)
        plain = fit(texts, y, groups, poolings=["mean"])
        say("stack, mean pooling", measure(plain, y))
        say("stack, mean, max and cls", measure(fit(texts, y, groups, poolings=["mean", "max", "cls"]), y))
        for name, score in compare_decisions(plain, y, groups).items():
            say(f"the same folds, {name}", score)
        for name, score in compare_few(texts, y).items():
            say(name, score)


def say(name: str, score: float) -> None:
    sys.stdout.write(f"  {name}: {100 * score:.2f}\n")
    sys.stdout.flush()


def compare_scalings(texts: list[str], y: NDArray[np.int64], groups: NDArray[np.int64]) -> dict[str, float]:
    """Return the macro-F1 of each way to scale: all standardise columns in the end."""
    encoder = read("mean")
    blocks = np.split(encoder.transform(texts), len(encoder.widths_), axis=1)
    ways = {
        "as they are": blocks,
        "whitened": [whiten(block) for block in blocks],
        "vectors of norm one": [block / np.linalg.norm(block, axis=1, keepdims=True) for block in blocks],
    }
    head = LogisticHead(encoder.widths_)
    return {name: measure(head.fit_out_of_fold(np.hstack(way), y, groups), y) for name, way in ways.items()}


def compare_heads(
    texts: list[str], y: NDArray[np.int64], groups: NDArray[np.int64]
) -> dict[str, tuple[float, float]]:
    """Return the macro-F1 and the log loss, in nats, of each head on the default views."""
    halves = list(StratifiedGroupKFold(2, shuffle=True, random_state=0).split(texts, y, groups))
    scores = {}
    for head in ("logistic", "ridge", "stack"):
        found = np.empty((len(y), y.max() + 1))
        for seen, unseen in halves:
            classifier = EmbedClassifier(head=head).fit(
                [texts[row] for row in seen], y[seen], groups=groups[seen]
            )
            found[unseen] = classifier.predict_proba([texts[row] for row in unseen])
        scores[head] = measure(found, y), float(log_loss(y, found))
    return scores


def whiten(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a block's columns rotated and scaled to a covariance of one."""
    left, _, _ = np.linalg.svd(block - block.mean(axis=0), full_matrices=False)
    scaled: NDArray[np.float32] = (left * np.sqrt(len(block))).astype(np.float32)
    return scaled


def compare_decisions(
    probabilities: NDArray[np.float64], y: NDArray[np.int64], groups: NDArray[np.int64]
) -> dict[str, float]:
    """Return the macro-F1 of the likeliest labels and of weighted ones, the weights chosen on other folds."""
    likeliest, weighted = [], []
    for repeat in range(N_REPEATS):
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=repeat).split(probabilities, y, groups)
        for seen, unseen in folds:
            weights = choose_weights(probabilities[seen], y[seen])
            likeliest.append(measure(probabilities[unseen], y[unseen]))
            named = decide(probabilities[unseen], weights)
            weighted.append(f1_score(y[unseen], named, average="macro", zero_division=0))
    return {"likeliest label": float(np.mean(likeliest)), "weighted": float(np.mean(weighted))}


def compare_few(texts: list[str], y: NDArray[np.int64]) -> dict[str, float]:
    """Return the macro-F1 on up to 1,000 other rows of heads trained on few of each label, chosen among or not."""
    found: dict[str, list[float]] = {}
    for n in (8, 16, 32, 64):
        for seed in range(N_REPEATS):
            random = np.random.default_rng(seed)
            seen = np.concatenate(
                [random.choice(np.flatnonzero(y == k), n, replace=False) for k in range(int(y.max()) + 1)]
            )
            unseen = random.permutation(np.setdiff1d(np.arange(len(y)), seen))[:1000]
            for name, bound in (("nothing chosen", 10**9), ("chosen by cross-validation", 0)):
                auto.FEW_ROWS = bound
                views = [read("mean"), StaticEncoder(), LexicalEncoder()]
                classifier = EmbedClassifier(views).fit([texts[row] for row in seen], y[seen])
                score = measure(classifier.predict_proba([texts[row] for row in unseen]), y[unseen])
                found.setdefault(f"{n} rows per label, {name}", []).append(score)
    return {name: float(np.mean(scores)) for name, scores in found.items()}


def fit(
    texts: list[str], y: NDArray[np.int64], groups: NDArray[np.int64], *, poolings: list[str]
) -> NDArray[np.float64]:
    """Return a stack's out-of-fold probabilities, the backbone read under one or several poolings."""
    views = [*(read(pooling) for pooling in poolings), StaticEncoder(), LexicalEncoder()]
    classifier = EmbedClassifier(views, "stack").fit(texts, y, groups=groups)
    found: NDArray[np.float64] = classifier.out_of_fold_
    return found


def read(pooling: str) -> TransformerEncoder:
    return TransformerEncoder(MODEL, layers="last5", pooling=pooling)


def measure(probabilities: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    return float(f1_score(y, probabilities.argmax(axis=1), average="macro", zero_division=0))


if __name__ == "__main__":
    main()
