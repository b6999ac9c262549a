"""Clean labelled texts and split them without leaks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from embedtune.data import audit as auditing
from embedtune.data.assign import assign_clusters
from embedtune.data.dataset import TextDataset
from embedtune.data.duplicates import find_near_duplicates, fold_text, join_clusters, renumber
from embedtune.data.splits import PARTS, Splits, read_splits, write_splits
from embedtune.errors import DataError

__all__ = ["Splits", "fingerprint", "prepare_splits", "read_splits", "write_splits"]

IntArray = npt.NDArray[np.int64]


def prepare_splits(
    dataset: TextDataset,
    *,
    tune_fraction: float = 0.3,
    test_fraction: float = 0.2,
    near_duplicate: float = 0.8,
    max_rows: int | None = None,
    seed: int = 0,
) -> tuple[Splits, dict[str, Any]]:
    """Clean, deduplicate, cluster and split a data set.

    Rows of one text (`embedtune.data.duplicates.fold_text`) become one, the first; where their labels
    differ, all of them go. Near-duplicates and rows of one group form clusters, and a cluster stands in one
    part. Where the data brings its own test rows, they are the test part, and training rows of a cluster
    that stands in it go.

    Parameters
    ----------
    dataset : TextDataset
        As `embedtune.data.sources.load_dataset` gives it.
    tune_fraction : float
        Share of the rows (of the training rows where the data has its own test rows) for fine-tuning.
    test_fraction : float
        Share of the rest for testing; unused where the data has its own test rows.
    near_duplicate : float
        Jaccard similarity of character shingles from which texts are near-duplicates; 1 looks for none.
    max_rows : int, optional
        Keep at most so many rows: a stratified sample of whole clusters.
    seed : int
        Decides which rows go where; the same data and seed give the same splits.

    Returns
    -------
    splits : Splits
        Rows in the source's order.
    audit : dict
        JSON-able: what was dropped, merged and kept, and why.

    Raises
    ------
    DataError
        If a setting is out of range, there is one class only, or a class is too small to be split.
    """
    _check_settings(tune_fraction, test_fraction, near_duplicate, max_rows)
    usable = [i for i, text in enumerate(dataset.texts) if text.strip() and dataset.labels[i].strip()]
    auditing.check_labels([dataset.labels[i] for i in usable], name=dataset.name, when="as read")
    row_ids = dataset.row_ids or tuple(range(len(dataset)))
    merged = _merge_duplicates(dataset, usable)
    near, clusters = _cluster(dataset, merged, near_duplicate)
    own_test = dataset.split is not None and "test" in dataset.split and "train" in dataset.split
    in_test = np.array(
        [own_test and dataset.split is not None and dataset.split[i] == "test" for i in merged.rows]
    )
    leaked = ~in_test & np.isin(clusters, clusters[in_test])
    labels = np.unique(np.array([dataset.labels[i] for i in merged.rows], dtype=object), return_inverse=True)[
        1
    ]
    kept = _sample(labels, clusters, ~leaked, in_test, max_rows, seed)
    auditing.check_labels(
        [dataset.labels[merged.rows[i]] for i in kept], name=dataset.name, when="after cleaning"
    )
    part = _assign(labels[kept], renumber(clusters[kept]), in_test[kept], tune_fraction, test_fraction, seed)
    rows = [merged.rows[i] for i in kept]
    splits = Splits(
        texts=tuple(dataset.texts[i] for i in rows),
        labels=tuple(dataset.labels[i] for i in rows),
        groups=tuple(renumber(clusters[kept]).tolist()),
        part=tuple(PARTS[p] for p in part),
        row_ids=tuple(row_ids[i] for i in rows),
    )
    auditing.check_parts(splits, own_test=own_test, name=dataset.name)
    n_read = len(dataset) + dataset.n_dropped
    leak_ids = [row_ids[merged.rows[i]] for i in np.flatnonzero(leaked)]
    return splits, {
        "schema": 1,
        "name": dataset.name,
        "fingerprint": fingerprint(dataset),
        "settings": {
            "tune_fraction": tune_fraction,
            "test_fraction": None if own_test else test_fraction,
            "near_duplicate": near_duplicate,
            "max_rows": max_rows,
            "seed": seed,
        },
        "own_test_rows": own_test,
        "rows": {
            "read": n_read,
            "empty": n_read - len(usable),
            "conflicting": sum(len(copies) for copies in merged.conflicts),
            "merged": merged.n_merged,
            "leaked": len(leak_ids),
            "sampled_out": len(merged.rows) - len(leak_ids) - len(splits),
            "kept": len(splits),
        },
        "parts": {name: len(splits.rows(name)) for name in PARTS},
        "classes": auditing.count_classes(splits),
        "characters": auditing.describe_lengths(splits.texts),
        "n_conflicts": len(merged.conflicts),
        "conflicts": auditing.list_conflicts(merged.conflicts, dataset.texts, dataset.labels, row_ids),
        "near_duplicates": auditing.describe_clusters(splits, renumber(near[kept]), threshold=near_duplicate),
        "n_clusters": len(set(splits.groups)),
        "leaks": auditing.list_rows(leak_ids),
    }


def fingerprint(dataset: TextDataset) -> str:
    """Return the SHA-256 of texts, labels, groups and split, as hexadecimal text."""
    digest = hashlib.sha256()
    for column in (dataset.texts, dataset.labels, dataset.groups, dataset.split):
        digest.update(b"-" if column is None else f"{len(column)}:".encode())
        for value in column or ():
            data = value.encode("utf-8", "surrogatepass")
            digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def _check_settings(
    tune_fraction: float, test_fraction: float, near_duplicate: float, max_rows: int | None
) -> None:
    for name, value in (("tune_fraction", tune_fraction), ("test_fraction", test_fraction)):
        if not 0 < value < 1:
            raise DataError(f"{name} is {value}: give a share between 0 and 1, such as 0.3.")
    if not 0 < near_duplicate <= 1:
        raise DataError(
            f"near_duplicate is {near_duplicate}: give a similarity above 0, up to 1 (1 looks for none)."
        )
    if max_rows is not None and max_rows < 1:
        raise DataError(f"max_rows is {max_rows}: give a number of rows, or leave it out to keep all.")


class _Merged(NamedTuple):
    rows: list[int]
    keys: list[str]
    same_group: list[tuple[int, int]]
    conflicts: list[list[int]]
    n_merged: int


def _merge_duplicates(dataset: TextDataset, usable: Sequence[int]) -> _Merged:
    """Keep one row per folded text and side; drop texts whose labels differ on one side."""
    copies: dict[tuple[str, str], list[int]] = {}
    for i in usable:
        side = dataset.split[i] if dataset.split else ""
        copies.setdefault((fold_text(dataset.texts[i]), side), []).append(i)
    rows, keys, same_group, conflicts, n_merged = [], [], [], [], 0
    for (key, _), members in copies.items():
        if len({dataset.labels[i] for i in members}) > 1:
            conflicts.append(members)
            continue
        rows.append(members[0])
        keys.append(key)
        same_group.extend((members[0], other) for other in members[1:])
        n_merged += len(members) - 1
    return _Merged(rows, keys, same_group, conflicts, n_merged)


def _cluster(dataset: TextDataset, merged: _Merged, threshold: float) -> tuple[IntArray, IntArray]:
    """Number every kept row's near-duplicate cluster, and its cluster with groups joined in."""
    n = len(merged.rows)
    compared = merged.keys
    if dataset.compared is not None:
        compared = [fold_text(dataset.compared[i]) for i in merged.rows]
    distinct = list(dict.fromkeys(compared))
    number = {text: k for k, text in enumerate(distinct)}
    text_of_row = np.array([number[text] for text in compared], dtype=np.int64)
    pairs = (
        find_near_duplicates(distinct, threshold=threshold)
        if threshold < 1
        else np.empty((0, 2), dtype=np.int64)
    )
    near = renumber(join_clusters(len(distinct), [pairs])[text_of_row])
    if dataset.groups is None:
        return near, near
    # Nodes: clusters, then groups; a row ties its cluster to its group, a merged copy to its group too.
    group_numbers = {group: k for k, group in enumerate(dict.fromkeys(dataset.groups))}
    n_near = int(near.max()) + 1
    near_of_row = dict(zip(merged.rows, near.tolist(), strict=True))
    ties = [(near_of_row[i], n_near + group_numbers[dataset.groups[i]]) for i in merged.rows]
    ties += [
        (near_of_row[i], n_near + group_numbers[dataset.groups[other]]) for i, other in merged.same_group
    ]
    joined = join_clusters(n_near + len(group_numbers), [np.array(ties, dtype=np.int64).reshape(-1, 2)])
    clusters = renumber(joined[near])
    assert len(clusters) == n
    return near, clusters


