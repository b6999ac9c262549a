"""Scores of one set of predictions.

Every score is a function of a few sums over rows, so `row_statistics` gives those terms per row and
`metrics_from_sums` turns their sums into scores. The bootstrap weights the same rows and sums again: the
point value and its interval come from one definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedtune.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

#: The scores reported for every arm, in the order the report shows them.
METRICS = ("accuracy", "macro_f1", "mcc", "log_loss", "calibration_error")

N_CALIBRATION_BINS = 15


def compute_metrics(
    y: ArrayLike, probabilities: ArrayLike, predicted: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """Score probabilities against the true labels.

    Parameters
    ----------
    y : array-like of int, shape (n,)
        True labels, as positions in the sorted label names.
    probabilities : array-like of float, shape (n, n_labels)
        One row per text, summing to 1.
    predicted : ndarray of int, shape (n,), optional
        The labels named; by default the most probable ones (the first on a tie).

    Returns
    -------
    dict of str to float
        ``accuracy``; ``macro_f1``, the plain mean of F1 over **all** labels, where a label neither present
        nor predicted counts as 0; ``mcc``, Gorodkin's multi-class correlation, 0 where it is undefined;
        ``log_loss`` in nats, probabilities clipped at 2.2e-16; ``calibration_error``, the expected
        calibration error of the top label over 15 bins of equal width. Never NaN.

    Raises
    ------
    DataError
        If there are no rows, shapes disagree, a label is out of range or a row is no distribution.

    References
    ----------
    Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient";
    Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    y, probabilities = check_predictions(y, probabilities)
    sums = np.asarray(row_statistics(y, probabilities, predicted).sum(axis=0), dtype=np.float64).reshape(
        1, -1
    )
    return {
        name: float(values[0]) for name, values in metrics_from_sums(sums, probabilities.shape[1]).items()
    }


def per_class(
    y: ArrayLike,
    probabilities: ArrayLike,
    names: Sequence[str],
    predicted: NDArray[np.int64] | None = None,
) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and support of each label; 0 where a ratio is undefined.

    Parameters
    ----------
    y : array-like of int, shape (n,)
    probabilities : array-like of float, shape (n, n_labels)
    names : sequence of str
        The sorted label names, one per column.
    predicted
        As in `compute_metrics`.

    Raises
    ------
    DataError
        As `compute_metrics`, or if there isn't one name per column.
    """
    y, probabilities = check_predictions(y, probabilities)
    if len(names) != probabilities.shape[1]:
        raise DataError(
            f"{len(names)} label names but {probabilities.shape[1]} columns: give one name per column."
        )
    counts = confusion(y, probabilities.argmax(axis=1) if predicted is None else predicted, len(names))
    hits = counts.diagonal().astype(np.float64)
    support, predicted = counts.sum(axis=1), counts.sum(axis=0)
    precision, recall = _divide(hits, predicted), _divide(hits, support)
    f1 = _divide(2 * hits, support + predicted)
    return {
        name: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(support[i]),
        }
        for i, name in enumerate(names)
    }


def confusion(y: ArrayLike, predicted: ArrayLike, n: int) -> NDArray[np.int64]:
    """Count rows by true label (matrix rows) and predicted label (columns), shape (n, n)."""
    codes = np.asarray(y, dtype=np.int64) * n + np.asarray(predicted, dtype=np.int64)
    return np.bincount(codes, minlength=n * n).reshape(n, n).astype(np.int64)


def check_predictions(
    y: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return both as arrays, int64 (n,) and float64 (..., n, n_labels), or raise DataError."""
    labels = np.asarray(y)
    scores = np.asarray(probabilities, dtype=np.float64)
    if labels.ndim != 1 or scores.ndim < 2 or scores.shape[-2] != labels.shape[0]:
        raise DataError(
            f"true labels of shape {labels.shape} don't go with probabilities of shape {scores.shape}: "
            "give (n,) and (n, n_labels)."
        )
    if labels.shape[0] == 0:
        raise DataError("no test rows to score: give at least one.")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= scores.shape[-1]:
        raise DataError(
            f"true labels must be integers from 0 to {scores.shape[-1] - 1}, positions in the sorted "
            f"label names; got {labels.dtype} from {labels.min()} to {labels.max()}."
        )
    valid = np.isfinite(scores).all(axis=-1) & (scores >= 0).all(axis=-1)
    valid &= np.abs(scores.sum(axis=-1) - 1) < 1e-2
    if not valid.all():
        raise DataError(
            f"{int((~valid).sum())} of {valid.size} rows of probabilities are not distributions "
            "(finite, from 0 up, summing to 1): the head has diverged or its scores were never normalised."
        )
    return labels.astype(np.int64), scores


def row_statistics(
    y: NDArray[np.int64], probabilities: NDArray[np.float64], predicted: NDArray[np.int64] | None = None
) -> csr_array:
    """Return the terms whose sums over rows determine every metric.

    Returns
    -------
    scipy.sparse.csr_array of float64, shape (n, 3 * n_labels + 1 + N_CALIBRATION_BINS)
        Indicators of the true label, of the predicted label and of the label hit; then the log loss; then
        confidence minus hit of the likeliest label, in the confidence's calibration bin.
    """
    from scipy.sparse import csr_array

    n, n_labels = probabilities.shape
    rows = np.arange(n)
    likeliest = probabilities.argmax(axis=1)
    predicted = likeliest if predicted is None else predicted
    confidence = probabilities[rows, likeliest]
    hit = predicted == y
    floor = np.finfo(np.float64).eps
    loss = -np.log(np.clip(probabilities[rows, y], floor, 1 - floor))
    bins = np.clip(np.ceil(confidence * N_CALIBRATION_BINS).astype(np.int64) - 1, 0, N_CALIBRATION_BINS - 1)

    columns = [y, n_labels + predicted, 2 * n_labels + y, np.full(n, 3 * n_labels), 3 * n_labels + 1 + bins]
    values = [np.ones(n), np.ones(n), hit, loss, confidence - (likeliest == y)]
    shape = (n, 3 * n_labels + 1 + N_CALIBRATION_BINS)
    return csr_array((np.concatenate(values), (np.tile(rows, 5), np.concatenate(columns))), shape=shape)


def metrics_from_sums(sums: NDArray[np.float64], n_labels: int) -> dict[str, NDArray[np.float64]]:
    """Turn summed `row_statistics`, shape (n_sums, n_columns), into scores, each of shape (n_sums,)."""
    true, predicted, hits = (sums[:, i * n_labels : (i + 1) * n_labels] for i in range(3))
    loss, gaps = sums[:, 3 * n_labels], sums[:, 3 * n_labels + 1 :]
    n = true.sum(axis=1)
    n_hits = hits.sum(axis=1)
    covariance = n_hits * n - (true * predicted).sum(axis=1)
    spread = (n**2 - (true**2).sum(axis=1)) * (n**2 - (predicted**2).sum(axis=1))
    return {
        "accuracy": n_hits / n,
        "macro_f1": _divide(2 * hits, true + predicted).mean(axis=1),
        "mcc": _divide(covariance, np.sqrt(spread)),
        "log_loss": loss / n,
        "calibration_error": np.abs(gaps).sum(axis=1) / n,
    }


def _divide(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    """Divide, giving 0 where the denominator is 0."""
    out = np.zeros(np.broadcast_shapes(numerator.shape, denominator.shape))
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out
