"""Pieces of a table as Arrow tables, whatever the cells hold.

Text of delimited files is a column of strings. Cells that may be anything, a number here and a list there, are strings
of JSON, null where a row has no such cell; the field's metadata say so and which kinds of cells there are. Nothing is
lost or guessed until all pieces are known. Columns of typed formats stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from embedtune.data.records import MAX_CONTENT, Record, encode_json, shorten
from embedtune.data.tables import check_columns

#: A piece ends when its rows hold so many characters, or bytes, whatever their number.
MAX_PIECE_CHARACTERS = 8_000_000

_KINDS = b"embedtune:kinds"
#: The type that a column of JSON has where its cells are of no other kinds than these.
_TYPES: tuple[tuple[set[str], pa.DataType], ...] = (
    ({"text"}, pa.string()),
    ({"bool"}, pa.bool_()),
    ({"integer", "long"}, pa.int64()),
    ({"integer", "number"}, pa.float64()),
    ({"texts", "nulls"}, pa.list_(pa.string())),
    ({"integers", "longs", "nulls"}, pa.list_(pa.int64())),
    ({"numbers", "nulls"}, pa.list_(pa.float64())),
)
_INT64 = range(-(1 << 63), 1 << 63)


class Piece(NamedTuple):
    """Some rows of a table, one after the other.

    Attributes
    ----------
    table : pyarrow.Table
        Those that are rows.
    rows : sequence of int
        Their numbers in the file, from 1.
    lines : sequence of int or None
        The numbers of their first lines, where there are lines.
    rejected : list of Record
        Those that aren't.
    """

    table: pa.Table
    rows: Sequence[int]
    lines: Sequence[int] | None
    rejected: list[Record]


def take_piece(records: Iterator[Record], n_rows: int) -> list[Record]:
    """Return the next records: `n_rows`, or fewer if they are long."""
    taken: list[Record] = []
    n_characters = 0
    for record in records:
        taken.append(record)
        cells = record.cells or ()
        n_characters += sum(
            len(cell)
            for cell in (cells.values() if isinstance(cells, dict) else cells)
            if isinstance(cell, str)
        )
        if len(taken) == n_rows or n_characters >= MAX_PIECE_CHARACTERS:
            break
    return taken


def build_piece(records: Sequence[Record], columns: Sequence[str] | None) -> Piece:
    """Return records as a piece; without `columns` their cells are dicts of anything."""
    kept = [record for record in records if record.cells is not None]
    if columns is None:
        table = _encode_dicts([record.cells for record in kept])
    else:
        cells = list(zip(*(record.cells for record in kept), strict=True)) if kept else [()] * len(columns)
        table = pa.table([pa.array(column, pa.string()) for column in cells], names=list(columns))
    rejected = [record for record in records if record.cells is None]
    return Piece(table, [record.row for record in kept], [record.line for record in kept], rejected)


def split_batches(batches: Iterable[pa.RecordBatch], n_rows: int) -> Iterator[pa.Table]:
    """Yield tables of `n_rows`, the last one of fewer, or of fewer if they are long."""
    held: list[pa.RecordBatch] = []
    n_held = n_bytes = 0
    for whole in batches:
        batch = whole
        while len(batch):
            head = batch[: n_rows - n_held]
            while head.nbytes + n_bytes > MAX_PIECE_CHARACTERS and len(head) > 1:
                head = head[: len(head) // 2]
            held.append(head)
            n_held, n_bytes = n_held + len(head), n_bytes + head.nbytes
            batch = batch[len(head) :]
            if n_held == n_rows or n_bytes > MAX_PIECE_CHARACTERS // 2:
                yield pa.Table.from_batches(held)
                held, n_held, n_bytes = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)


def list_kinds(field: pa.Field) -> set[str] | None:
    """Return the kinds of cells in a column of JSON, None for another column."""
    kinds = (field.metadata or {}).get(_KINDS)
    return None if kinds is None else set(kinds.decode().split())


def choose_type(kinds: set[str]) -> pa.DataType:
    """Return the type of a column of JSON with such cells; where no other holds them all, strings."""
    return next((kind for known, kind in _TYPES if kinds <= known), pa.string())


def list_cells(table: pa.Table, name: str) -> list[Any]:
    """Return a column's cells as Python values, None for null; bytes that aren't UTF-8 become lone surrogates."""
    column = table[name]
    if list_kinds(table.schema.field(name)) is not None:
        return [None if cell is None else json.loads(cell) for cell in column.to_pylist()]
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        if not pa.types.is_string(column.type):
            raise
        data = column.cast(pa.binary()).to_pylist()
        return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in data]
    except (ValueError, OverflowError):  # a time that Python can't hold
        return list(column.cast(pa.string()).to_pylist())


def is_text(field: pa.Field) -> bool:
    """Tell whether a column may hold texts."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_null(kind)
        or str(kind) == "string_view"
    )


def show_row(table: pa.Table, row: int) -> str:
    """Return a row, shortened, for a person who looks for what is wrong with it."""
    part = table.slice(row, 1)
    cells = {name: list_cells(part, name)[0] for name in table.column_names}
    short = {name: cell[: MAX_CONTENT + 1] if isinstance(cell, str) else cell for name, cell in cells.items()}
    return shorten(encode_json(short))


def _encode_dicts(dicts: Sequence[dict[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(name for cells in dicts for name in cells))
    check_columns(names, "the file")
    fields, columns = [], []
    for name in names:
        cells = [cells.get(name, _NO_CELL) for cells in dicts]
        kinds = sorted({_name_kind(cell) for cell in cells if cell is not _NO_CELL and cell is not None})
        texts = [None if cell is _NO_CELL else encode_json(cell) for cell in cells]
        columns.append(pa.array(texts, pa.string()))
        fields.append(pa.field(name, pa.string(), metadata={_KINDS: " ".join(kinds)}))
    return pa.table(columns, schema=pa.schema(fields))


_NO_CELL = object()


def _name_kind(cell: Any) -> str:
    if isinstance(cell, bool):
        return "bool"
    if isinstance(cell, int):
        return "integer" if abs(cell) <= 1 << 53 else "long" if cell in _INT64 else "big"
    if isinstance(cell, list):
        inside = {_name_kind(item) for item in cell if item is not None}
        return f"{inside.pop() if inside else 'null'}s" if len(inside) < 2 else "nested"
    return {float: "number", dict: "nested"}.get(type(cell), "text")
