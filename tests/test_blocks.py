"""Column blocks: splitting, standardising, and back."""

import numpy as np
import pytest
from scipy import sparse

from embedtune.errors import ConfigError
from embedtune.heads.blocks import find_columns, fit_scale, resolve_widths, slice_blocks, split_blocks


def _mixed(n: int = 60) -> tuple[np.ndarray, tuple[int, ...]]:
    """A sparse block between two dense ones of different width and scale."""
    rng = np.random.default_rng(0)
    rare = rng.random((n, 50)) * (rng.random((n, 50)) < 0.03)
    return np.hstack([rng.normal(5, 3, (n, 4)), rare, rng.normal(-2, 0.1, (n, 9))]), (4, 50, 9)


def test_resolve_widths_none_is_one_block() -> None:
    assert resolve_widths(None, 7) == (7,)


def test_resolve_widths_wrong_sum_says_both_sums() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_widths((3, 4), 8)
    assert str(caught.value) == (
        "widths [3, 4] add up to 7 but the matrix has 8 columns: give each block's positive number of "
        "columns, in order."
    )


@pytest.mark.parametrize("widths", [(), (0, 8), (-1, 9)])
def test_resolve_widths_not_positive_is_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="positive number"):
        resolve_widths(widths, 8)


def test_slice_blocks_keeps_the_order_asked() -> None:
    X = np.arange(12).reshape(2, 6)
    assert slice_blocks(X, (1, 2, 3), (2, 0))[0].tolist() == [3, 4, 5, 0]
    assert find_columns((1, 2, 3), (1,)).tolist() == [1, 2]


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.csr_array])
def test_split_blocks_separates_by_density(make: type) -> None:
    X, widths = _mixed()
    matrix = split_blocks(make(X), widths)
    assert matrix.dense_widths == (4, 9)
    assert matrix.sparse is not None and matrix.sparse.shape == (60, 50)
    together = np.hstack([matrix.dense, matrix.sparse.toarray()])
    np.testing.assert_allclose(together, X[:, matrix.columns], rtol=1e-6)


def test_scale_makes_dense_blocks_weigh_alike_and_leaves_sparse_ones() -> None:
    X, widths = _mixed()
    matrix = split_blocks(X, widths)
    scaled = fit_scale(matrix).apply(matrix)
    assert scaled.sparse is matrix.sparse
    np.testing.assert_allclose(scaled.dense.mean(axis=0), 0, atol=1e-5)
    for block in (scaled.dense[:, :4], scaled.dense[:, 4:]):
        np.testing.assert_allclose(np.square(block).sum(axis=1).mean(), 1, rtol=1e-4)


def test_scale_constant_column_becomes_zero() -> None:
    X = np.full((20, 2), 0.1)
    X[:, 1] = np.arange(20)
    matrix = split_blocks(X, (2,))
    assert np.abs(fit_scale(matrix).apply(matrix).dense[:, 0]).max() == 0


def test_scale_undo_gives_the_same_scores_on_the_given_columns() -> None:
    X, widths = _mixed()
    matrix = split_blocks(X, widths)
    scale = fit_scale(matrix)
    weights = np.random.default_rng(1).normal(size=(matrix.n_columns, 3))
    raw, intercept = scale.undo(matrix, weights, np.array([1.0, 2.0, 3.0]))
    expected = scale.apply(matrix).multiply(weights) + [1, 2, 3]
    np.testing.assert_allclose(X @ raw + intercept, expected, atol=2e-4)


def test_multiply_transposed_equals_the_joined_matrix() -> None:
    X, widths = _mixed()
    matrix = split_blocks(sparse.csr_matrix(X), widths)
    values = np.random.default_rng(2).normal(size=(60, 3))
    np.testing.assert_allclose(matrix.multiply_transposed(values), X[:, matrix.columns].T @ values, rtol=1e-3)


def test_take_selects_the_rows_of_both_parts() -> None:
    X, widths = _mixed()
    part = split_blocks(X, widths).take(np.array([5, 2]))
    assert part.sparse is not None
    np.testing.assert_allclose(part.dense, X[[5, 2]][:, part.columns[:13]], rtol=1e-6)
    np.testing.assert_allclose(part.sparse.toarray(), X[[5, 2], 4:54], rtol=1e-6)
