"""Read a table piece by piece, so that a file may be larger than memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from embedtune.data.tables import build_frame, read_json_line, read_table
from embedtune.data.textfile import open_text
from embedtune.errors import DataError


@dataclass(frozen=True)
class TableStream:
    """A table that is read as often as it is gone through.

    Attributes
    ----------
    columns : tuple of str
        Of every piece, in this order.
    n_rows : int
    read : callable
        Takes the most rows of a piece and returns an iterator of frames as `read_table` makes them.
    """

    columns: tuple[str, ...]
    n_rows: int
    read: Callable[[int], Iterator[pd.DataFrame]]


def open_table(path: Path, *, encoding: str | None = None) -> TableStream:
    """Look through a table and return it as a stream.

    JSON lines are gone through once here, so that a broken line is told before anything long starts, and never
    held; every other format is read as a whole.

    Raises
    ------
    DataError
        As `read_table` does.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _open_json_lines(path, encoding)
    frame = read_table(path, encoding=encoding).reset_index(drop=True)

    def read(n_rows: int) -> Iterator[pd.DataFrame]:
        for start in range(0, len(frame), n_rows):
            yield frame.iloc[start : start + n_rows].reset_index(drop=True)

    return TableStream(tuple(map(str, frame.columns)), len(frame), read)


def _open_json_lines(path: Path, encoding: str | None) -> TableStream:
    columns: dict[str, None] = {}
    n_rows = 0
    for record in _read_records(path, encoding):
        columns.update(dict.fromkeys(record))
        n_rows += 1
    if not n_rows:
        raise DataError(f"{path.name} has no rows: give a file with a header and at least one row.")
    names = tuple(columns)

    def read(n_rows: int) -> Iterator[pd.DataFrame]:
        records = _read_records(path, encoding)
        while piece := list(itertools.islice(records, n_rows)):
            rows = [[record.get(name) for name in names] for record in piece]
            yield build_frame(names, rows, name=path.name)

    return TableStream(names, n_rows, read)


def _read_records(path: Path, encoding: str | None) -> Iterator[dict[str, Any]]:
    with open_text(path, encoding=encoding) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield read_json_line(line.rstrip("\n"), number=number, name=path.name)
