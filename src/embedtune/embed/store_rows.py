"""Rows of a table: how they are found, read and made. Nothing here commits or locks.

Besides its embedding columns a row has ``hash`` and ``held``, the names of the columns it holds. Scanning
these two is cheap, so what is missing is known without reading a vector. A vector is stored with a checksum of itself,
its text's hash and its column's name in two values more: what is read is what was stored for this text and column, or
an error.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedtune.embed.store_key import HASH_BYTES
from embedtune.errors import StoreError

Vectors = npt.NDArray[np.float16]
Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]

READ_ROWS = 8_192
#: Values that a stored vector has beside its own: its checksum, four bytes.
SEAL = 2
_COLUMN = re.compile(r"layer_\d{2,}_[a-z_]+")


@dataclass(frozen=True)
class Rows:
    """The hash and the held columns of every row of one table version.

    Attributes
    ----------
    hashes : pyarrow.Array of 16 bytes, shape (n_rows,)
    held : ndarray of int, shape (n_rows,)
        Each row's position in `held_sets`.
    held_sets : tuple of frozenset of str
    """

    hashes: Any
    held: npt.NDArray[np.int64]
    held_sets: tuple[frozenset[str], ...]

    def find(self, asked: Any, column: str | None = None) -> Positions:
        """Return the first row of each hash that holds `column` (None: any row), -1 where there is none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if column is None:
            rows, hashes = np.arange(len(self.held)), self.hashes
        else:
            holds = np.array([column in names for names in self.held_sets], dtype=bool)
            rows = np.flatnonzero(holds[self.held]) if len(holds) else np.empty(0, dtype=np.int64)
            hashes = self.hashes if len(rows) == len(self.held) else self.hashes.take(pa.array(rows))
        if not len(rows):
            return np.full(len(asked), -1)
        if len(asked) >= len(rows):
            found = pc.index_in(asked, value_set=hashes).fill_null(-1).to_numpy(zero_copy_only=False)
            return np.asarray(np.where(found < 0, -1, rows[found]), dtype=np.int64)
        # A hash table of the fewer: one of all rows at every append would make a store quadratic in its size.
        among = pc.index_in(hashes, value_set=asked).fill_null(-1).to_numpy(zero_copy_only=False)
        hits = np.flatnonzero(among >= 0)[::-1]  # written last to first, so that a hash's first row stays
        positions = np.full(len(asked), -1, dtype=np.int64)
        positions[among[hits]] = rows[hits]
        repeats = pc.index_in(asked, value_set=asked).to_numpy(zero_copy_only=False)
        return np.asarray(positions[repeats], dtype=np.int64)


def scan_rows(dataset: Any) -> Rows:
    """Read the hash and the held columns of all rows."""
    table = dataset.to_table(columns=["hash", "held"]).unify_dictionaries().combine_chunks()
    if not table.num_rows:
        return Rows(hash_array([]), np.empty(0, dtype=np.int64), ())
    held = table["held"].chunk(0)
    return Rows(
        hashes=table["hash"].chunk(0),
        held=held.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        held_sets=tuple(frozenset(names.split()) for names in held.dictionary.to_pylist()),
    )


def read_vectors(dataset: Any, asked: Any, columns: Sequence[str]) -> dict[str, Vectors]:
    """Read columns of the asked texts, in the order asked.

    Raises
    ------
    StoreError
        If a text lacks one of the columns.
    ValueError
        If its vector isn't the one that was stored.
    """
    import pyarrow as pa

    rows = scan_rows(dataset)
    widths = read_widths(dataset)
    # Columns lie in the same rows except where an object store took appends for one text in several.
    together: dict[bytes, tuple[Positions, list[str]]] = {}
    for column in dict.fromkeys(columns):
        positions = rows.find(asked, column)
        if len(positions) and positions.min() < 0:
            raise StoreError(
                f"{int((positions < 0).sum())} of {len(positions)} texts have no '{column}' in the store: "
                "ask find_missing first and append what it names."
            )
        together.setdefault(positions.tobytes(), (positions, []))[1].append(column)
    vectors = {
        column: np.empty((len(asked), max(widths.get(column, 0) - SEAL, 0)), dtype=np.float16)
        for column in columns
    }
    for positions, names in together.values():
        distinct, inverse = np.unique(positions, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        # Sorted and in pieces: five times as fast as in the order asked, and no second copy of everything.
        for start in range(0, len(distinct), READ_ROWS):
            asked_rows = distinct[start : start + READ_ROWS]
            piece = dataset.take(asked_rows.tolist(), columns=names)
            first, last = np.searchsorted(inverse[order], [start, start + len(asked_rows)])
            targets = order[first:last]
            hashes = [text.as_py() for text in rows.hashes.take(pa.array(asked_rows))]
            for name in names:
                matrix = to_matrix(piece[name], widths[name])
                if piece.num_rows != len(asked_rows) or not find_whole(hashes, name, matrix).all():
                    raise ValueError(f"vectors of '{name}' aren't those that were stored")
                vectors[name][targets] = matrix[inverse[targets] - start, :-SEAL]
    return vectors


def read_widths(dataset: Any) -> dict[str, int]:
    """Return the width of each embedding column, checksums included."""
    return {
        field.name: int(field.type.list_size) for field in dataset.schema if _COLUMN.fullmatch(field.name)
    }


def has_known_columns(dataset: Any) -> bool:
    """Tell whether a table has no columns but those that are made here."""
    return len(read_widths(dataset)) + 2 == len(dataset.schema) and {"hash", "held"} <= set(
        dataset.schema.names
    )


def make_rows(asked: Any, vectors: Mapping[str, Vectors], holds: Mapping[str, Mask]) -> Any:
    """Make a table of rows where ``vectors[c][i]`` counts if ``holds[c][i]``, and is null otherwise.

    Parameters
    ----------
    asked : pyarrow.Array of 16 bytes, shape (n_rows,)
    vectors : mapping of str to ndarray of float16, shape (n_rows, width)
        From `seal_vectors`.
    holds : mapping of str to ndarray of bool, shape (n_rows,)

    Returns
    -------
    pyarrow.Table
    """
    import pyarrow as pa

    names = sorted(vectors)
    held = [" ".join(name for name in names if holds[name][i]) for i in range(len(asked))]
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(vectors[name]).reshape(-1)),
            vectors[name].shape[1],
            mask=None if holds[name].all() else pa.array(~holds[name]),
        )
        for name in names
    }
    return pa.table({"hash": asked, "held": pa.array(held, pa.string()).dictionary_encode(), **arrays})


