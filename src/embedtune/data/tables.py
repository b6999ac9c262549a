"""Read a table from a file: the extension says how."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from embedtune.data.delimited import read_delimited
from embedtune.data.lines import is_damaged
from embedtune.data.textfile import check_file, read_text
from embedtune.errors import DataError, suggest_nearest

#: What pyarrow's readers raise on damaged files: its own errors are mostly ValueErrors.
DAMAGE = (OSError, ValueError, RuntimeError, LookupError, TypeError, SystemError)


def read_table(path: str | Path, *, encoding: str | None = None) -> pd.DataFrame:
    """Read a table, its cells as the file has them.

    Parameters
    ----------
    path : str or Path
        A .csv, .tsv, .jsonl, .ndjson, .json (an array of objects), .parquet, .arrow, .feather, .xlsx or
        .txt file. The delimiter of .csv and .tsv is found. A .txt file has a text per line, or PhraseBank's
        ``sentence@label`` in every line.
    encoding : str, optional
        Of a text file; detected by default (`embedtune.data.textfile.read_text`).

    Returns
    -------
    pandas.DataFrame
        Columns of dtype object: str from text formats; Python numbers, None and lists where the format has
        types. Hugging Face's class labels in Parquet and Arrow files become their names.

    Raises
    ------
    DataError
        If the file is missing, a folder, of another extension, broken, or without rows or with two columns
        of one name.
    """
    path = Path(path)
    read = READERS.get(path.suffix.lower())
    if path.is_dir() or (read and not path.exists()):
        check_file(path)
    if read is None:
        raise DataError(
            f"{path.name}: extension '{path.suffix}' isn't one I can read"
            f"{suggest_nearest(path.suffix.lower(), READERS)}. Give a file in {', '.join(READERS)}."
        )
    frame = read(path, encoding)
    if frame.empty:
        raise DataError(f"{path.name} has no rows: give a file with a header and at least one row.")
    return frame


#: Columns beyond which a table is taken for something else: each row has a cell for each of them.
MAX_COLUMNS = 10_000
#: Levels of lists and objects in a JSON value.
MAX_NESTING = 100
#: Bytes that a workbook may have when it is unpacked.
MAX_WORKBOOK_BYTES = 1 << 29


def build_frame(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, name: str) -> pd.DataFrame:
    """Return a frame of dtype object; refuse two columns of one name."""
    check_columns(columns, name)
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise DataError(f"{name} has two columns called '{column}': rename one.")
        seen.add(column)
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    return pd.DataFrame(
        {column: pd.Series(values, dtype=object) for column, values in zip(columns, cells, strict=True)}
    )


def check_columns(columns: Sequence[str], name: str) -> None:
    """Refuse more columns than a table has, and names that are no text.

    Raises
    ------
    DataError
    """
    if len(columns) > MAX_COLUMNS:
        raise DataError(
            f"{name} has {len(columns):,} columns, more than {MAX_COLUMNS:,}: leave out what isn't needed."
        )
    if damaged := next((column for column in columns if is_damaged(column)), None):
        raise DataError(f"{name} has a column '{damaged}', which isn't valid Unicode: rename it.")


def _read_csv(path: Path, encoding: str | None) -> pd.DataFrame:
    table = read_delimited(read_text(path, encoding=encoding), name=path.name)
    return build_frame(table.columns, table.rows, name=path.name)


def _read_tsv(path: Path, encoding: str | None) -> pd.DataFrame:
    text = read_text(path, encoding=encoding)
    table = read_delimited(text, name=path.name, delimiters=("\t", ",", ";", "|"))
    return build_frame(table.columns, table.rows, name=path.name)


def read_json_line(line: str, *, number: int, name: str) -> dict[str, Any]:
    """Return the object on line `number`, from 1, of the file `name`.

    Raises
    ------
    DataError
        If the line isn't JSON, or isn't an object.
    """
    record, problem = parse_object(line)
    if record is None:
        raise DataError(
            f"line {number} of {name} {problem}: give one object per line"
            + ("." if "JSON (" in problem else ', such as {"text": "…", "label": "…"}.')
        )
    return record


_UNREADABLE = "isn't JSON (a number of more digits, or more nesting, than can be read)"


def is_deep(value: Any) -> bool:
    """Tell whether a JSON value is nested deeper than `MAX_NESTING`."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            item
            for inner in level
            if isinstance(inner, dict | list)
            for item in (inner.values() if isinstance(inner, dict) else inner)
        ]
        if not level:
            return False
    return True


