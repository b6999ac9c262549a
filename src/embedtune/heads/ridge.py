"""Ridge regression on a `BlockMatrix` in closed form, whatever its width."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular

from embedtune.heads.blocks import BlockMatrix, Floats, Ints
from embedtune.heads.crossfit import OpenPath
from embedtune.heads.multinomial import Linear

#: Up to this many columns the normal equations are solved as they are, unless rows are fewer.
MAX_COLUMNS = 3072
#: Wider matrices than this, or than they are long, are read through their inner products with at most this many rows.
MAX_LANDMARKS = 2048


def open_ridge_path(n_classes: int, *, random_state: int) -> OpenPath:
    """Return the solver that `cross_fit` steps along alpha with.

    It minimises Σ wᵢ‖yᵢ − scoresᵢ‖² + alpha‖weights‖² with y of −1 and 1. The Gram matrix is computed once,
    each alpha then costs one Cholesky factor.
    """

    def open_path(matrix: BlockMatrix, y: Ints, sample_weight: Floats) -> Callable[[float], Linear]:
        features, lift = _reduce_columns(matrix, random_state=random_state)
        targets = np.where(y[:, None] == np.arange(n_classes), 1.0, -1.0)
        mean_x = np.average(features, axis=0, weights=sample_weight)
        mean_y = np.average(targets, axis=0, weights=sample_weight)
        root = np.sqrt(sample_weight)[:, None]
        features -= mean_x.astype(np.float32)
        features *= root.astype(np.float32)
        gram = (features.T @ features).astype(np.float64)
        moments = (features.T @ ((targets - mean_y) * root).astype(np.float32)).astype(np.float64)
        diagonal = gram.diagonal().copy()

        def step(alpha: float) -> Linear:
            gram[np.diag_indices_from(gram)] = diagonal + alpha
            solution = cho_solve(cho_factor(gram), moments)
            return Linear(lift(solution), mean_y - mean_x @ solution)

        return step

    return open_path


def _reduce_columns(matrix: BlockMatrix, *, random_state: int) -> tuple[Floats, Callable[[Floats], Floats]]:
    """Return dense features (n, m) float32, and what turns weights on them into weights on the columns.

    With more than `MAX_COLUMNS` columns, or than rows, the features are the rows' coordinates in the span of
    landmark rows: with all rows as landmarks that is exact (the kernel trick), with a sample, which only the first
    brings, it is the Nyström approximation.

    References
    ----------
    Williams and Seeger, "Using the Nyström method to speed up kernel machines", NIPS 2000.
    """
    if matrix.n_columns <= MAX_COLUMNS and len(matrix) >= min(matrix.n_columns, MAX_LANDMARKS):
        if matrix.sparse is None:
            return matrix.dense.copy(), lambda weights: weights
        return np.hstack([matrix.dense, matrix.sparse.toarray()]), lambda weights: weights
    n_landmarks = min(len(matrix), MAX_LANDMARKS)
    chosen = np.sort(np.random.default_rng(random_state).permutation(len(matrix))[:n_landmarks])
    landmarks = matrix.take(chosen)
    products = matrix.dense @ landmarks.dense.T
    if matrix.sparse is not None:
        products += (matrix.sparse @ landmarks.sparse.T).toarray()  # type: ignore[union-attr]
    kernel = products[chosen].astype(np.float64)
    # equal or zero rows make the kernel singular; the ridge is far below any alpha's effect
    kernel[np.diag_indices_from(kernel)] += 1e-5 * max(float(kernel.diagonal().mean()), 1e-12)
    lower = cholesky(kernel, lower=True)
    features = solve_triangular(lower, products.T, lower=True).T.astype(np.float32)

    def lift(weights: Floats) -> Floats:
        return landmarks.multiply_transposed(solve_triangular(lower, weights, trans="T", lower=True)).astype(
            np.float64
        )

    return np.ascontiguousarray(features), lift
