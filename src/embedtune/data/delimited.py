"""Read comma-, tab-, semicolon- and bar-separated tables: delimiter and quoting are found, not asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from embedtune.errors import DataError

#: A longer text is refused: it is a broken quote or a whole file in a cell, and no model reads it.
MAX_TEXT_CHARACTERS = 1_000_000

_DELIMITERS = (",", "\t", ";", "|")
_N_SNIFFED_LINES = 50
#: Quoting as spreadsheets write it; none (SST-2 and other tab-separated files full of loose quotes);
#: backslash before a quote, as databases export it.
_QUOTINGS: tuple[dict[str, Any], ...] = (
    {"strict": True},
    {"quoting": csv.QUOTE_NONE},
    {"strict": True, "escapechar": "\\", "doublequote": False},
)


class Table(NamedTuple):
    """A header and its rows, all cells text."""

    columns: list[str]
    rows: list[list[str]]


def read_delimited(text: str, *, name: str, delimiters: tuple[str, ...] = _DELIMITERS) -> Table:
    """Split a delimited file's text into a header and rows of the header's width.

    Parameters
    ----------
    text : str
        The whole file.
    name : str
        The file's name, for messages.
    delimiters : tuple of str
        What may separate cells; the first wins a tie.

    Raises
    ------
    DataError
        If the file is empty, a row has another number of cells than the header, a quote is never closed,
        or a cell holds more than `MAX_TEXT_CHARACTERS`.
    """
    if not text.strip():
        raise DataError(f"{name} has no rows: it is empty.")
    delimiter = find_delimiter(text, delimiters)
    with _cells_up_to(MAX_TEXT_CHARACTERS):
        parses = [_Parse.run(text, delimiter, quoting) for quoting in _QUOTINGS[:2]]
        spreadsheet, loose = parses
        swallowed = delimiter == "\t" and len(spreadsheet.rows) != len(loose.rows)
        if loose.problem is None and (spreadsheet.problem or swallowed):
            # Every line has the header's width without quoting, so the quotes are stray ones. With tabs that
            # holds even where quotes happen to close lines later: nobody quotes a tab.
            return loose.table()
        if spreadsheet.problem is None:
            return spreadsheet.table()
        escaped = _Parse.run(text, delimiter, _QUOTINGS[2])
    if escaped.problem is None:
        return escaped.table()
    raise DataError(f"{name}: {spreadsheet.problem}")


def find_delimiter(text: str, delimiters: tuple[str, ...] = _DELIMITERS) -> str:
    """Return the delimiter that splits the first lines into equally many cells, and into the most."""
    lines = [line for line in text[:200_000].split("\n")[: _N_SNIFFED_LINES + 1] if line][:_N_SNIFFED_LINES]

    def rate(delimiter: str) -> tuple[int, bool]:
        widths = [len(cells) for cells in csv.reader(lines, delimiter=delimiter)]
        return (widths[0] if widths else 0, len(set(widths)) == 1)

    with _cells_up_to(MAX_TEXT_CHARACTERS):
        return max(delimiters, key=rate)


class _Parse(NamedTuple):
    rows: list[list[str]]
    problem: str | None

    @classmethod
    def run(cls, text: str, delimiter: str, quoting: dict[str, Any]) -> _Parse:
        """Parse up to the first problem."""
        reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, **quoting)
        rows: list[list[str]] = []
        try:
            for row in reader:
                if not row:
                    continue
                if rows and len(row) != len(rows[0]):
                    cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
                    return cls(
                        rows,
                        f"row {len(rows)} (line {reader.line_num}) has {cells} where the header has {len(rows[0])}. "
                        "Put quotes around texts that hold the delimiter.",
                    )
                rows.append(row)
        except csv.Error as error:
            return cls(rows, _explain(error, len(rows), reader.line_num))
        return cls(rows, None)

    def table(self) -> Table:
        return Table(columns=[name.strip() for name in self.rows[0]], rows=self.rows[1:])


def _explain(error: csv.Error, row: int, line: int) -> str:
    if "field larger" in str(error):
        return (
            f"row {row} (line {line}) has a cell of more than {MAX_TEXT_CHARACTERS:,} characters. "
            "Close its quote, or shorten the text."
        )
    if "unexpected end" in str(error):
        return f"the quote opened in row {row} is never closed. Close it, or double quotes inside texts."
    return f"row {row} (line {line}) has a quote in the wrong place. Double the quotes inside quoted texts."


@contextmanager
def _cells_up_to(n_characters: int) -> Iterator[None]:
    # The csv module's limit (131,072 by default) is one setting for the whole process.
    previous = csv.field_size_limit(n_characters)
    try:
        yield
    finally:
        csv.field_size_limit(previous)
