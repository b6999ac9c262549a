"""Write tables with added columns as csv, tsv, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from embedtune.data.pieces import choose_type, list_cells, list_kinds
from embedtune.data.records import encode_json

#: Extensions of outputs, by how they are written.
SUFFIXES = {".csv": ",", ".tsv": "\t", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

#: A spreadsheet takes a cell that begins so for a formula, unless it is a number.
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)*|[.,]\d+)([eE][+-]?\d+)?\s*%?")


class Tables(NamedTuple):
    """What is to be written, table after table.

    Attributes
    ----------
    schemas : callable
        Returns an iterator of the tables' schemas.
    read : callable
        Returns an iterator of the tables.
    added : sequence of str
        Columns that stand last.
    """

    schemas: Callable[[], Iterator[pa.Schema]]
    read: Callable[[], Iterator[pa.Table]]
    added: Sequence[str]


def write_tables(file: BinaryIO, tables: Tables, *, suffix: str, raw_cells: bool) -> None:
    """Write tables, all columns of any in the order they come in.

    Parameters
    ----------
    raw_cells : bool
        Whether cells of csv and tsv that a spreadsheet would take for a formula are left as they are. Otherwise
        they get an apostrophe in front.
    """
    fields: dict[str, list[pa.Field]] = {}
    metadata: dict[bytes, bytes] | None = None
    for schema in tables.schemas():
        for field in schema:
            fields.setdefault(field.name, []).append(field)
        metadata = schema.metadata if metadata is None else metadata
    names = [name for name in fields if name not in tables.added]
    names += [name for name in tables.added if name in fields]
    if SUFFIXES[suffix] == "parquet":
        schema = pa.schema([_merge_fields(fields[name]) for name in names])
        # What pandas notes of its index holds still; what the datasets library notes of all columns doesn't.
        pandas = {key: value for key, value in (metadata or {}).items() if key == b"pandas"}
        _write_parquet(file, tables.read(), schema.with_metadata(pandas or None))
    elif SUFFIXES[suffix] == "jsonl":
        _write_json_lines(file, tables.read(), names)
    else:
        _write_delimited(file, tables.read(), names, delimiter=SUFFIXES[suffix], raw_cells=raw_cells)


def disarm_cell(cell: str) -> str:
    """Put an apostrophe before a cell that a spreadsheet would take for a formula."""
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def _write_delimited(
    file: BinaryIO, tables: Iterable[pa.Table], names: Sequence[str], *, delimiter: str, raw_cells: bool
) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
    write = csv.writer(text, delimiter=delimiter, lineterminator="\n").writerow
    # The csv module quotes a carriage return only where it ends lines.
    write_quoted = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow
    protect: Callable[[str], str] = str if raw_cells else disarm_cell
    write([protect(name) for name in names])
    for table in tables:
        columns = [_list_csv_cells(table, name, protect) for name in names]
        for row in zip(*columns, strict=True):
            (write_quoted if any("\r" in cell for cell in row) else write)(row)
    text.flush()
    text.detach()


def _list_csv_cells(table: pa.Table, name: str, protect: Callable[[str], str]) -> list[str]:
    if name not in table.column_names:
        return [""] * len(table)
    if list_kinds(table.schema.field(name)) is None:
        return [_show_cell(cell, protect) for cell in list_cells(table, name)]
    cells = table[name].to_pylist()
    return [
        "" if cell is None or cell == "null" else protect(json.loads(cell)) if cell[0] == '"' else cell
        for cell in cells
    ]


def _show_cell(cell: Any, protect: Callable[[str], str]) -> str:
    if isinstance(cell, str):
        return protect(cell)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int | float):
        return repr(cell)
    if isinstance(cell, list) and all(isinstance(item, str) for item in cell):
        return protect(" | ".join(cell))
    text = encode_json(cell)
    return str(json.loads(text)) if text[0] == '"' else text


def _write_json_lines(file: BinaryIO, tables: Iterable[pa.Table], names: Sequence[str]) -> None:
    for table in tables:
        columns = [_list_json_cells(table, name) for name in names]
        heads = [f"{json.dumps(name, ensure_ascii=False)}: " for name in names]
        for row in zip(*columns, strict=True):
            cells = ", ".join(head + cell for head, cell in zip(heads, row, strict=True))
            file.write(f"{{{cells}}}\n".encode("utf-8", "replace"))


def _list_json_cells(table: pa.Table, name: str) -> list[str]:
    if name not in table.column_names:
        return ["null"] * len(table)
    if list_kinds(table.schema.field(name)) is None:
        return [encode_json(cell) for cell in list_cells(table, name)]
    return ["null" if cell is None else cell for cell in table[name].to_pylist()]


def _write_parquet(file: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with pq.ParquetWriter(file, schema) as writer:
        for table in tables:
            columns = [_cast_column(table, field) for field in schema]
            writer.write_table(pa.table(columns, schema=schema))


def _merge_fields(fields: Sequence[pa.Field]) -> pa.Field:
    """Return a field for a column that pieces have under several types."""
    name = fields[0].name
    kinds = [list_kinds(field) for field in fields]
    if None not in kinds:
        return pa.field(name, choose_type(set().union(*(found or () for found in kinds))))
    typed = {field.type for field in fields if list_kinds(field) is None}
    if len(typed) == 1 and not any(kinds):
        return pa.field(name, typed.pop())
    if not any(kinds):
        try:
            merged = pa.unify_schemas(
                [pa.schema([pa.field(name, kind)]) for kind in typed], promote_options="permissive"
            )
        except pa.ArrowException:
            return pa.field(name, pa.string())
        return merged.field(0)
    return pa.field(name, pa.string())


def _cast_column(table: pa.Table, field: pa.Field) -> Any:
    if field.name not in table.column_names:
        return pa.nulls(len(table), field.type)
    column = table[field.name]
    kinds = list_kinds(table.schema.field(field.name))
    if kinds is None:
        if column.type == field.type:
            return column
        if pa.types.is_string(field.type):
            return pa.array([_show_text(cell) for cell in list_cells(table, field.name)], pa.string())
        return column.cast(field.type, safe=False)
    cells = list_cells(table, field.name)
    if pa.types.is_string(field.type):
        cells = [_show_text(cell) for cell in cells]
    elif pa.types.is_list(field.type) and pa.types.is_string(field.type.value_type):
        cells = [cell and [_show_text(item) for item in cell] for cell in cells]
    elif pa.types.is_floating(field.type):
        cells = [None if cell is None else float(cell) for cell in cells]
    return pa.array(cells, field.type)


def _show_text(cell: Any) -> str | None:
    """Return a cell as valid Unicode: texts as they are, others as JSON."""
    if cell is None:
        return None
    text = cell if isinstance(cell, str) else encode_json(cell)
    return text.encode("utf-8", "replace").decode()
