"""Tell rows that can be labelled from those that can't."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from embedtune.data.delimited import MAX_TEXT_CHARACTERS
from embedtune.data.lines import is_damaged
from embedtune.data.pieces import Piece, list_cells, show_row
from embedtune.data.records import Record


class SortedRows(NamedTuple):
    """A piece's rows, sorted.

    Attributes
    ----------
    table : pyarrow.Table
        Those that have a text, all columns as they were.
    texts : list of str
        Theirs, stripped.
    rejected : list of Record
        The others, in the file's order.
    """

    table: pa.Table
    texts: list[str]
    rejected: list[Record]


def sort_rows(piece: Piece, column: str, *, added: Sequence[str]) -> SortedRows:
    """Take the texts out of a piece; `added` are names that its rows can't have."""
    table = piece.table
    cells = list_cells(table, column) if column in table.column_names else [None] * len(table)
    taken = {name: list_cells(table, name) for name in added if name in table.column_names}
    kept, texts, rejected = [], [], list(piece.rejected)
    for i, cell in enumerate(cells):
        reason = explain_cell(cell)
        reason = next(
            (f"it has a '{name}' of its own" for name in taken if taken[name][i] is not None), reason
        )
        if reason is None:
            kept.append(i)
            texts.append(cell.strip())
        else:
            line = 0 if piece.lines is None else piece.lines[i]
            rejected.append(Record(piece.rows[i], line, None, reason, show_row(table, i)))
    if len(kept) < len(table):
        table = table.take(pa.array(kept, pa.int64()))
    return SortedRows(table.drop_columns(list(taken)), texts, sorted(rejected, key=lambda record: record.row))


def explain_cell(cell: Any) -> str | None:
    """Say why a cell is no text, None if it is one."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "no text"
    if not isinstance(cell, str):
        return f"not a text but {_name_type(cell)}"
    if not cell.strip():
        return "no text"
    if len(cell) > MAX_TEXT_CHARACTERS:
        return f"a text of {len(cell):,} characters, more than {MAX_TEXT_CHARACTERS:,}"
    if "\0" in cell:
        return "a NUL character in the text"
    return "half a character (a lone surrogate) in the text" if is_damaged(cell) else None


def _name_type(cell: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    return names.get(type(cell), f"a {type(cell).__name__}")
