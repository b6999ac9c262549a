"""Multinomial logistic regression on a `BlockMatrix`.

scikit-learn's takes one dense or one sparse matrix; ours takes a dense part beside a sparse one, keeps a
class that a fold happens to lack, and starts from the solution at a neighbouring strength. The optimum is
scikit-learn's (a test compares them).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from embedtune.heads.blocks import BlockMatrix, Floats, Ints


class Linear(NamedTuple):
    """A linear map to class scores: weights (n_columns, K) and intercept (K,), float64."""

    weights: Floats
    intercept: Floats


def fit_multinomial(
    matrix: BlockMatrix,
    y: Ints,
    *,
    n_classes: int,
    C: float,
    sample_weight: Floats,
    start: Linear | None = None,
    max_iter: int = 300,
    tol: float = 1e-5,
) -> Linear:
    """Minimise C · Σ wᵢ lossᵢ + ½‖weights‖² by L-BFGS.

    Parameters
    ----------
    matrix : BlockMatrix
        Standardised; rows of norm about one.
    y : ndarray of int, (n,)
        Class numbers below `n_classes`; some may be absent.
    n_classes : int
        Two or more. With two classes the penalty is doubled, which makes the optimum that of the usual
        binary model with one weight vector.
    C : float
        Inverse strength of the penalty, as in scikit-learn.
    sample_weight : ndarray of shape (n,)
    start : Linear, optional
        Where to start; else zero weights and the classes' log frequencies.
    max_iter : int
    tol : float
        Stop when one step lowers the objective (a mean over rows) by less than this fraction.
    """
    total = float(sample_weight.sum())
    shares = (sample_weight / total).astype(np.float64)
    penalty = (2.0 if n_classes == 2 else 1.0) / (C * total)
    rows = np.arange(len(y))

    def evaluate(flat: Floats) -> tuple[float, Floats]:
        point = flat.reshape(matrix.n_columns + 1, n_classes)
        weights, intercept = point[:-1], point[-1]
        scores = matrix.multiply(weights) + intercept
        log_probabilities = scores - logsumexp(scores, axis=1, keepdims=True)
        loss = -float(shares @ log_probabilities[rows, y]) + 0.5 * penalty * float(np.vdot(weights, weights))
        residuals = np.exp(log_probabilities)
        residuals[rows, y] -= 1.0
        residuals *= shares[:, None]
        gradient = np.empty_like(point)
        gradient[:-1] = matrix.multiply_transposed(residuals) + penalty * weights
        gradient[-1] = residuals.sum(axis=0)
        return loss, gradient.ravel()

    if start is None:
        frequency = np.bincount(y, weights=shares, minlength=n_classes)
        # a class that a fold lacks gets a frequency below one row's
        intercept = np.log(np.maximum(frequency, 0.1 / len(y)))
        start = Linear(np.zeros((matrix.n_columns, n_classes)), intercept)
    options: dict[str, Any] = {"maxiter": max_iter, "ftol": tol, "gtol": 1e-6}
    first = np.vstack([start.weights, start.intercept]).ravel()
    found = minimize(evaluate, first, jac=True, method="L-BFGS-B", options=options)
    point = found.x.reshape(matrix.n_columns + 1, n_classes)
    return Linear(point[:-1].copy(), point[-1].copy())
