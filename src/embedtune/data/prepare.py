"""Clean labelled texts and split them without leaks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from embedtune.data.assign import assign_clusters
from embedtune.data.audit import build_audit, check_labels, check_parts
from embedtune.data.clean import (
    BoolArray,
    find_clusters,
    has_own_test,
    keep_copies,
    merge_duplicates,
    separate_rows,
)
from embedtune.data.dataset import TextDataset, fingerprint
from embedtune.data.duplicates import IntArray, renumber
from embedtune.data.splits import PARTS, Splits, read_splits, write_splits
from embedtune.errors import DataError

__all__ = ["Splits", "fingerprint", "prepare_splits", "read_splits", "write_splits"]


def prepare_splits(
    dataset: TextDataset,
    *,
    tune_fraction: float = 0.3,
    test_fraction: float = 0.2,
    near_duplicate: float = 0.8,
    max_rows: int | None = None,
    keep_together: bool = True,
    seed: int = 0,
) -> tuple[Splits, dict[str, Any]]:
    """Clean, deduplicate, cluster and split a data set.

    Rows of one text (`embedtune.data.duplicates.fold_text`) become one, the first; where their labels
    differ, all of them go. Near-duplicates and rows of one group form clusters, and a cluster stands in one
    part. Where the data brings its own test rows, they are the test part, and training rows of a cluster
    that stands in it go; where it brings times, the latest rows are its test rows.

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
        Keep at most so many rows, a stratified sample of whole clusters; the data's own test rows are all kept and
        don't count.
    keep_together : bool
        False shows what leaks do: copies are kept, and copies, near-duplicates and groups straddle the parts.
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
        If a setting is out of range, there is one class only, a class is too small to be split, or the data brings
        times and test rows, or one time only.
    """
    _check_settings(tune_fraction, test_fraction, near_duplicate, max_rows)
    name = dataset.name
    if dataset.times is not None:
        dataset = split_by_time(dataset, share=(1 - tune_fraction) * test_fraction)
    usable = [i for i, text in enumerate(dataset.texts) if text.strip() and dataset.labels[i].strip()]
    check_labels([dataset.labels[i] for i in usable], name=name, when="as read")
    merged = merge_duplicates(dataset, usable) if keep_together else keep_copies(dataset, usable)
    check_labels(
        [dataset.labels[i] for i in merged.rows],
        name=name,
        when="after merging copies and dropping conflicts",
    )
    clusters = (
        find_clusters(dataset, merged, threshold=near_duplicate)
        if keep_together
        else separate_rows(dataset, merged)
    )
    row_labels = [dataset.labels[i] for i in merged.rows]
    labels = np.unique(np.array(row_labels, dtype=object), return_inverse=True)[1].astype(np.int64)
    kept = _sample(labels, clusters.joined, ~clusters.leaked, clusters.in_test, max_rows, seed)
    check_labels([row_labels[i] for i in kept], name=name, when=_name_stage(max_rows))
    groups = renumber(clusters.joined[kept])
    part = _assign(labels[kept], groups, clusters.in_test[kept], tune_fraction, test_fraction, seed)
    row_ids = dataset.row_ids or range(len(dataset))
    splits = Splits(
        texts=tuple(dataset.texts[merged.rows[i]] for i in kept),
        labels=tuple(row_labels[i] for i in kept),
        groups=tuple(groups.tolist()),
        part=tuple(PARTS[p] for p in part),
        row_ids=tuple(row_ids[merged.rows[i]] for i in kept),
        sources=None if dataset.sources is None else tuple(dataset.sources[merged.rows[i]] for i in kept),
    )
    own_test = has_own_test(dataset)
    check_parts(splits, own_test=own_test, name=name)
    settings = {
        "by_time": dataset.times is not None,
        "tune_fraction": tune_fraction,
        "test_fraction": None if own_test else test_fraction,
        "near_duplicate": near_duplicate,
        "max_rows": max_rows,
        "keep_together": keep_together,
        "seed": seed,
    }
    audit = build_audit(dataset, merged, clusters, splits, near=clusters.near[kept], settings=settings)
    return splits, audit


def split_by_time(dataset: TextDataset, *, share: float) -> TextDataset:
    """Return the data with its latest rows as its own test rows: about `share` of them, rows of one time together.

    Raises
    ------
    DataError
        If it has test rows already, or no two times.
    """
    if dataset.split is not None and has_own_test(dataset):
        raise DataError(
            f"{dataset.name} has test rows of its own and a time column: leave one of the two out."
        )
    times = np.asarray(dataset.times)
    ordered = np.unique(times)
    if len(ordered) < 2:
        raise DataError(f"all rows of {dataset.name} are of one time: leave the time column out.")
    later = np.array([(times >= cut).mean() for cut in ordered[1:]])
    cut = ordered[1:][int(np.abs(later - share).argmin())]
    return dataclasses.replace(dataset, split=tuple(np.where(times >= cut, "test", "train").tolist()))


def _name_stage(max_rows: int | None) -> str:
    return "after cleaning" if max_rows is None else f"in the sample of max_rows={max_rows}"


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


def _sample(
    labels: IntArray,
    clusters: IntArray,
    usable: BoolArray,
    in_test: BoolArray,
    max_rows: int | None,
    seed: int,
) -> IntArray:
    """Choose rows by whole clusters, `max_rows` at most beside the data's own test rows."""
    rows = np.flatnonzero(usable & ~in_test)
    if max_rows is not None and len(rows) > max_rows:
        share = max_rows / len(rows)
        own_clusters = renumber(clusters[rows])
        picked = assign_clusters(labels[rows], own_clusters, shares=(share, 1 - share), seed=seed) == 0
        rows = rows[_trim(picked, own_clusters, labels[rows], max_rows)]
    return np.union1d(rows, np.flatnonzero(usable & in_test))


def _trim(picked: BoolArray, clusters: IntArray, labels: IntArray, limit: int) -> BoolArray:
    """Give up clusters, the smallest of the largest class first, until `limit` rows are left."""
    picked = picked.copy()
    while picked.sum() > limit:
        sizes = np.bincount(clusters[picked], minlength=clusters.max() + 1)
        most = np.bincount(labels[picked]).argmax()
        having = np.unique(clusters[picked & (labels == most)])
        picked &= clusters != having[sizes[having].argmin()]
    return picked


def _assign(
    labels: IntArray, clusters: IntArray, in_test: BoolArray, tune: float, test: float, seed: int
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
