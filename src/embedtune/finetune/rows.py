"""Rows: their labels as numbers, the validation part, and the order that an epoch reads them in."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from embedtune.errors import DataError, suggest_nearest

#: Rows are sorted by length within this many batches, so a batch is even and its make-up still random.
_BATCHES_PER_CHUNK = 16


def index_labels(labels: Sequence[object], label_names: Sequence[str]) -> NDArray[np.int64]:
    """Return the position of each label in `label_names`; integers are taken as positions already.

    Raises
    ------
    DataError
        If a label isn't among the names, or fewer than two different labels occur.
    """
    positions = {name: number for number, name in enumerate(label_names)}
    indices = np.empty(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        if isinstance(label, Integral) and 0 <= int(label) < len(label_names):
            indices[row] = int(label)
        elif isinstance(label, str) and label in positions:
            indices[row] = positions[label]
        else:
            raise DataError(
                f"row {row} has label {label!r}{suggest_nearest(str(label), label_names)}: "
                f"allowed are {', '.join(label_names)}."
            )
    present = np.unique(indices)
    if len(present) < 2:
        only = f"only the label '{label_names[present[0]]}'" if len(present) else "no rows"
        raise DataError(f"the rows to fine-tune on have {only}: give rows of at least two labels.")
    return indices


def split_validation(
    y: NDArray[np.int64], *, groups: Sequence[Hashable] | None, fraction: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Set aside a stratified part of the rows, groups kept whole.

    Groups are visited in random order and taken as long as that brings the label counts nearer to `fraction`
    of each label, so a label with very few rows, or in one group alone, stays in training.

    Parameters
    ----------
    y : ndarray of int64, shape (n_rows,)
    groups : sequence, length n_rows, optional
        Rows of equal value stay together; by default each row is its own group.
    fraction : float
        Share of the rows; 0 sets none aside.
    seed : int

    Returns
    -------
    training, validation : ndarray of intp
        Row numbers, ascending. `validation` is empty where nothing could be set aside.
    """
    every = np.arange(len(y))
    keys = range(len(y)) if groups is None else groups
    members: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        members.setdefault(key, []).append(row)
    n_labels = int(y.max()) + 1
    target = fraction * np.bincount(y, minlength=n_labels)
    taken = np.zeros(n_labels)
    chosen: list[int] = []
    rows_of = list(members.values())
    for place in np.random.default_rng(seed).permutation(len(rows_of)):
        counts = np.bincount(y[rows_of[place]], minlength=n_labels)
        if np.abs(target - taken - counts).sum() < np.abs(target - taken).sum():
            taken += counts
            chosen += rows_of[place]
    validation = np.array(sorted(chosen), dtype=np.intp)
    return np.setdiff1d(every, validation), validation


class EpochBatches(Sampler[list[int]]):
    """Batches of rows of similar length, shuffled anew for each epoch.

    The order is a function of `seed` and `epoch` alone, so a resumed epoch reads on where it was interrupted.

    Parameters
    ----------
    lengths : ndarray of int64, shape (n_rows,)
        Tokens per row.
    batch_size, seed : int

    Attributes
    ----------
    epoch : int
        From 0; set it before an iteration starts.
    """

    drop_last = False

    def __init__(self, lengths: NDArray[np.int64], *, batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.lengths))
        chunk = self.batch_size * _BATCHES_PER_CHUNK
        batches: list[list[int]] = []
        for start in range(0, len(order), chunk):
            rows = order[start : start + chunk]
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            batches += [rows[i : i + self.batch_size].tolist() for i in range(0, len(rows), self.batch_size)]
        for place in generator.permutation(len(batches)):
            yield batches[place]


def sort_batches(lengths: NDArray[np.int64], *, batch_size: int) -> list[list[int]]:
    """Return batches of all rows, longest first."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
