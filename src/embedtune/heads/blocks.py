"""The column blocks of a matrix: dense ones standardised, sparse ones left as they are.

A matrix may hold 2,560 dense embedding columns beside 40,000 of TF-IDF. Kept apart, the first stay in a
matrix product's fast path and the second stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from embedtune.errors import ConfigError

Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.integer[Any]]
#: A dense array or a CSR matrix, (n, n_features).
Matrix: TypeAlias = Any

#: A block with fewer non-zero values than this is sparse: not centred, not scaled.
SPARSE_DENSITY = 0.1


def resolve_widths(widths: Sequence[int] | None, n_features: int) -> tuple[int, ...]:
    """Return the blocks' widths; `None` means one block.

    Raises
    ------
    ConfigError
        If a width is below one or the widths don't add up to `n_features`.
    """
    if widths is None:
        return (n_features,)
    resolved = tuple(int(width) for width in widths)
    if min(resolved, default=0) < 1 or sum(resolved) != n_features:
        raise ConfigError(
            f"widths {list(resolved)} add up to {sum(resolved)} but the matrix has {n_features} columns: "
            "give each block's positive number of columns, in order."
        )
    return resolved


def find_columns(widths: Sequence[int], blocks: Sequence[int]) -> Ints:
    """Return the column numbers of the given blocks, in the order given."""
    ends = np.cumsum(widths)
    return np.concatenate([np.arange(ends[block] - widths[block], ends[block]) for block in blocks])


def slice_blocks(X: Matrix, widths: Sequence[int], blocks: Sequence[int]) -> Matrix:
    """Return the columns of the given blocks; `X` itself where these are all of them, in order."""
    if tuple(blocks) == tuple(range(len(widths))):
        return X
    return X[:, find_columns(widths, blocks)]


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix as one dense and one sparse part.

    Attributes
    ----------
    dense : ndarray of shape (n, n_dense), float32
    sparse : CSR matrix of shape (n, n_sparse), float32, or None
    columns : ndarray of int, (n_dense + n_sparse,)
        The original column of each column here: the dense ones, then the sparse ones.
    dense_widths : tuple of int
    """

    dense: Floats
    sparse: Matrix | None
    columns: Ints
    dense_widths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.dense)

    @property
    def n_columns(self) -> int:
        """How many columns both parts have together."""
        return len(self.columns)

    def take(self, rows: Ints) -> BlockMatrix:
        """Return the given rows, copied."""
        part = None if self.sparse is None else self.sparse[rows]
        return BlockMatrix(self.dense[rows], part, self.columns, self.dense_widths)

    def multiply(self, weights: Floats) -> Floats:
        """Return the product with `weights` (n_columns, K): (n, K) float32."""
        weights = np.ascontiguousarray(weights, dtype=np.float32)
        n_dense = self.dense.shape[1]
        product: Floats = self.dense @ weights[:n_dense]
        if self.sparse is not None:
            product += self.sparse @ weights[n_dense:]
        return product

    def multiply_transposed(self, values: Floats) -> Floats:
        """Return the transpose's product with `values` (n, K): (n_columns, K) float32."""
        values = np.ascontiguousarray(values, dtype=np.float32)
        product: Floats = self.dense.T @ values
        if self.sparse is None:
            return product
        return np.concatenate([product, self.sparse.T @ values])


@dataclass(frozen=True)
class BlockScale:
    """What standardising did to the dense columns: (x - shift) * factor.

    Attributes
    ----------
    shift, factor : ndarray of shape (n_dense,), float64
        The mean, and 1 / (standard deviation · √block width); factor 0 where a column is constant.
    """

    shift: Floats
    factor: Floats

    def apply(self, matrix: BlockMatrix) -> BlockMatrix:
        """Return `matrix` with its dense columns standardised, copied."""
        dense = matrix.dense - self.shift.astype(np.float32)
        dense *= self.factor.astype(np.float32)
        return BlockMatrix(dense, matrix.sparse, matrix.columns, matrix.dense_widths)

    def undo(self, matrix: BlockMatrix, weights: Floats, intercept: Floats) -> tuple[Floats, Floats]:
        """Return weights (n_features, K) and intercept (K,) that act on the original columns."""
        raw = np.array(weights, dtype=np.float64)
        n_dense = len(self.shift)
        raw[:n_dense] *= self.factor[:, None]
        restored = np.zeros_like(raw)
        restored[matrix.columns] = raw
        return restored, intercept - self.shift @ raw[:n_dense]


def split_blocks(X: Matrix, widths: Sequence[int]) -> BlockMatrix:
    """Split `X` into its dense and its sparse blocks, as float32."""
    starts = np.concatenate([[0], np.cumsum(widths)]).astype(int)
    is_csr = sparse.issparse(X)
    X = sparse.csr_matrix(X) if is_csr else np.asarray(X)
    counts = _count_nonzero(X)
    is_dense = [
        counts[start:end].sum() >= SPARSE_DENSITY * (end - start) * max(X.shape[0], 1)
        for start, end in pairwise(starts)
    ]
    dense_blocks = [i for i, dense in enumerate(is_dense) if dense]
    sparse_blocks = [i for i, dense in enumerate(is_dense) if not dense]
    dense: Any = np.empty((X.shape[0], 0), dtype=np.float32)
    rest: Any = None
    if dense_blocks:
        dense = slice_blocks(X, widths, dense_blocks)
        dense = np.ascontiguousarray(dense.toarray() if is_csr else dense, dtype=np.float32)
    if sparse_blocks:
        rest = sparse.csr_matrix(slice_blocks(X, widths, sparse_blocks), dtype=np.float32)
    columns = find_columns(widths, dense_blocks + sparse_blocks)
    return BlockMatrix(dense, rest, columns, tuple(widths[i] for i in dense_blocks))


def fit_scale(matrix: BlockMatrix) -> BlockScale:
    """Measure each dense column's mean and standard deviation, and fold in 1 / √block width."""
    if not matrix.dense_widths:
        return BlockScale(np.empty(0), np.empty(0))
    shift = matrix.dense.mean(axis=0, dtype=np.float64)
    spread = np.sqrt(np.square(matrix.dense - shift.astype(np.float32)).mean(axis=0, dtype=np.float64))
    # float32 can't tell a smaller spread from rounding
    alive = spread > 1e-6 * np.maximum(np.abs(shift), 1e-30)
    roots = np.sqrt(np.repeat(matrix.dense_widths, matrix.dense_widths))
    factor = np.divide(1.0, spread * roots, out=np.zeros_like(spread), where=alive)
    return BlockScale(shift, factor)


def _count_nonzero(X: Matrix) -> Ints:
    if sparse.issparse(X):
        return np.bincount(X.indices[X.data != 0], minlength=X.shape[1])
    return np.asarray(np.count_nonzero(X, axis=0))
