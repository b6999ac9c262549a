"""The logarithmic opinion pool: several classifiers' probabilities joined by one weight for each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from embedtune.heads.blocks import Floats, Ints
from embedtune.heads.crossfit import CrossFit, FoldPlan, measure_log_loss
from embedtune.heads.training import TrainingRows


class Pool(NamedTuple):
    """Weights of the opinions, (n_opinions,), and what is added to each class, (K,); both float64."""

    weights: Floats
    bias: Floats

    def join(self, opinions: Floats) -> Floats:
        """Return the scores (n, K) of log-probabilities (n_opinions, n, K)."""
        scores: Floats = np.tensordot(self.weights, opinions, axes=1) + self.bias
        return scores


def fit_pool(opinions: Floats, y: Ints, sample_weight: Floats) -> Pool:
    """Find the pool of lowest log loss, each weight 0 or more.

    It minimises Σ wᵢ·lossᵢ + ½‖weights − 1/n_opinions‖² + ½‖bias‖²: without evidence all count alike, and rows that are
    told apart perfectly don't send weights to infinity.

    Parameters
    ----------
    opinions : ndarray of float64, shape (n_opinions, n, K)
        Log-probabilities, of rows that the opinions' classifiers haven't seen.
    y : ndarray of int, shape (n,)
    sample_weight : ndarray of float64, shape (n,)

    References
    ----------
    Genest and Zidek, "Combining Probability Distributions: A Critique and an Annotated Bibliography", Statistical
    Science 1 (1986): the logarithmic opinion pool.
    """
    n_opinions, n, n_classes = opinions.shape
    share, rows = 1 / n_opinions, np.arange(n)

    def evaluate(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        pool = Pool(at[:n_opinions], at[n_opinions:])
        logs = log_softmax(pool.join(opinions), axis=1)
        off = pool.weights - share
        value = -(sample_weight * logs[rows, y]).sum() + 0.5 * (off @ off + pool.bias @ pool.bias)
        slope = np.exp(logs)
        slope[rows, y] -= 1
        slope *= sample_weight[:, None]
        gradient = np.concatenate(
            [np.tensordot(opinions, slope, axes=2) + off, slope.sum(axis=0) + pool.bias]
        )
        return float(value), gradient

    start = np.concatenate([np.full(n_opinions, share), np.zeros(n_classes)])
    bounds = [(0.0, None)] * n_opinions + [(None, None)] * n_classes
    found = minimize(evaluate, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12}).x
    return Pool(found[:n_opinions], found[n_opinions:])


def cross_fit_pool(opinions: Floats, rows: TrainingRows, plan: FoldPlan) -> CrossFit:
    """Return the out-of-fold scores of pools fitted on the plan's folds; it must be for every row."""
    assert plan.every_fold is not None
    scores = np.empty(opinions.shape[1:])
    for seen, unseen in plan.every_fold:
        pool = fit_pool(opinions[:, seen], rows.y[seen], rows.sample_weight[seen])
        scores[unseen] = pool.join(opinions[:, unseen])
    return CrossFit(1.0, measure_log_loss(scores, rows.y, rows.sample_weight), scores, np.arange(len(rows.y)))