def complete_rows(
    dataset: Any, rows: Rows, *, asked: Any, vectors: Mapping[str, Vectors], holds: Mapping[str, Mask]
) -> Any:
    """Make whole rows: what the table holds for the asked texts, and the given columns where ``holds``.

    Returns
    -------
    pyarrow.Table
        All of the data set's columns, to be merged on ``hash``.
    """
    positions = rows.find(asked)
    is_old = positions >= 0
    old = dataset.take(positions[is_old].tolist())
    old_sets = [rows.held_sets[code] for code in rows.held[positions[is_old]]]
    whole: dict[str, Vectors] = {}
    whole_holds: dict[str, Mask] = {}
    for column, width in read_widths(dataset).items():
        matrix = np.zeros((len(asked), width), dtype=np.float16)
        held = np.zeros(len(asked), dtype=bool)
        held[is_old] = [column in names for names in old_sets]
        matrix[is_old] = to_matrix(old[column], width)
        if column in vectors:
            matrix[holds[column]] = vectors[column][holds[column]]
            held |= holds[column]
        matrix[~held] = 0
        whole[column], whole_holds[column] = matrix, held
    return make_rows(asked, whole, whole_holds).select(dataset.schema.names)


def seal_vectors(hashes: Sequence[bytes], column: str, vectors: Vectors) -> Vectors:
    """Return vectors with their checksums behind them, shape (n_rows, width + 2)."""
    seals = _sum_up(hashes, column, vectors)
    return np.concatenate([vectors, seals.view(np.float16).reshape(len(vectors), SEAL)], axis=1)


def find_whole(hashes: Sequence[bytes], column: str, sealed: Vectors) -> Mask:
    """Tell which sealed vectors are the ones that were stored for these texts, shape (n_rows,)."""
    seals = np.ascontiguousarray(sealed[:, -SEAL:]).view(np.uint32)[:, 0]
    found: Mask = _sum_up(hashes, column, sealed[:, :-SEAL]) == seals
    return found


def _sum_up(hashes: Sequence[bytes], column: str, vectors: Vectors) -> npt.NDArray[np.uint32]:
    start = zlib.crc32(column.encode())
    rows = np.ascontiguousarray(vectors)
    sums = [zlib.crc32(row, zlib.crc32(text, start)) for text, row in zip(hashes, rows, strict=True)]
    return np.array(sums, dtype=np.uint32)


def to_matrix(column: Any, width: int) -> Vectors:
    """Return a column as a matrix; the rows of nulls are undefined."""
    array = column.combine_chunks()
    # .values, not .flatten(), which would leave nulls out.
    values = array.values.slice(array.offset * width, len(array) * width)
    matrix: Vectors = values.to_numpy(zero_copy_only=False).reshape(len(array), width)
    return matrix


def hash_array(hashes: Sequence[bytes]) -> Any:
    """Return the hashes as an arrow array.

    Raises
    ------
    StoreError
        If one isn't 16 bytes long.
    """
    import pyarrow as pa

    for text in hashes:
        if len(text) != HASH_BYTES:
            raise StoreError(f"a text's hash is {len(text)} bytes, not {HASH_BYTES}: make it with hash_text.")
    return pa.array(hashes, pa.binary(HASH_BYTES))


def check_columns(columns: Sequence[str]) -> None:
    """Raise StoreError for a name that `column_name` can't have made."""
    for column in columns:
        if not _COLUMN.fullmatch(column):
            raise StoreError(f"'{column}' is no column name: make it with column_name(layer, pooling).")


def to_float16(column: str, array: npt.ArrayLike, *, n_rows: int) -> Vectors:
    """Return the array rounded to float16, clipped to its range (±65504).

    Raises
    ------
    StoreError
        If the shape isn't (n_rows, width) or a value is NaN or infinite.
    """
    matrix = np.asarray(array)
    if matrix.ndim != 2 or matrix.shape[0] != n_rows or not matrix.shape[1]:
        raise StoreError(f"'{column}' has shape {matrix.shape} for {n_rows} texts: give ({n_rows}, width).")
    bad = int((~np.isfinite(matrix)).any(axis=1).sum())
    if bad:
        raise StoreError(
            f"'{column}' has NaN or infinite values in {bad} of {n_rows} texts, which the store refuses: "
            "the backbone overflows; set precision to float32."
        )
    limit = float(np.finfo(np.float16).max)
    clipped: Vectors = np.clip(matrix, -limit, limit).astype(np.float16)
    return clipped
