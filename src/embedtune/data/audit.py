"""What preparing did to the rows, as plain numbers: what was dropped, merged and kept, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedtune.data.clean import Clusters, Merged
from embedtune.data.columns import MAX_LABELS, quote_names
from embedtune.data.dataset import TextDataset, fingerprint
from embedtune.data.duplicates import IntArray, renumber
from embedtune.data.splits import PARTS, Splits
from embedtune.errors import DataError

#: Fewer rows than this can't be spread over three parts.
MIN_ROWS_PER_CLASS = 5
_N_LISTED = 50
_N_CLUSTERS_LISTED = 10
_N_TEXTS_LISTED = 3
_SHOWN_CHARACTERS = 200


def check_labels(labels: Sequence[str], *, name: str, when: str) -> None:
    """Raise `DataError` unless there are rows of two classes or more, each of `MIN_ROWS_PER_CLASS` or more.

    Parameters
    ----------
    labels : sequence of str
        One per row.
    name : str
        The data set's name, for messages.
    when : str
        Which rows these are, for messages: ``"as read"`` or ``"after cleaning"``.
    """
    if not labels:
        raise DataError(f"{name} has no rows {when}: give rows with a text and a label.")
    names, counts = np.unique(np.array(labels, dtype=object), return_counts=True)
    if len(names) == 1:
        raise DataError(
            f"{name} has one class {when}, '{names[0]}': two or more are needed. Check the label column."
        )
    if len(names) > MAX_LABELS:
        raise DataError(
            f"{name} has {len(names):,} distinct labels {when}, more than {MAX_LABELS} classes: "
            "is this the text column? Name the label column with label_column."
        )
    small = [f"'{n}' ({count})" for n, count in zip(names, counts, strict=True) if count < MIN_ROWS_PER_CLASS]
    if small:
        classes = "class" if len(small) == 1 else "classes"
        listed = ", ".join(small[:20]) + (f" and {len(small) - 20} more" if len(small) > 20 else "")
        raise DataError(
            f"{name} has fewer than {MIN_ROWS_PER_CLASS} rows {when} in {classes} {listed}: "
            "add rows, merge classes or drop them."
        )


def check_parts(splits: Splits, *, own_test: bool, name: str) -> None:
    """Raise `DataError` unless every class stands in every part (a test part of the data's own may lack some)."""
    for part in PARTS[: 2 if own_test else 3]:
        here = {splits.labels[i] for i in splits.rows(part)}
        missing = [label for label in splits.label_names if label not in here]
        if missing:
            raise DataError(
                f"{name}: no row of {quote_names(missing)} is left for the {part} rows, for near-duplicates and "
                "groups stay together. Add rows of other origin, raise near_duplicate towards 1, or drop the class."
            )


def build_audit(
    dataset: TextDataset,
    merged: Merged,
    clusters: Clusters,
    splits: Splits,
    *,
    near: IntArray,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Say what became of every row.

    ``rows`` adds up: read = refused + empty + conflicting + merged + leaked + sampled_out + kept. Lists name rows by
    their number in the source, from 0, and stop at `_N_LISTED` entries.

    Parameters
    ----------
    near : ndarray of shape (n_kept,), int64
        Near-duplicate cluster of each of the splits' rows.
    """
    n_refused = sum(n for _, n in dataset.refused)
    n_read = len(dataset) + dataset.n_dropped + n_refused
    n_conflicting = sum(len(rows) for rows in merged.conflicts)
    n_leaked = int(clusters.leaked.sum())
    return {
        "schema": 1,
        "name": dataset.name,
        "fingerprint": fingerprint(dataset),
        "settings": settings,
        "own_test_rows": bool(clusters.in_test.any()),
        "rows": {
            "read": n_read,
            "refused": n_refused,
            "empty": n_read - n_refused - len(merged.rows) - len(merged.copies) - n_conflicting,
            "conflicting": n_conflicting,
            "merged": len(merged.copies),
            "leaked": n_leaked,
            "sampled_out": len(merged.rows) - n_leaked - len(splits),
            "kept": len(splits),
        },
        "refused_labels": dict(dataset.refused),
        "parts": {part: len(splits.rows(part)) for part in PARTS},
        "classes": count_classes(splits),
        "characters": describe_lengths(splits.texts),
        "n_clusters": len(set(splits.groups)),
        "n_conflicts": len(merged.conflicts),
        "conflicts": _list_conflicts(dataset, merged),
        "near_duplicates": _describe_near(splits, renumber(near), threshold=settings["near_duplicate"]),
        "leaks": _list_leaks(dataset, merged, clusters),
    }


def describe_lengths(texts: Sequence[str]) -> dict[str, float]:
    """Return min, median, mean, 95th percentile and max of the texts' lengths in characters."""
    n = np.array([len(text) for text in texts])
    return {
        "min": int(n.min()),
        "median": float(np.median(n)),
        "mean": round(float(n.mean()), 1),
        "p95": float(np.percentile(n, 95)),
        "max": int(n.max()),
    }


def count_classes(splits: Splits) -> dict[str, dict[str, int]]:
    """Return ``{label: {"tune", "train", "test", "total"}}``."""
    counts = {label: dict.fromkeys((*PARTS, "total"), 0) for label in splits.label_names}
    for label, part in zip(splits.labels, splits.part, strict=True):
        counts[label][part] += 1
        counts[label]["total"] += 1
    return counts


def _list_conflicts(dataset: TextDataset, merged: Merged) -> list[dict[str, Any]]:
    row_ids = dataset.row_ids or range(len(dataset))
    return [
        {
            "text": _shorten(dataset.texts[rows[0]]),
            "rows": [row_ids[i] for i in rows[:_N_LISTED]],
            "labels": [dataset.labels[i] for i in rows[:_N_LISTED]],
        }
        for rows in merged.conflicts[:_N_LISTED]
    ]


def _list_leaks(dataset: TextDataset, merged: Merged, clusters: Clusters) -> list[dict[str, Any]]:
    row_ids = dataset.row_ids or range(len(dataset))
    test_rows: dict[int, int] = {}
    for k in np.flatnonzero(clusters.in_test).tolist():
        test_rows.setdefault(int(clusters.joined[k]), merged.rows[k])
    leaks = []
    for k in np.flatnonzero(clusters.leaked).tolist()[:_N_LISTED]:
        row, test_row = merged.rows[k], test_rows[int(clusters.joined[k])]
        leaks.append(
            {"row": row_ids[row], "test_row": row_ids[test_row], "text": _shorten(dataset.texts[row])}
        )
    return leaks


def _describe_near(splits: Splits, near: IntArray, *, threshold: float) -> dict[str, Any]:
    """Describe the clusters of near-duplicates, the largest few with their first texts."""
    sizes = np.bincount(near)
    members = np.split(np.argsort(near, kind="stable"), np.cumsum(sizes)[:-1])
    several = np.flatnonzero(sizes > 1)
    conflicting = [k for k in several if len({splits.labels[i] for i in members[k]}) > 1]
    largest = several[np.argsort(-sizes[several], kind="stable")][:_N_CLUSTERS_LISTED]
    return {
        "threshold": threshold,
        "n_clusters": len(several),
        "n_rows": int(sizes[several].sum()),
        "n_clusters_of_several_labels": len(conflicting),
        "conflicting": [[splits.row_ids[i] for i in members[k]] for k in conflicting],
        "largest": [
            {
                "size": int(sizes[k]),
                "rows": [splits.row_ids[i] for i in members[k][:_N_LISTED]],
                "labels": sorted({splits.labels[i] for i in members[k]}),
                "texts": [_shorten(splits.texts[i]) for i in members[k][:_N_TEXTS_LISTED]],
            }
            for k in largest
        ],
    }


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
