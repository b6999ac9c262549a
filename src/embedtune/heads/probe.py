"""How well each block of columns separates the labels by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from embedtune.heads.crossfit import MAX_ROWS, assign_folds, subsample_rows
from embedtune.progress import track

#: Penalties tried, on standardised columns.
_ALPHAS = (10.0, 100.0, 1000.0, 10000.0)


def probe_blocks(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    widths: Sequence[int],
    groups: NDArray[np.int64] | None = None,
    cv: int = 5,
    random_state: int = 0,
) -> list[float]:
    """Score a ridge classifier on each block alone, by cross-validation.

    Parameters
    ----------
    X : ndarray of shape (n, sum of widths)
        Dense. At most 4,000 rows are used, whole groups, stratified.
    y : ndarray of int, shape (n,)
    widths : sequence of int
        Columns of each block.
    groups : ndarray of int, shape (n,), optional
        Rows of one group share a fold.

    Returns
    -------
    list of float
        Macro-F1 of the out-of-fold predictions, one per block.

    References
    ----------
    Linear probes of intermediate layers: Alain and Bengio, arXiv 1610.01644.
    """
    rows = subsample_rows(y, groups=groups, n_rows=MAX_ROWS, random_state=random_state)
    part = None if groups is None else groups[rows]
    folds = assign_folds(y[rows], groups=part, n_folds=cv, random_state=random_state)
    ends = np.cumsum(widths)
    scores = []
    with track("probe layers", len(widths), unit="layers") as bar:
        for end, width in zip(ends, widths, strict=True):
            block, predicted = X[rows, end - width : end], np.empty_like(y[rows])
            for train, held_out in folds:
                probe = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=_ALPHAS))
                predicted[held_out] = probe.fit(block[train], y[rows][train]).predict(block[held_out])
            scores.append(float(f1_score(y[rows], predicted, average="macro", zero_division=0)))
            bar.advance()
    return scores
