"""Merge copies, find clusters of rows that belong together, and find leaks into the data's own test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from embedtune.data.dataset import TextDataset
from embedtune.data.duplicates import IntArray, find_near_duplicates, fold_text, join_clusters, renumber

BoolArray = npt.NDArray[np.bool_]


@dataclass
class Merged:
    """One row per text.

    Attributes
    ----------
    rows : list of int
        Which rows of the data set are kept, ascending.
    keys : list of str
        Their folded texts.
    copies : list of (int, int)
        (kept row, merged row).
    conflicts : list of list of int
        Rows of one text with different labels; none of them is kept.
    """

    rows: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    conflicts: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Clusters:
    """Which kept rows belong together.

    Attributes
    ----------
    near : ndarray of shape (n,), int64
        Cluster of near-duplicates; rows without one have a number of their own.
    joined : ndarray of shape (n,), int64
        Near-duplicates and groups joined: what stays on one side of a split. From 0, none left out.
    in_test, leaked : ndarray of shape (n,), bool
        Rows of the data's own test part; training rows whose cluster stands in it.
    """

    near: IntArray
    joined: IntArray
    in_test: BoolArray
    leaked: BoolArray


def has_own_test(dataset: TextDataset) -> bool:
    """Say whether the data brings both training and test rows."""
    return dataset.split is not None and {"train", "test"} <= set(dataset.split)


def merge_duplicates(dataset: TextDataset, rows: Sequence[int]) -> Merged:
    """Keep the first row of every folded text, on each side of the data's own split; drop conflicting texts."""
    copies: dict[tuple[str, str], list[int]] = {}
    for i in rows:
        side = dataset.split[i] if dataset.split else ""
        copies.setdefault((fold_text(dataset.texts[i]), side), []).append(i)
    merged = Merged()
    for (key, _), members in copies.items():
        if len({dataset.labels[i] for i in members}) > 1:
            merged.conflicts.append(members)
            continue
        merged.rows.append(members[0])
        merged.keys.append(key)
        merged.copies.extend((members[0], other) for other in members[1:])
    return merged


def keep_copies(dataset: TextDataset, rows: Sequence[int]) -> Merged:
    """Keep every row as it is."""
    return Merged(rows=list(rows), keys=[fold_text(dataset.texts[i]) for i in rows])


def find_clusters(dataset: TextDataset, merged: Merged, *, threshold: float) -> Clusters:
    """Find which of the kept rows belong together, and which leak into the data's own test rows."""
    compared = merged.keys
    if dataset.compared is not None:
        compared = [fold_text(dataset.compared[i]) for i in merged.rows]
    number: dict[str, int] = {}
    text_of_row = np.array([number.setdefault(text, len(number)) for text in compared], dtype=np.int64)
    pairs = np.empty((0, 2), dtype=np.int64)
    if threshold < 1:
        pairs = find_near_duplicates(list(number), threshold=threshold)
    cluster_of_text = join_clusters(len(number), [pairs])
    together = renumber(cluster_of_text[text_of_row])
    joined = _join_groups(dataset, merged, together)
    in_test = _find_test(dataset, merged)
    return Clusters(
        near=_separate_equal(cluster_of_text, text_of_row),
        joined=joined,
        in_test=in_test,
        leaked=~in_test & np.isin(joined, joined[in_test]),
    )


def separate_rows(dataset: TextDataset, merged: Merged) -> Clusters:
    """Return clusters of one row each, whatever the rows have in common."""
    own = np.arange(len(merged.rows), dtype=np.int64)
    return Clusters(own, own, _find_test(dataset, merged), np.zeros(len(own), dtype=bool))


def _find_test(dataset: TextDataset, merged: Merged) -> BoolArray:
    own_test = has_own_test(dataset)
    return np.array(
        [own_test and dataset.split is not None and dataset.split[i] == "test" for i in merged.rows],
        dtype=bool,
    )


def _separate_equal(cluster_of_text: IntArray, text_of_row: IntArray) -> IntArray:
    """Number clusters of two compared texts or more; give rows of any other text a number of their own."""
    n_texts = np.bincount(cluster_of_text)
    cluster = cluster_of_text[text_of_row]
    return renumber(np.where(n_texts[cluster] > 1, cluster, len(n_texts) + np.arange(len(cluster))))


def _join_groups(dataset: TextDataset, merged: Merged, together: IntArray) -> IntArray:
    if dataset.groups is None:
        return together
    # Nodes are clusters, then groups: a row ties its cluster to its group, and a merged copy to its group too.
    groups = {group: k for k, group in enumerate(dict.fromkeys(dataset.groups))}
    start = int(together.max()) + 1
    cluster_of_row = dict(zip(merged.rows, together.tolist(), strict=True))
    ties = [(cluster_of_row[i], start + groups[dataset.groups[i]]) for i in merged.rows]
    ties += [(cluster_of_row[i], start + groups[dataset.groups[copy]]) for i, copy in merged.copies]
    joined = join_clusters(start + len(groups), [np.array(ties, dtype=np.int64)])
    return renumber(joined[together])
