"""Rows whose label or text looks wrong, found with out-of-fold probabilities and with the embeddings themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Neighbours an outlier is far from, and how many robust standard deviations farther than usual.
N_NEIGHBOURS, FAR = 10, 5.0
#: Beyond so many rows no outliers are sought: every row is set against every other.
MAX_ROWS = 20_000


class Suspect(NamedTuple):
    """A row to look at.

    Attributes
    ----------
    place : int
        Its place among the rows given.
    reason : str
        ``"label"``, ``"near-duplicates disagree"`` or ``"outlier"``.
    suggested : int or None
        The label that the others speak for.
    score : float
        Smaller is more suspect, within one reason.
    """

    place: int
    reason: str
    suggested: int | None
    score: float


def rank_labels(y: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how well each row's label agrees with its out-of-fold probabilities, (n,): 1 fully, 0 not at all.

    References
    ----------
    Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels"; the normalised
    margin: the label's probability minus that of the likeliest other one.
    """
    from cleanlab.rank import get_label_quality_scores

    scores: NDArray[np.float64] = get_label_quality_scores(y, probabilities, method="normalized_margin")
    return scores


def find_label_errors(y: NDArray[np.int64], probabilities: NDArray[np.float64]) -> list[Suspect]:
    """Return rows that are likely labelled wrong, the likeliest first.

    How many follows from the estimated joint distribution of given and true labels (confident learning), so clean data
    gives few.

    Parameters
    ----------
    y : ndarray of int, shape (n,)
    probabilities : ndarray of float, shape (n, n_labels)
        Each row's by a classifier that hasn't seen it.
    """
    from cleanlab.filter import find_label_issues

    flagged = find_label_issues(y, probabilities, n_jobs=1)
    scores = rank_labels(y, probabilities)
    places = np.flatnonzero(flagged)
    best = probabilities.argmax(axis=1)
    return [
        Suspect(int(place), "label", int(best[place]), float(scores[place]))
        for place in places[np.argsort(scores[places], kind="stable")]
    ]


def find_disagreements(
    y: NDArray[np.int64], probabilities: NDArray[np.float64], clusters: Sequence[Sequence[int]]
) -> list[Suspect]:
    """Return the rows of near-duplicate clusters that bear several labels; each cluster's likeliest label is suggested.

    Parameters
    ----------
    clusters : sequence of sequences of int
        Places of near-duplicates.
    """
    found = []
    for places in clusters:
        if len({int(y[place]) for place in places}) < 2:
            continue
        suggested = int(probabilities[list(places)].sum(axis=0).argmax())
        found += [
            Suspect(int(place), "near-duplicates disagree", suggested, float(probabilities[place, y[place]]))
            for place in places
        ]
    return found


def find_outliers(vectors: NDArray[np.float32]) -> list[Suspect]:
    """Return rows far from all others: another language, a table's remains, a text of another kind.

    A row's distance is the mean cosine distance to its `N_NEIGHBOURS` nearest; it is an outlier if that lies `FAR`
    robust standard deviations (1.48 times the median absolute deviation) above the median. None beyond `MAX_ROWS` rows.

    Parameters
    ----------
    vectors : ndarray of float32, shape (n, width)

    References
    ----------
    Ramaswamy, Rastogi and Shim 2000, "Efficient Algorithms for Mining Outliers from Large Data Sets".
    """
    from sklearn.neighbors import NearestNeighbors

    if not N_NEIGHBOURS < len(vectors) <= MAX_ROWS:
        return []
    search = NearestNeighbors(n_neighbors=N_NEIGHBOURS, metric="cosine", algorithm="brute").fit(vectors)
    distances = search.kneighbors()[0].mean(axis=1)
    middle = np.median(distances)
    spread = 1.4826 * np.median(np.abs(distances - middle))
    places = np.flatnonzero(distances > middle + FAR * spread) if spread > 0 else np.empty(0, int)
    return [
        Suspect(int(place), "outlier", None, float(-distances[place]))
        for place in places[np.argsort(-distances[places], kind="stable")]
    ]
