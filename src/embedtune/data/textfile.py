"""Read a text file, whatever its encoding, with errors a user can act on."""

from __future__ import annotations

import codecs
from pathlib import Path

from embedtune.errors import DataError

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, *, encoding: str | None = None) -> str:
    r"""Return the file's text with ``\n`` line ends.

    The encoding, unless given: what a byte order mark says, else UTF-8, else Windows-1252 (latin-1 with
    curly quotes). The order is fixed, so a file always reads the same.

    Raises
    ------
    DataError
        If the file is missing or unreadable, isn't in the encoding, or holds NUL characters.
    """
    data = _read_bytes(path)
    text = _decode_as(data, path, encoding) if encoding else _decode(data, path)
    nul = text.find("\0")
    if nul >= 0:
        raise DataError(
            f"{path.name} holds a NUL character (line {text.count(chr(10), 0, nul) + 1}), so it isn't a text file "
            "in the encoding read: save it as UTF-8 or name its encoding (encoding='utf-16', say)."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_bytes(path: Path) -> bytes:
    check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}. Check its permissions.") from error


def check_file(path: Path) -> None:
    """Raise `DataError` unless `path` is a file."""
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file in it.")
    if not path.exists():
        raise DataError(f"{path} doesn't exist: check the path (relative paths start at {Path.cwd().name}/).")
    if not path.is_file():
        raise DataError(f"{path} isn't a regular file: save its content to one.")


def _decode_as(data: bytes, path: Path, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except LookupError as error:
        raise DataError(
            f"encoding '{encoding}' is unknown: use a name Python knows, such as utf-8, utf-16 or latin-1."
        ) from error
    except UnicodeError as error:
        raise DataError(
            f"{path.name} isn't in encoding '{encoding}'{_locate(error, data)}: leave encoding out to have it detected."
        ) from error


def _decode(data: bytes, path: Path) -> str:
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _decode_as(data, path, encoding)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as utf8_error:
        try:
            return data.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(
                f"{path.name} is neither UTF-8 nor Windows-1252{_locate(utf8_error, data)}: name its encoding "
                "(encoding='gb18030', say) or save it as UTF-8."
            ) from utf8_error


def _locate(error: UnicodeError, data: bytes) -> str:
    if not isinstance(error, UnicodeDecodeError):
        return ""
    line = data.count(b"\n", 0, error.start) + 1
    return f" (byte 0x{data[error.start]:02x} in line {line})"
