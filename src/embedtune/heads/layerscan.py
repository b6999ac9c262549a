"""Which of a backbone's layers to read, and how pooled: a ridge probe of each, and the rule that picks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from sklearn.metrics import f1_score

from embedtune.heads.blocks import Ints, find_columns
from embedtune.heads.crossfit import assign_folds
from embedtune.progress import track

#: Penalties tried; kernels have a mean diagonal of 1.
_ALPHAS = (0.01, 0.1, 1.0, 10.0)


class Probe(NamedTuple):
    """How well some layers tell the labels apart: out-of-fold macro-F1 of all rows, and of each fold's."""

    score: float
    by_fold: tuple[float, ...]


def scan_layers(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    widths: Sequence[int],
    n_together: int = 1,
    groups: NDArray[np.int64] | None = None,
    cv: int = 5,
    random_state: int = 0,
) -> list[Probe]:
    """Probe, for each layer, that layer and those just below it, `n_together` in all.

    Kernel ridge regression: a run of layers has the sum of its layers' inner products, so each layer is multiplied once
    whatever number of runs it is in. Columns are standardised over all rows, which takes no labels.

    Parameters
    ----------
    X : ndarray of shape (n, sum of widths)
        The layers side by side, lowest first. Meant for some thousand rows: the work grows with n³.
    y : ndarray of int, shape (n,)
    widths : sequence of int
        Columns of each layer.
    n_together : int
        Layers in a run; fewer where there are none further down.
    groups : ndarray of int, shape (n,), optional
        Rows of one group share a fold.

    Returns
    -------
    list of Probe
        One per layer, the topmost of its run.
    """
    folds = assign_folds(y, groups=groups, n_folds=cv, random_state=random_state)
    targets = np.where(y[:, None] == np.unique(y), 1.0, -1.0)
    kernels: list[NDArray[np.float32]] = []
    probes = []
    with track("probe layers", len(widths), unit="layers") as bar:
        for layer in range(len(widths)):
            kernels = [*kernels, _multiply(X[:, find_columns(widths, [layer])])][-n_together:]
            probes.append(_probe(np.mean(kernels, axis=0), y, targets, folds))
            bar.advance()
    return probes


def choose_reading(probes: Mapping[str, Sequence[Probe]]) -> tuple[str, int]:
    """Return the pooling and the lowest layer whose probe is within one standard error of the best of all.

    The error is that of the mean difference between the two over the folds, which are the same for all. Of several
    poolings at that layer the best one is taken.

    Parameters
    ----------
    probes : mapping of str to sequence of Probe
        By pooling, as `scan_layers` returns them.

    References
    ----------
    Breiman et al., "Classification and Regression Trees" (1984), section 3.4.3: the one-standard-error rule.
    """
    names = list(probes)
    scores = np.array([[probe.score for probe in probes[name]] for name in names])
    by_fold = np.array([[probe.by_fold for probe in probes[name]] for name in names])
    gaps = by_fold[np.unravel_index(scores.argmax(), scores.shape)] - by_fold
    errors = gaps.std(axis=2, ddof=1) / np.sqrt(gaps.shape[2])
    near = scores.max() - scores <= errors
    layer = int(np.flatnonzero(near.any(axis=0))[0])
    return names[int(np.where(near[:, layer], scores[:, layer], -1).argmax())], layer


def _multiply(layer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows' inner products after standardising the columns, over the number of columns."""
    spread = layer.std(axis=0)
    columns = (layer - layer.mean(axis=0)) / np.where(spread > 0, spread, 1)
    products: NDArray[np.float32] = columns @ columns.T / np.float32(layer.shape[1])
    return products


def _probe(
    kernel: NDArray[np.float32],
    y: NDArray[np.int64],
    targets: NDArray[np.float64],
    folds: Sequence[tuple[Ints, Ints]],
) -> Probe:
    """Predict each fold from the others, at the penalty whose out-of-fold error is least."""
    scores = np.empty((len(_ALPHAS), *targets.shape))
    for seen, unseen in folds:
        mean = targets[seen].mean(axis=0)
        products = kernel[np.ix_(seen, seen)].astype(np.float64)
        across = kernel[np.ix_(unseen, seen)]
        diagonal = products.diagonal().copy()
        for i, alpha in enumerate(_ALPHAS):
            products[np.diag_indices_from(products)] = diagonal + alpha
            scores[i, unseen] = across @ cho_solve(cho_factor(products), targets[seen] - mean) + mean
    best = int(np.argmin(np.square(scores - targets).mean(axis=(1, 2))))
    predicted = np.unique(y)[scores[best].argmax(axis=1)]
    return Probe(_score(y, predicted), tuple(_score(y[unseen], predicted[unseen]) for _, unseen in folds))


def _score(y: Ints, predicted: Ints) -> float:
    return float(f1_score(y, predicted, average="macro", zero_division=0))
