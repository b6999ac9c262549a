"""Read a text file line by line, whatever its encoding, size, and longest line."""

from __future__ import annotations

import codecs
import io
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TextIO

from embedtune.data.places import Place
from embedtune.data.textfile import BYTE_ORDER_MARKS
from embedtune.errors import DataError

#: What is behind this many characters of a line is not kept, and the line is no row.
MAX_LINE_CHARACTERS = 64_000_000

_PIECE_BYTES = 1 << 20
#: A file of which more than one byte in so many is NUL is no text in UTF-8; a single one costs its row only.
_NUL_SHARE = 50


class TextFacts(NamedTuple):
    """What a look through a file tells: its encoding, and about how many lines it has."""

    encoding: str
    n_lines: int


def look_through(place: Place, *, encoding: str | None = None) -> TextFacts:
    """Find a text file's encoding, holding a piece of it at a time.

    Unless it is given: what a byte order mark says, else UTF-8 if most of the lines that aren't ASCII are UTF-8, else
    Windows-1252. Single lines may then be in neither.

    Raises
    ------
    DataError
        If the file can't be read, the encoding is unknown, or the file is full of NUL characters.
    """
    n_lines = n_valid = n_invalid = 0
    with place.open() as file:
        head = file.read(_PIECE_BYTES)
        chosen = encoding or next((name for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), None)
        _check_encoding(chosen or "utf-8")
        if chosen is None and head.count(0) * _NUL_SHARE > len(head):
            line = head[: head.index(0)].count(10) + 1
            raise DataError(
                f"{place.name} holds NUL characters (the first in line {line}), so it isn't a text file in the "
                "encoding read: save it as UTF-8 or name its encoding (encoding='utf-16', say)."
            )
        piece, rest = head, b""
        while piece:
            n_lines += piece.count(b"\n")
            if chosen is None:
                whole, end, rest = (rest + piece).rpartition(b"\n")
                if len(rest) > MAX_LINE_CHARACTERS:
                    whole, end, rest = rest, b"", b""
                valid, invalid = _count_lines(whole + end)
                n_valid, n_invalid = n_valid + valid, n_invalid + invalid
            piece = file.read(_PIECE_BYTES)
        valid, invalid = _count_lines(rest)
    n_valid, n_invalid = n_valid + valid, n_invalid + invalid
    return TextFacts(chosen or ("utf-8" if not n_invalid or n_valid > n_invalid else "cp1252"), n_lines)


class Lines:
    r"""The lines of a text file, with ``\n`` ends; some may be given back and are read again.

    Bytes that aren't in the encoding come as lone surrogates; `is_damaged` tells.

    Attributes
    ----------
    encoding : str
    number : int
        Of the last line given, from 1.
    overlong : set of int
        Numbers of lines given without what is behind `MAX_LINE_CHARACTERS`.
    """

    def __init__(self, file: TextIO, *, name: str, encoding: str) -> None:
        self.number = 0
        self.overlong: set[int] = set()
        self.encoding = encoding
        self._file, self._name = file, name
        self._returned: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else self._read()
        if not line:
            raise StopIteration
        self.number += 1
        return line

    def give_back(self, lines: Sequence[str]) -> None:
        """Have the last lines given come again."""
        self._returned.extendleft(reversed(lines))
        self.number -= len(lines)

    def _read(self) -> str:
        try:
            line = self._file.readline(MAX_LINE_CHARACTERS)
            if len(line) == MAX_LINE_CHARACTERS and not line.endswith("\n"):
                self.overlong.add(self.number + 1)
                while (rest := self._file.readline(MAX_LINE_CHARACTERS)) and not rest.endswith("\n"):
                    pass
        except UnicodeError as error:  # of encodings whose bytes don't stand for themselves
            raise DataError(
                f"{self._name} isn't in encoding '{self.encoding}' (after line {self.number}): leave encoding out to "
                "have it detected."
            ) from error
        return line


@contextmanager
def open_lines(place: Place, encoding: str) -> Iterator[Lines]:
    """Open a text file; see `look_through` for its encoding."""
    with io.TextIOWrapper(place.open(), encoding=encoding, errors="surrogateescape", newline=None) as file:
        yield Lines(file, name=place.name, encoding=encoding)


def is_damaged(text: str) -> bool:
    """Tell whether a text holds lone surrogates, which stand for bytes that aren't in the file's encoding."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _check_encoding(name: str) -> None:
    try:
        codecs.lookup(name)
    except LookupError as error:
        raise DataError(
            f"encoding '{name}' is unknown: use a name Python knows, such as utf-8, utf-16 or latin-1."
        ) from error


def _count_lines(data: bytes) -> tuple[int, int]:
    """Return how many lines that aren't ASCII are UTF-8, and how many aren't."""
    if data.isascii():
        return 0, 0
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    try:
        data.decode()
    except UnicodeDecodeError:
        n_valid = sum(_is_utf8(line) for line in lines)
        return n_valid, len(lines) - n_valid
    return len(lines), 0


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
