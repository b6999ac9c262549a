"""Which label to name, given probabilities: the likeliest, or the one that macro-F1 asks for where labels are rare."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from embedtune.heads.blocks import Floats, Ints

Decision: TypeAlias = Literal["likeliest", "macro_f1"]
DECISIONS = ("likeliest", "macro_f1")

#: Factors tried on one label's probability, in each of so many rounds over all labels.
_FACTORS = np.exp(np.linspace(-2.5, 2.5, 51))
_N_ROUNDS = 3


def choose_weights(probabilities: Floats, y: Ints) -> NDArray[np.float64]:
    """Return the weight of each label, (K,), at which the highest weighted probability gives the best macro-F1.

    Coordinate ascent from equal weights: one label's weight at a time, the one nearest to 1 on a tie. With two labels
    that is a threshold.

    Parameters
    ----------
    probabilities : ndarray of shape (n, K)
        Of rows that the classifier hasn't seen.
    y : ndarray of int, shape (n,)
        Their true columns.

    References
    ----------
    Lipton, Elkan and Naryanaswamy 2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure".
    """
    weights = np.ones(probabilities.shape[1])
    best = _score(probabilities, y)
    factors = _FACTORS[np.argsort(np.abs(np.log(_FACTORS)), kind="stable")]
    for _ in range(_N_ROUNDS):
        before = weights.copy()
        for label in range(len(weights)):
            for factor in factors:
                tried = weights.copy()
                tried[label] = factor
                score = _score(probabilities * tried, y)
                if score > best:
                    best, weights = score, tried
        if np.array_equal(before, weights):
            break
    found: NDArray[np.float64] = weights / weights.max()
    return found


def decide(probabilities: Floats, weights: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """Return each row's column, (n,): the likeliest, or that of the highest weighted probability."""
    scores = np.asarray(probabilities) if weights is None else probabilities * weights
    winners: NDArray[np.int64] = scores.argmax(axis=1)
    return winners


def _score(scores: Floats, y: Ints) -> float:
    return float(f1_score(y, scores.argmax(axis=1), average="macro", zero_division=0))
