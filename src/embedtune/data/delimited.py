"""Read comma-, tab-, semicolon- and bar-separated tables: delimiter and quoting are found, not asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from embedtune.errors import DataError

#: A longer text is refused: it is a broken quote or a whole file in a cell, and no model reads it.
MAX_TEXT_CHARACTERS = 1_000_000

DELIMITERS = (",", "\t", ";", "|")
_N_SNIFFED_LINES = 50
#: Quoting as spreadsheets write it; none (SST-2 and other tab-separated files full of loose quotes);
#: backslash before a quote, as databases export it.
QUOTINGS: tuple[dict[str, Any], ...] = (
    {"strict": True},
    {"quoting": csv.QUOTE_NONE},
    {"strict": True, "escapechar": "\\", "doublequote": False},
)


class Table(NamedTuple):
    """A header and its rows, all cells text."""

    columns: list[str]
    rows: list[list[str]]


def read_delimited(text: str, *, name: str, delimiters: tuple[str, ...] = DELIMITERS) -> Table:
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
    with cells_up_to(MAX_TEXT_CHARACTERS):
        parses = [_Parse.run(text, delimiter, quoting) for quoting in QUOTINGS]
    chosen = parses[
        pick_quoting(
            delimiter, [len(parse.rows) for parse in parses], [bool(parse.problem) for parse in parses]
        )
    ]
    if chosen.problem is not None:
        raise DataError(f"{name}: {chosen.problem}")
    return chosen.table()


def pick_quoting(delimiter: str, n_rows: Sequence[int], n_bad: Sequence[int]) -> int:
    """Return which of `QUOTINGS` to take, of how many rows and broken ones each makes.

    If every line has the header's width without quoting and quotes break some, they are stray ones. With tabs that
    holds even where quotes happen to close lines later: nobody quotes a tab.
    """
    swallowed = delimiter == "\t" and n_rows[0] != n_rows[1]
    if not n_bad[1] and (n_bad[0] or swallowed):
        return 1
    if n_bad[0] and not n_bad[2]:
        return 2  # it lets pass much that isn't meant, so it is taken only where it lets pass all
    return 0 if n_bad[0] <= n_bad[1] else 1


def find_delimiter(text: str, delimiters: tuple[str, ...] = DELIMITERS) -> str:
    """Return the delimiter that splits the first lines into equally many cells, and into the most."""
    lines = [line for line in text[:200_000].split("\n")[: _N_SNIFFED_LINES + 1] if line][:_N_SNIFFED_LINES]

    def rate(delimiter: str) -> tuple[int, bool]:
        widths = [len(cells) for cells in csv.reader(lines, delimiter=delimiter)]
        return (widths[0] if widths else 0, len(set(widths)) == 1)

    with cells_up_to(MAX_TEXT_CHARACTERS):
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
                    return cls(
                        rows,
                        f"row {len(rows)} (line {reader.line_num}) has {compare_widths(len(row), len(rows[0]))}. "
                        "Put quotes around texts that hold the delimiter.",
                    )
                rows.append(row)
        except csv.Error as error:
            return cls(rows, _explain(error, len(rows), reader.line_num))
        return cls(rows, None)

    def table(self) -> Table:
        return Table(columns=[name.strip() for name in self.rows[0]], rows=self.rows[1:])


def compare_widths(n_cells: int, n_columns: int) -> str:
    """Return ``3 cells where the header has 2``."""
    return f"{n_cells} {'cell' if n_cells == 1 else 'cells'} where the header has {n_columns}"


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
def cells_up_to(n_characters: int) -> Iterator[None]:
    """Let cells be so long inside the block."""
    # The csv module's limit (131,072 by default) is one setting for the whole process.
    previous = csv.field_size_limit(n_characters)
    try:
        yield
    finally:
        csv.field_size_limit(previous)
