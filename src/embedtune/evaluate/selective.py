"""What probabilities are good for beyond the likeliest label: trusting them, sets of labels, leaving rows undecided."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedtune.evaluate.metrics import check_predictions, compute_metrics

#: Points of a risk-coverage curve and bins of a reliability diagram.
N_POINTS, N_BINS = 20, 10


def score_sets(y: ArrayLike, sets: NDArray[np.bool_], *, coverage: float) -> dict[str, float]:
    """Say how often sets of labels hold the true one, and how large they are.

    Parameters
    ----------
    y : array-like of int, shape (n,)
    sets : ndarray of bool, shape (n_seeds, n, n_labels)
    coverage : float
        The share promised.

    Returns
    -------
    dict
        ``coverage``, ``covered``, ``mean_size`` and ``single`` (the share of sets of one label), means over seeds.
    """
    sizes = sets.sum(axis=2)
    covered = sets[:, np.arange(sets.shape[1]), np.asarray(y)]
    return {
        "coverage": coverage,
        "covered": float(covered.mean()),
        "mean_size": float(sizes.mean()),
        "single": float((sizes == 1).mean()),
    }


def measure_reliability(
    y: ArrayLike, probabilities: ArrayLike, *, n_bins: int = N_BINS
) -> list[dict[str, float]]:
    """Set confidence against accuracy, in bins of as many predictions each, the least confident first.

    Parameters
    ----------
    y : array-like of int, shape (n,)
    probabilities : array-like of float, shape (n_seeds, n, n_labels)
        All seeds' predictions are put together.

    Returns
    -------
    list of dict
        ``confidence`` and ``accuracy``, means of the bin, and ``n``.
    """
    right, confidence = _rate_answers(y, probabilities)
    order = np.argsort(confidence, kind="stable")
    return [
        {
            "confidence": float(confidence[part].mean()),
            "accuracy": float(right[part].mean()),
            "n": len(part),
        }
        for part in np.array_split(order, n_bins)
        if len(part)
    ]


def trace_risk(y: ArrayLike, probabilities: ArrayLike, *, n_points: int = N_POINTS) -> dict[str, Any]:
    """Say how the error falls when only the most confident rows are decided.

    Returns
    -------
    dict
        ``coverage`` and ``error``, lists: the share of rows decided and the share of errors among them; ``area``,
        the mean error over all coverages.

    References
    ----------
    El-Yaniv and Wiener 2010, "On the Foundations of Noise-free Selective Classification"; Geifman and El-Yaniv 2017,
    "Selective Classification for Deep Neural Networks".
    """
    right, confidence = _rate_answers(y, probabilities)
    order = np.argsort(-confidence, kind="stable")
    error = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    # rows of equal confidence are decided together
    last = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    error = np.interp(np.arange(len(order)), last, error[last])
    places = np.unique(np.ceil(np.linspace(0, 1, n_points + 1)[1:] * len(order)).astype(int)) - 1
    return {
        "coverage": ((places + 1) / len(order)).tolist(),
        "error": error[places].tolist(),
        "area": float(error.mean()),
    }


def score_abstention(y: ArrayLike, probabilities: ArrayLike, *, cost: float) -> dict[str, float]:
    """Say what leaving doubtful rows undecided saves, where that costs `cost` and an error costs 1.

    A row is decided where its confidence is 1 - `cost` or more, which costs least if probabilities are calibrated.

    Returns
    -------
    dict
        ``cost``; ``threshold``; ``abstained``, the share left undecided; ``error``, that of the others, None if there
        are none; ``mean_cost`` per row, and ``mean_cost_deciding_all``.

    References
    ----------
    Chow 1970, "On Optimum Recognition Error and Reject Tradeoff".
    """
    right, confidence = _rate_answers(y, probabilities)
    decided = confidence >= 1 - cost
    return {
        "cost": cost,
        "threshold": 1 - cost,
        "abstained": float((~decided).mean()),
        "error": float((~right[decided]).mean()) if decided.any() else None,  # type: ignore[dict-item]
        "mean_cost": float((cost * ~decided + (decided & ~right)).mean()),
        "mean_cost_deciding_all": float((~right).mean()),
    }


def _rate_answers(y: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return whether each seed's likeliest label of each row is right, and its probability: (n_seeds · n,)."""
    labels, checked = check_predictions(y, probabilities)
    seeds = checked.reshape(-1, *checked.shape[-2:])
    right: NDArray[np.bool_] = seeds.argmax(axis=2) == labels
    return right.ravel(), seeds.max(axis=2).ravel()


def trace_cascade(
    y: ArrayLike, cheap: ArrayLike, dear: ArrayLike, *, n_points: int = N_POINTS
) -> dict[str, list[float]]:
    """Say how macro-F1 grows when the rows that a cheap classifier is least sure of are given to a dear one.

    Parameters
    ----------
    y : array-like of int, shape (n,)
    cheap, dear : array-like of float, shape (n_seeds, n, n_labels)
        The first seed of each is taken.

    Returns
    -------
    dict
        ``share`` of rows given to the dear one, from 0 to 1; ``threshold`` of the cheap one's confidence below which
        they are; ``macro_f1``.
    """
    first = [np.asarray(found).reshape(-1, *np.shape(found)[-2:])[0] for found in (cheap, dear)]
    confidence = first[0].max(axis=1)
    order = np.argsort(confidence, kind="stable")
    found: dict[str, list[float]] = {"share": [], "threshold": [], "macro_f1": []}
    for n in np.unique(np.linspace(0, len(order), n_points + 1).round().astype(int)):
        mixed = first[0].copy()
        mixed[order[:n]] = first[1][order[:n]]
        found["share"].append(n / len(order))
        found["threshold"].append(float(confidence[order[n]]) if n < len(order) else 1.0)
        found["macro_f1"].append(float(compute_metrics(y, mixed)["macro_f1"]))
    return found
