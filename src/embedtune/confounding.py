"""The fit stage's look at sources: whether a classifier could tell where a row is from instead of what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedtune.classifier import EmbedClassifier
from embedtune.data.splits import Splits
from embedtune.embed.lexical import LexicalEncoder
from embedtune.heads.crossfit import assign_folds, subsample_rows
from embedtune.plan import TaskRun
from embedtune.runfolder import digest

STEP = "fit.sources"
#: Rows looked at, and sources told apart; rarer ones count as one.
N_ROWS, N_SOURCES = 5000, 20
_OTHERS = "(others)"
#: By how many standard errors a classifier must beat the most frequent answer to count as telling something.
N_ERRORS = 3.0


def judge_sources(run: TaskRun, splits: Splits) -> None:
    """Record whether the source tells the label, and the text its source, both out of fold on training rows.

    Where both hold, a classifier can score well by recognising sources, and will fail on a new one.
    """
    if splits.sources is None:
        run.folder.forget(STEP)
        return

    def compute() -> dict[str, Any]:
        rows = splits.rows("tune", "train")
        sources = merge_rare(np.array(splits.sources, dtype=object)[rows])
        names, codes = np.unique(sources, return_inverse=True)
        if len(names) < 2:
            return {"sources": {str(names[0]): len(rows)}, "confounded": False}
        seed = run.experiment.seeds[0]
        groups = np.asarray(splits.groups)[rows]
        chosen = subsample_rows(codes, groups=groups, n_rows=N_ROWS, random_state=seed)
        y, codes, groups = splits.codes[rows][chosen], codes[chosen], groups[chosen]
        guessed = guess_labels(codes, y, groups=groups, seed=seed)
        reader = EmbedClassifier([("lexical", LexicalEncoder())], "logistic", random_state=seed)
        texts = [splits.texts[row] for row in rows[chosen]]
        reader.fit(texts, names[codes].tolist(), groups=groups.tolist())
        assert reader.out_of_fold_ is not None
        recognised = np.searchsorted(names, reader.classes_)[reader.out_of_fold_.argmax(axis=1)]
        label, source = compare_with_majority(y, guessed), compare_with_majority(codes, recognised)
        counts = np.unique(sources, return_counts=True)[1]
        return {
            "sources": {str(name): int(n) for name, n in zip(names, counts, strict=True)},
            "label_from_source": label,
            "source_from_text": source,
            "confounded": label["tells"] and source["tells"],
        }

    run.folder.run_step(STEP, digest(run.record("prepare")["key"], run.experiment.seeds[0]), compute)


def merge_rare(sources: NDArray[Any], *, n_kept: int = N_SOURCES) -> NDArray[Any]:
    """Return the sources with all but the `n_kept` most frequent put together."""
    names, counts = np.unique(sources, return_counts=True)
    kept = names[np.argsort(-counts, kind="stable")[:n_kept]]
    merged: NDArray[Any] = np.where(np.isin(sources, kept), sources, _OTHERS)
    return merged


def guess_labels(
    sources: NDArray[np.int64],
    y: NDArray[np.int64],
    *,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return each row's most frequent label among its source's rows in the other folds, (n,)."""
    guessed = np.empty_like(y)
    for seen, unseen in assign_folds(y, groups=groups, n_folds=5, random_state=seed):
        counts = np.zeros((sources.max() + 1, y.max() + 1))
        np.add.at(counts, (sources[seen], y[seen]), 1)
        # a source that the other folds lack gets their most frequent label
        counts += counts.sum(axis=0) / len(y)
        guessed[unseen] = counts[sources[unseen]].argmax(axis=1)
    return guessed


def compare_with_majority(y: NDArray[np.int64], guessed: NDArray[np.int64]) -> dict[str, Any]:
    """Return the ``accuracy`` of guesses, the ``majority``'s share, and whether guessing ``tells`` more for certain."""
    right = guessed == y
    common = y == np.bincount(y).argmax()
    gains = right.astype(float) - common
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    return {
        "accuracy": float(right.mean()),
        "majority": float(common.mean()),
        "tells": bool(gains.mean() > N_ERRORS * error),
    }
