"""The rows of delimited files and JSON lines one by one; what is no row is named and passed over."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from embedtune.data.delimited import (
    MAX_TEXT_CHARACTERS,
    QUOTINGS,
    cells_up_to,
    compare_widths,
    find_delimiter,
    pick_quoting,
)
from embedtune.data.lines import MAX_LINE_CHARACTERS, Lines, is_damaged
from embedtune.data.tables import parse_object

#: So much of a rejected row is kept, in characters.
MAX_CONTENT = 500

_UNCLOSED = "a quote that isn't closed"


class Record(NamedTuple):
    """A row as a file has it.

    Attributes
    ----------
    row, line : int
        Its number among the rows, and its first line's among the lines, from 1.
    cells : list of str, or dict
        None if it is rejected.
    reason : str
        Why it is rejected.
    content : str
        What a rejected row looks like, shortened.
    """

    row: int
    line: int
    cells: Any
    reason: str = ""
    content: str = ""


class Header(NamedTuple):
    """How a delimited file is parsed (what `csv.reader` is given), and its columns."""

    dialect: dict[str, Any]
    columns: list[str]


def read_header(sample: str, *, is_part: bool, delimiters: tuple[str, ...]) -> Header | None:
    """Find delimiter and quoting as `read_delimited` does; where no quoting fits all rows, that which fits most.

    Parameters
    ----------
    sample : str
        The file's first lines.
    is_part : bool
        Whether more follow; a quote that is open at the sample's end then says nothing.
    """
    if not sample.strip():
        return None
    delimiter = find_delimiter(sample, delimiters)
    headers, n_rows, n_bad = [], [], []
    for quoting in QUOTINGS:
        dialect = {"delimiter": delimiter, **quoting}
        lines = Lines(io.StringIO(sample), name="", encoding="")
        first = next((r.cells or [r.content] for r in read_csv_records(lines, dialect, n_cells=None)), [""])
        headers.append(Header(dialect, [name.strip() for name in first]))
        n_rows.append(0)
        n_bad.append(0)
        for record in read_csv_records(lines, dialect, n_cells=len(first)):
            if is_part and record.reason == _UNCLOSED:
                break
            n_rows[-1] += 1
            n_bad[-1] += bool(record.reason)
    return headers[pick_quoting(delimiter, n_rows, n_bad)]


def read_csv_records(lines: Lines, dialect: dict[str, Any], *, n_cells: int | None) -> Iterator[Record]:
    """Yield the rows of a delimited file, `n_cells` wide, from where `lines` is.

    After a row that can't be parsed, reading goes on at the line after its first, so that a quote which isn't closed
    costs the line that it stands in. A row of another width is passed over as a whole.
    """
    taken: list[str] = []

    def feed() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    row = 0
    reader = csv.reader(feed(), **dialect)
    while True:
        taken.clear()
        first = lines.number + 1
        reason = ""
        cells: list[str] | None = []
        try:
            with cells_up_to(MAX_TEXT_CHARACTERS):
                cells = next(reader, None)
        except csv.Error as error:
            reason = _explain_csv(error)
            lines.give_back(taken[1:])
            reader = csv.reader(feed(), **dialect)
            del taken[1:]
        if cells is None:
            return
        if not cells and not reason:
            continue  # an empty line
        row += 1
        if lines.overlong and not lines.overlong.isdisjoint(range(first, first + len(taken))):
            reason = _explain_overlong()
        elif not reason and n_cells is not None and len(cells) != n_cells:
            reason = compare_widths(len(cells), n_cells)
        elif not reason and any(is_damaged(cell) for cell in cells):
            reason = _explain_damage(lines)
        if reason:
            yield Record(row, first, None, reason, shorten("".join(taken)))
        else:
            yield Record(row, first, cells)


def read_json_records(lines: Lines) -> Iterator[Record]:
    """Yield the objects of JSON lines."""
    row = 0
    for line in lines:
        if line.isspace():
            continue
        row += 1
        number = lines.number
        if number in lines.overlong:
            yield Record(row, number, None, _explain_overlong(), shorten(line))
        elif is_damaged(line):
            yield Record(row, number, None, _explain_damage(lines), shorten(line))
        else:
            cells, problem = parse_object(line.rstrip("\n"))
            if cells is None:
                yield Record(row, number, None, f"the line {problem}", shorten(line))
            elif not cells:
                yield Record(row, number, None, "an empty object", shorten(line))
            else:
                yield Record(row, number, cells)


def shorten(text: str) -> str:
    """Return at most `MAX_CONTENT` characters of a text, as valid Unicode, without a last line end."""
    cut = text if len(text) <= MAX_CONTENT else text[:MAX_CONTENT] + "…"
    return cut.rstrip("\n").encode("utf-8", "backslashreplace").decode()


def encode_json(value: Any) -> str:
    """Return a value as JSON that any reader takes: no NaN, no infinity, no lone surrogate."""
    try:
        text = _STRICT.encode(value)
    except ValueError:
        text = _STRICT.encode(json.loads(_LAX.encode(value), parse_constant=lambda _: None))
    return json.dumps(json.loads(text)) if is_damaged(text) else text


def _show_untyped(value: Any) -> str:
    """Return as a string what JSON has no type for: times, decimals, bytes."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


_STRICT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_show_untyped)
_LAX = json.JSONEncoder(ensure_ascii=False, default=_show_untyped)


def _explain_csv(error: csv.Error) -> str:
    if "field larger" in str(error):
        return f"a cell of more than {MAX_TEXT_CHARACTERS:,} characters, or a quote that isn't closed"
    if "unexpected end" in str(error):
        return _UNCLOSED
    return "a quote in the wrong place"


def _explain_overlong() -> str:
    return f"the line is longer than {MAX_LINE_CHARACTERS:,} characters"


def _explain_damage(lines: Lines) -> str:
    return f"the row isn't in encoding '{lines.encoding}'"
