"""Read a table piece by piece, so that a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embedtune.data.lines import Lines, look_through, open_lines
from embedtune.data.pieces import Piece, build_piece, split_batches, take_piece
from embedtune.data.places import Place
from embedtune.data.records import Header, Record, read_csv_records, read_header, read_json_records
from embedtune.data.tables import DAMAGE, READERS, read_table
from embedtune.data.textfile import check_file
from embedtune.errors import DataError, EmbedtuneError, suggest_nearest

#: Delimiter and quoting are found in so many characters.
_SAMPLE_CHARACTERS = 4_000_000
_DELIMITERS = {".csv": (",", "\t", ";", "|"), ".tsv": ("\t", ",", ";", "|")}
_ARROW_SUFFIXES = (".arrow", ".feather")


@dataclass(frozen=True)
class TableStream:
    """A table that is read as often as it is gone through.

    Attributes
    ----------
    name : str
        The file's, for messages.
    schema : pyarrow.Schema
        Columns of JSON lines are those of the first piece; later ones may have more.
    n_rows : int
        About how many.
    read : callable
        Returns an iterator of pieces, the same ones each time.
    """

    name: str
    schema: pa.Schema
    n_rows: int
    read: Callable[[], Iterator[Piece]]


def open_table(place: Place, *, piece_rows: int, encoding: str | None = None) -> TableStream:
    """Look at a table and return it as a stream of pieces of at most `piece_rows` rows.

    csv, tsv, JSON lines, Parquet and Arrow are never held whole; other formats are.

    Raises
    ------
    DataError
        If the file is missing, can't be read, has an unknown extension, no rows, no header, or two columns of one
        name.
    """
    if place.suffix not in READERS:
        raise DataError(
            f"{place.name}: extension '{place.suffix}' isn't one I can read"
            f"{suggest_nearest(place.suffix, READERS)}. Give a file in {', '.join(READERS)}."
        )
    if place.local is not None:
        check_file(place.local)
    if place.suffix in _DELIMITERS:
        table = _open_delimited(place, piece_rows, encoding)
    elif place.suffix in (".jsonl", ".ndjson"):
        table = _open_json_lines(place, piece_rows, encoding)
    elif place.suffix == ".parquet" or place.suffix in _ARROW_SUFFIXES:
        table = _open_typed(place, piece_rows)
    else:
        table = _open_whole(place, piece_rows, encoding)
    names = table.schema.names
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise DataError(f"{place.name} has two columns called '{repeated[0]}': rename one.")
    return table


def _open_delimited(place: Place, piece_rows: int, encoding: str | None) -> TableStream:
    facts = look_through(place, encoding=encoding)
    with open_lines(place, facts.encoding) as lines:
        sample, is_part = _take_sample(lines)
    header = read_header(sample, is_part=is_part, delimiters=_DELIMITERS[place.suffix])
    if header is None:
        raise DataError(f"{place.name} has no rows: it is empty.")

    def read_records(header: Header = header) -> Iterator[Record]:
        with open_lines(place, facts.encoding) as lines:
            next(read_csv_records(lines, header.dialect, n_cells=None))
            yield from read_csv_records(lines, header.dialect, n_cells=len(header.columns))

    def read() -> Iterator[Piece]:
        return _read_pieces(read_records(), piece_rows, header.columns)

    schema = pa.schema([(name, pa.string()) for name in header.columns])
    return _check_rows(TableStream(place.name, schema, facts.n_lines, read))


def _open_json_lines(place: Place, piece_rows: int, encoding: str | None) -> TableStream:
    facts = look_through(place, encoding=encoding)

    def read_records() -> Iterator[Record]:
        with open_lines(place, facts.encoding) as lines:
            yield from read_json_records(lines)

    def read() -> Iterator[Piece]:
        return _read_pieces(read_records(), piece_rows, None)

    first = next(read(), None)
    if first is not None and not len(first.table):
        record = first.rejected[0]
        raise DataError(f"line {record.line} of {place.name}: {record.reason}. Give one object per line.")
    schema = pa.schema([]) if first is None else first.table.schema
    return _check_rows(TableStream(place.name, schema, facts.n_lines, read))


def _open_typed(place: Place, piece_rows: int) -> TableStream:
    open_batches = _open_parquet if place.suffix == ".parquet" else _open_arrow
    with open_batches(place, 1) as (schema, _, n_rows):
        pass

    def read() -> Iterator[Piece]:
        n_read = 0
        with open_batches(place, piece_rows) as (_, batches, _):
            for table in split_batches(batches, piece_rows):
                yield Piece(table, range(n_read + 1, n_read + len(table) + 1), None, [])
                n_read += len(table)

    return _check_rows(TableStream(place.name, schema, n_rows, read))


@contextmanager
def _open_parquet(place: Place, piece_rows: int) -> Iterator[tuple[pa.Schema, Iterable[pa.RecordBatch], int]]:
    import pyarrow.parquet as pq

    with _explain_damage(place, "Parquet"), place.open() as file:
        # Not pre-buffered: a row group may be the whole file.
        parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        yield parquet.schema_arrow, parquet.iter_batches(piece_rows), parquet.metadata.num_rows


@contextmanager
def _open_arrow(place: Place, piece_rows: int) -> Iterator[tuple[pa.Schema, Iterable[pa.RecordBatch], int]]:
    opened = pa.memory_map(place.path) if place.local is not None else place.open()
    with _explain_damage(place, "Arrow"), opened as file:
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid:
            file.seek(0)
            stream = pa.ipc.open_stream(file)
            yield stream.schema, map(_check_offsets, stream), 0
        else:
            batches = (_check_offsets(reader.get_batch(i)) for i in range(reader.num_record_batches))
            yield reader.schema, batches, 0


def _check_offsets(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch as it is, unless offsets in it lead out of it; bytes that aren't UTF-8 are let through."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise
    return batch


@contextmanager
def _explain_damage(place: Place, kind: str) -> Iterator[None]:
    try:
        yield
    except EmbedtuneError:
        raise
    except DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{place.name} isn't a {kind} file, or is damaged: {reason}.") from error


def _open_whole(place: Place, piece_rows: int, encoding: str | None) -> TableStream:
    import tempfile

    if place.local is not None:
        frame = read_table(place.local, encoding=encoding)
    else:
        with tempfile.TemporaryDirectory(prefix="embedtune-") as folder:
            copy = Path(folder) / place.name
            copy.write_bytes(place.read_bytes())
            frame = read_table(copy, encoding=encoding)
    names = [str(name) for name in frame.columns]

    def read_records() -> Iterator[Record]:
        for row, cells in enumerate(frame.itertuples(index=False, name=None), start=1):
            yield Record(row, 0, dict(zip(names, cells, strict=True)))

    def read() -> Iterator[Piece]:
        for piece in _read_pieces(read_records(), piece_rows, None):
            yield piece._replace(lines=None)

    return TableStream(place.name, next(read()).table.schema, len(frame), read)


def _read_pieces(records: Iterator[Record], piece_rows: int, columns: list[str] | None) -> Iterator[Piece]:
    while taken := take_piece(records, piece_rows):
        yield build_piece(taken, columns)


def _take_sample(lines: Lines) -> tuple[str, bool]:
    """Return the first lines, and whether there are more."""
    taken: list[str] = []
    n_characters = 0
    for line in lines:
        taken.append(line)
        n_characters += len(line)
        if n_characters >= _SAMPLE_CHARACTERS:
            return "".join(taken), next(lines, None) is not None
    return "".join(taken), False


def _check_rows(table: TableStream) -> TableStream:
    if next(table.read(), None) is None:
        raise DataError(f"{table.name} has no rows: give a file with a header and at least one row.")
    return table