def _sample(
    labels: IntArray,
    clusters: IntArray,
    usable: npt.NDArray[np.bool_],
    in_test: npt.NDArray[np.bool_],
    max_rows: int | None,
    seed: int,
) -> IntArray:
    """Choose rows by whole clusters, `max_rows` at most, training and test rows in proportion."""
    rows = np.flatnonzero(usable)
    if max_rows is None or len(rows) <= max_rows:
        return rows
    share = max_rows / len(rows)
    chosen = []
    for side in (rows[~in_test[rows]], rows[in_test[rows]]):
        if not len(side):
            continue
        limit = int(len(side) * share)
        side_clusters = renumber(clusters[side])
        picked = assign_clusters(labels[side], side_clusters, shares=(share, 1 - share), seed=seed) == 0
        picked = _trim(picked, side_clusters, labels[side], limit)
        chosen.append(side[picked])
    return np.sort(np.concatenate(chosen))


def _trim(
    picked: npt.NDArray[np.bool_], clusters: IntArray, labels: IntArray, limit: int
) -> npt.NDArray[np.bool_]:
    """Give up clusters, the smallest of the largest class first, until `limit` rows are left."""
    picked = picked.copy()
    while picked.sum() > limit:
        sizes = np.bincount(clusters[picked], minlength=clusters.max() + 1)
        most = np.bincount(labels[picked]).argmax()
        having = np.unique(clusters[picked & (labels == most)])
        picked &= clusters != having[sizes[having].argmin()]
    return picked


def _assign(
    labels: IntArray, clusters: IntArray, in_test: npt.NDArray[np.bool_], tune: float, test: float, seed: int
) -> IntArray:
    part = np.full(len(labels), PARTS.index("test"), dtype=np.int64)
    if in_test.any():
        rest = np.flatnonzero(~in_test)
        part[rest] = assign_clusters(
            labels[rest], renumber(clusters[rest]), shares=(tune, 1 - tune), seed=seed
        )
        return part
    shares = (tune, (1 - tune) * (1 - test), (1 - tune) * test)
    return assign_clusters(labels, clusters, shares=shares, seed=seed)
