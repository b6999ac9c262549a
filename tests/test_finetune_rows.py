"""Validation rows and epoch batches."""

from __future__ import annotations

import numpy as np

from embedtune.finetune.rows import EpochBatches, sort_batches, split_validation


def test_split_validation_is_stratified_and_complete() -> None:
    y = np.repeat([0, 1, 2], [600, 300, 100])
    training, validation = split_validation(y, groups=None, fraction=0.1, seed=0)
    assert np.array_equal(np.sort(np.concatenate([training, validation])), np.arange(1000))
    assert np.array_equal(np.bincount(y[validation]), [60, 30, 10])


def test_split_validation_keeps_groups_whole() -> None:
    rng = np.random.default_rng(0)
    y, groups = rng.integers(0, 3, 500), rng.integers(0, 120, 500)
    training, validation = split_validation(y, groups=groups.tolist(), fraction=0.2, seed=0)
    assert not set(groups[training]) & set(groups[validation])
    assert 80 <= len(validation) <= 110


def test_split_validation_keeps_a_rare_label_in_training() -> None:
    y = np.array([0] * 50 + [1] * 50 + [2])
    for seed in range(5):
        assert 100 in split_validation(y, groups=None, fraction=0.1, seed=seed)[0]


def test_split_validation_of_one_group_is_empty() -> None:
    training, validation = split_validation(np.array([0, 1] * 8), groups=["a"] * 16, fraction=0.1, seed=0)
    assert (len(training), len(validation)) == (16, 0)


def test_split_validation_depends_on_the_seed_alone() -> None:
    y = np.arange(200) % 2
    first, again, other = (split_validation(y, groups=None, fraction=0.1, seed=s)[1] for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_epoch_batches_hold_every_row_once_and_change_with_the_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1003)
    batches = EpochBatches(lengths, batch_size=16, seed=5)
    first = list(batches)
    assert len(first) == len(batches) == 63
    assert sorted(row for batch in first for row in batch) == list(range(1003))
    assert list(batches) == first
    batches.epoch = 1
    assert list(batches) != first


def test_epoch_batches_group_by_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1024)
    padded = sum(max(lengths[batch]) * len(batch) for batch in EpochBatches(lengths, batch_size=16, seed=0))
    assert padded < 1.2 * lengths.sum()


def test_sort_batches_puts_the_longest_first() -> None:
    assert sort_batches(np.array([3, 9, 1, 9]), batch_size=3) == [[1, 3, 0], [2]]