def parse_object(line: str) -> tuple[dict[str, Any] | None, str]:
    """Return the JSON object that a line is, or None and what it is instead."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return None, f"isn't JSON ({error.msg}, column {error.colno})"
    except (ValueError, RecursionError):
        return None, _UNREADABLE
    if is_deep(record):
        return None, _UNREADABLE
    if not isinstance(record, dict):
        return None, f"is a JSON {type(record).__name__}, not an object"
    if any(is_damaged(key) for key in record):
        return None, "has a key that isn't valid Unicode"
    return record, ""


def _read_json_lines(path: Path, encoding: str | None) -> pd.DataFrame:
    records = [
        read_json_line(line, number=number, name=path.name)
        for number, line in enumerate(read_text(path, encoding=encoding).split("\n"), start=1)
        if line.strip()
    ]
    return _frame_records(records, path.name)


def _read_json(path: Path, encoding: str | None) -> pd.DataFrame:
    text = read_text(path, encoding=encoding)
    if not text.lstrip().startswith("["):
        raise DataError(
            f"{path.name} isn't an array of objects: give one object per line in a .jsonl file, "
            "or name the task whose file it is (task='fiqa', say)."
        )
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path.name} isn't JSON ({error.msg}, line {error.lineno}): mend that line."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} {_UNREADABLE}.") from error
    if is_deep(records):
        raise DataError(f"{path.name} {_UNREADABLE}.")
    if not all(isinstance(record, dict) for record in records):
        raise DataError(f"{path.name} isn't an array of objects: every item must be one.")
    return _frame_records(records, path.name)


def _frame_records(records: list[dict[str, Any]], name: str) -> pd.DataFrame:
    columns = list(dict.fromkeys(key for record in records for key in record))
    check_columns(columns, name)
    rows = [[record.get(column) for column in columns] for record in records]
    return build_frame(columns, rows, name=name)


def _read_parquet(path: Path, encoding: str | None) -> pd.DataFrame:
    import pyarrow.parquet as pq

    try:
        return _frame_arrow(pq.read_table(path), path.name)
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{path.name} isn't a Parquet file: {_first_line(error)}") from error


def _read_arrow(path: Path, encoding: str | None) -> pd.DataFrame:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            try:
                table = pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:
                source.seek(0)
                table = pa.ipc.open_stream(source).read_all()
            table.validate(full=True)  # else offsets are followed wherever they lead
            return _frame_arrow(table, path.name)
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{path.name} isn't an Arrow file: {_first_line(error)}") from error


def _frame_arrow(table: Any, name: str) -> pd.DataFrame:
    cells = [column.to_pylist() for column in table.columns]
    for column, names in _class_names(table.schema.metadata).items():
        if column in table.column_names:
            i = table.column_names.index(column)
            cells[i] = [names[v] if isinstance(v, int) and 0 <= v < len(names) else None for v in cells[i]]
    return build_frame(table.column_names, list(zip(*cells, strict=True)), name=name)


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Find the class labels' names that the datasets library writes into a file's schema."""
    if not metadata or b"huggingface" not in metadata:
        return {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: list(feature["names"])
            for column, feature in features.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}  # not what the library writes


def _read_xlsx(path: Path, encoding: str | None) -> pd.DataFrame:
    import zipfile

    import openpyxl

    try:
        with zipfile.ZipFile(path) as packed:
            n_bytes = sum(part.file_size for part in packed.infolist())
        if n_bytes > MAX_WORKBOOK_BYTES:
            raise DataError(
                f"{path.name} unpacks to {n_bytes / 1e6:.0f} MB, more than {MAX_WORKBOOK_BYTES / 1e6:.0f}: "
                "save it as csv."
            )
        with contextlib.closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as book:
            rows = [
                row
                for row in book.worksheets[0].iter_rows(values_only=True)
                if any(v is not None for v in row)
            ]
    except (DataError, MemoryError):
        raise
    except Exception as error:  # whatever its readers meet: zip, XML, dates
        raise DataError(f"{path.name} isn't an Excel workbook: {_first_line(error)}") from error
    if not rows:
        raise DataError(f"{path.name} has no rows: its first sheet is empty.")
    width = max((i + 1 for i, v in enumerate(rows[0]) if v is not None), default=0)
    columns = [str(value).strip() if value is not None else "" for value in rows[0][:width]]
    return build_frame(columns, [(*row, *[None] * width)[:width] for row in rows[1:]], name=path.name)


def _read_lines(path: Path, encoding: str | None) -> pd.DataFrame:
    lines = [line.strip() for line in read_text(path, encoding=encoding).split("\n")]
    lines = [line for line in lines if line]
    cells = [line.rsplit("@", 1) for line in lines]
    if all(len(cell) == 2 and cell[1] and not cell[1][0].isspace() for cell in cells):
        return build_frame(["text", "label"], cells, name=path.name)
    return build_frame(["text"], [[line] for line in lines], name=path.name)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") + "."


READERS: dict[str, Callable[[Path, str | None], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".xlsx": _read_xlsx,
    ".txt": _read_lines,
}
