"""Turn a table's columns into texts and labels: find the columns, check every cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from embedtune.data.dataset import TextDataset
from embedtune.data.delimited import MAX_TEXT_CHARACTERS
from embedtune.data.lines import is_damaged
from embedtune.errors import DataError, suggest_nearest

#: Names that mean the text or the label where the user names none, the likeliest first.
TEXT_NAMES = (
    "text", "sentence", "content", "headline", "news", "tweet", "title", "review", "document", "body",
    "message", "comment", "phrase", "summary", "description",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "sentiment", "target", "class", "category", "topic", "answer", "polarity", "y",
)  # fmt: skip

#: More distinct labels than this are texts, numbers or row ids.
MAX_LABELS = 500

_TEST_NAMES = {"test"}
_TRAIN_NAMES = {"train", "training"}
_VALIDATION_NAMES = {"validation", "valid", "val", "dev"}


class Rows(NamedTuple):
    """A table's usable rows; `row_ids` are row numbers in the table, from 0."""

    texts: list[str]
    labels: list[str]
    groups: list[str] | None
    split: list[str] | None
    times: list[float] | None
    sources: list[str] | None
    row_ids: list[int]
    n_rows: int


def read_rows(
    frame: pd.DataFrame,
    *,
    name: str,
    text_column: str | None,
    label_column: str | None,
    group_column: str | None,
    time_column: str | None = None,
    source_column: str | None = None,
) -> Rows:
    """Take texts, labels and what else is named out of a table; leave out rows without text or label.

    A row without a group is a group of its own, and one without a source has the source ``(none)``. A column called
    split counts where its values are train, test, validation and their like; validation rows are training rows where
    there are test rows too.

    Raises
    ------
    DataError
        If a column isn't there, a cell can't be a text, a label or a time, or the label column looks like texts.
    """
    text_column = find_column(frame, text_column, TEXT_NAMES, kind="text", name=name)
    label_column = find_column(frame, label_column, LABEL_NAMES, kind="label", name=name)
    texts = read_texts(frame[text_column].tolist(), name=name, column=text_column)
    labels = [read_label(v, row=i, name=name, column=label_column) for i, v in enumerate(frame[label_column])]
    n_distinct = len(set(labels))
    if n_distinct > MAX_LABELS:
        raise DataError(
            f"column '{label_column}' of {name} has {n_distinct:,} distinct values, more than {MAX_LABELS} classes: "
            "is this the text column? Name the label column with label_column."
        )
    kept = [i for i, (text, label) in enumerate(zip(texts, labels, strict=True)) if text and label]
    groups = None
    if group_column is not None:
        group_column = find_column(frame, group_column, (), kind="group", name=name)
        values = [
            read_label(v, row=i, name=name, column=group_column) for i, v in enumerate(frame[group_column])
        ]
        groups = [values[i] or f"row {i}" for i in kept]
    split = _read_split(frame, kept)
    times = None
    if time_column is not None:
        time_column = find_column(frame, time_column, (), kind="time", name=name)
        cells = [frame[time_column].iloc[i] for i in kept]
        times = _read_times(cells, kept, name=name, column=time_column)
    sources = None
    if source_column is not None:
        source_column = find_column(frame, source_column, (), kind="source", name=name)
        cells = frame[source_column].tolist()
        sources = [read_label(cells[i], row=i, name=name, column=source_column) or "(none)" for i in kept]
    return Rows(
        [texts[i] for i in kept],
        [labels[i] for i in kept],
        groups=groups,
        split=split,
        times=times,
        sources=sources,
        row_ids=kept,
        n_rows=len(frame),
    )


def join_rows(parts: Sequence[Rows], *, name: str) -> TextDataset:
    """Put the training table's rows, and the test table's where there are two, into one data set."""
    first = parts[0]
    split = first.split
    if len(parts) == 2:
        split = ["train"] * len(first.texts) + ["test"] * len(parts[1].texts)
    starts = [sum(part.n_rows for part in parts[:i]) for i in range(len(parts))]
    return TextDataset(
        texts=tuple(text for part in parts for text in part.texts),
        labels=tuple(label for part in parts for label in part.labels),
        groups=None if first.groups is None else tuple(g for part in parts for g in part.groups or ()),
        split=None if split is None else tuple(split),
        times=None if first.times is None else tuple(t for part in parts for t in part.times or ()),
        sources=None if first.sources is None else tuple(s for part in parts for s in part.sources or ()),
        name=name,
        n_dropped=sum(part.n_rows - len(part.texts) for part in parts),
        row_ids=tuple(start + i for start, part in zip(starts, parts, strict=True) for i in part.row_ids),
    )


def find_column(frame: pd.DataFrame, given: str | None, known: Sequence[str], *, kind: str, name: str) -> str:
    """Return the column called `given`, else the first that bears a `known` name, in any case."""
    columns = [str(column) for column in frame.columns]
    if given is not None:
        if given in columns:
            return given
        raise DataError(
            f"{name} has no column '{given}'{suggest_nearest(given, columns)}. Its columns: {quote_names(columns)}."
        )
    by_folded = {column.casefold(): column for column in reversed(columns)}
    for candidate in known:
        if candidate in by_folded:
            return by_folded[candidate]
    raise DataError(
        f"{name} has no column that is plainly the {kind}. Its columns: {quote_names(columns)}. "
        f"Name one with {kind}_column."
    )


def quote_names(names: Sequence[str], limit: int = 20) -> str:
    """Return ``'a', 'b' and 3 more`` for a message."""
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_texts(cells: Sequence[Any], *, name: str, column: str, first_row: int = 1) -> list[str]:
    """Return the cells' texts, stripped, ``""`` for null cells; `first_row` is the first cell's number in the table.

    Raises
    ------
    DataError
        If a cell isn't text, holds a NUL or half a character or is longer than `MAX_TEXT_CHARACTERS`, or if all cells
        are numbers.
    """
    texts = []
    for row, cell in enumerate(cells, start=first_row):
        if _is_null(cell):
            texts.append("")
            continue
        if not isinstance(cell, str):
            raise DataError(
                f"column '{column}' of {name} holds a {_name_type(cell)} in row {row}, not a text. "
                "Name the column of texts with text_column."
            )
        if len(cell) > MAX_TEXT_CHARACTERS:
            raise DataError(
                f"row {row} of {name} has a text of {len(cell):,} characters, more than {MAX_TEXT_CHARACTERS:,}. "
                "Cut it into passages or leave it out."
            )
        if "\0" in cell:
            raise DataError(f"row {row} of {name} has a NUL character in its text. Remove it.")
        if is_damaged(cell):
            raise DataError(
                f"row {row} of {name} has half a character (a lone surrogate) in its text. Remove it."
            )
        texts.append(cell.strip())
    if first_row == 1 and any(texts) and all(is_number(text) for text in texts if text):
        raise DataError(
            f"column '{column}' of {name} holds nothing but numbers. Name the column of texts with text_column."
        )
    return texts


def read_label(cell: Any, *, row: int, name: str, column: str) -> str:
    """Return a cell as a label, ``""`` for a null cell: 2 and 2.0 become ``"2"``, True ``"true"``."""
    if _is_null(cell):
        return ""
    if isinstance(cell, str):
        if is_damaged(cell):
            raise DataError(
                f"column '{column}' of {name} holds half a character (a lone surrogate) in row {row + 1}: remove it."
            )
        return cell.strip()
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, list | tuple | dict | set | bytes):
        raise DataError(
            f"column '{column}' of {name} holds a {_name_type(cell)} in row {row + 1}: give one value per row."
        )
    return str(cell)


def _read_times(cells: Sequence[Any], rows: Sequence[int], *, name: str, column: str) -> list[float]:
    """Return times as numbers that sort as they do: seconds since 1970, or the numbers that the column holds."""
    times = []
    for row, cell in zip(rows, cells, strict=True):
        try:
            is_numeric = isinstance(cell, int | float) or is_number(str(cell))
            time = float(cell) if is_numeric else pd.Timestamp(cell).timestamp()
        except (ValueError, TypeError, OverflowError):
            time = math.nan
        if not math.isfinite(time):
            raise DataError(
                f"column '{column}' of {name} holds {cell!r} in row {row + 1}, which is no time: give dates such as "
                "2024-05-31 or 2024-05-31 17:45, or numbers."
            )
        times.append(time)
    return times


def _read_split(frame: pd.DataFrame, kept: Sequence[int]) -> list[str] | None:
    column = next((str(c) for c in frame.columns if str(c).casefold() == "split"), None)
    if column is None:
        return None
    values = [str(value).strip().casefold() for value in frame[column].tolist()]
    values = [values[i] for i in kept]
    present = set(values)
    if not present <= _TEST_NAMES | _TRAIN_NAMES | _VALIDATION_NAMES:
        return None
    test_names = _TEST_NAMES if present & _TEST_NAMES else _VALIDATION_NAMES
    if not present & test_names or present <= test_names:
        return None
    return ["test" if value in test_names else "train" for value in values]


def _is_null(cell: Any) -> bool:
    return cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and math.isnan(cell))


def is_number(text: str) -> bool:
    """Tell whether a text is a number and nothing else."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _name_type(cell: Any) -> str:
    return {"int": "number", "float": "number", "bool": "true/false value", "dict": "mapping"}.get(
        type(cell).__name__, type(cell).__name__
    )
