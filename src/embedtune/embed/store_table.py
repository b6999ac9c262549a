"""EmbeddingTable: the embeddings of one key, a row per text and a column per (layer, pooling).

On a local disk a file lock lets one process write at a time, and a text has one row. An object store has no
lock: there every append adds rows, Lance refuses commits that collide and we repeat them, and readers take a
text's first row per column.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from embedtune.embed.store_key import HASH_BYTES, StoreKey
from embedtune.embed.store_place import Place, explain_storage_errors, import_lance
from embedtune.embed.store_rows import (
    SEAL,
    Vectors,
    check_columns,
    complete_rows,
    hash_array,
    make_rows,
    read_vectors,
    read_widths,
    scan_rows,
    seal_vectors,
    to_float16,
)
from embedtune.errors import StoreError

Result = TypeVar("Result")

#: Small fragments that make an append compact them, and the rows a compacted fragment aims at.
MAX_SMALL_FRAGMENTS = 64
ROWS_PER_FRAGMENT = 16_384
#: How long a reader may go on with a version that a compaction replaced.
KEEP_VERSIONS = timedelta(minutes=10)
N_TRIES = 30


@dataclass(frozen=True)
class EmbeddingTable:
    """The embeddings of one key, made by `EmbeddingStore.table`.

    Nothing is written before the first append.
    """

    key: StoreKey
    place: Place
    _touched: list[bool] = field(default_factory=list, repr=False, compare=False)

    def find_missing(self, hashes: Sequence[bytes], columns: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Tell for each text whether any of the columns is lacking.

        Parameters
        ----------
        hashes : sequence of bytes
            From `hash_text`; repeats allowed.
        columns : sequence of str
            From `column_name`.

        Returns
        -------
        ndarray of bool, shape (n_hashes,)

        Raises
        ------
        StoreError
            If the table is damaged.
        """
        check_columns(columns)
        asked = hash_array(hashes)

        def find(dataset: Any) -> npt.NDArray[np.bool_]:
            rows = scan_rows(dataset)
            missing = np.zeros(len(hashes), dtype=bool)
            for column in columns:
                missing |= rows.find(asked, column) < 0
            return missing

        missing = self._read_latest(find)
        self._touch()
        return np.ones(len(hashes), dtype=bool) if missing is None else missing

    def read(self, hashes: Sequence[bytes], columns: Sequence[str]) -> dict[str, Vectors]:
        """Return the embeddings of the texts, in the order asked; repeats allowed.

        Returns
        -------
        dict of str to ndarray of float16, shape (n_hashes, width)

        Raises
        ------
        StoreError
            If a text lacks one of the columns, or the table is damaged.
        """
        check_columns(columns)
        asked = hash_array(hashes)
        vectors = self._read_latest(lambda dataset: read_vectors(dataset, asked, columns))
        if vectors is None:
            raise StoreError(
                f"the store holds nothing of '{self.key.backbone}' under this key ({self.place.digest}): "
                "ask find_missing first and append what it names."
            )
        self._touch()
        return vectors

    def append(self, hashes: Sequence[bytes], values: Mapping[str, npt.ArrayLike]) -> None:
        """Add columns of embeddings for the texts, all in one commit.

        What a text already holds is kept, so a stored vector never changes. Values beyond float16's range
        (±65504), which the last layers of large decoders reach now and then, are clipped to it.

        Parameters
        ----------
        hashes : sequence of bytes
            One per row; the first of repeats counts.
        values : mapping of str to array_like, shape (n_hashes, width)
            By column; rounded to float16.

        Raises
        ------
        StoreError
            If a value is NaN or infinite, a shape doesn't fit, or the table is damaged or stays locked.
        ResourceError
            If the disk is full.
        """
        check_columns(list(values))
        asked = hash_array(hashes)
        batch = {column: to_float16(column, array, n_rows=len(hashes)) for column, array in values.items()}
        if not hashes or not batch:
            return
        first = np.sort(np.unique(np.array(hashes, dtype=f"V{HASH_BYTES}"), return_index=True)[1])
        asked = asked.take(first)
        texts = [hashes[i] for i in first]
        batch = {column: seal_vectors(texts, column, array[first]) for column, array in batch.items()}
        import_lance()
        with explain_storage_errors(self.place), self.place.lock():
            self.place.write_key(self.key)
            self._retry(lambda: self._write(asked, batch))
            self._compact()
        self._touch()

    def count_texts(self) -> int:
        """Return the number of distinct texts that have a row."""
        import_lance()
        import pyarrow.compute as pc

        def count(dataset: Any) -> int:
            return int(pc.count_distinct(dataset.to_table(columns=["hash"])["hash"]).as_py())

        return self._read_latest(count) or 0

    def list_columns(self) -> tuple[str, ...]:
        """Return the embedding columns, sorted."""
        return self._read_latest(lambda dataset: tuple(sorted(read_widths(dataset)))) or ()

    def clean(self) -> int:
        """Delete what only superseded versions refer to, and return the bytes freed.

        Versions that a reader may still be using (ten minutes) are kept.
        """
        import_lance()
        with explain_storage_errors(self.place), self.place.lock():
            dataset = self.place.open()
            return 0 if dataset is None else int(dataset.cleanup_old_versions(KEEP_VERSIONS).bytes_removed)

    def _touch(self) -> None:
        """Note the use, once per object."""
        if not self._touched:
            self._touched.append(True)
            self.place.touch()

    def _read_latest(self, read: Callable[[Any], Result]) -> Result | None:
        """Return what `read` makes of the newest version, None where there is no table."""
        import_lance()
        with explain_storage_errors(self.place):
            for n_left in (2, 1, 0):
                dataset = self.place.open()
                if dataset is None:
                    return None
                try:
                    return read(dataset)
                except (OSError, ValueError) as error:
                    # A compaction may have deleted files of the version just opened.
                    if not n_left or "not found" not in str(error).lower():
                        raise
        return None

    def _retry(self, write: Callable[[], None]) -> None:
        """Run `write` again while other writers' commits win, which only happens without a lock."""
        from lance.commit import CommitConflictError

        for n_tries in range(1, N_TRIES):
            try:
                return write()
            except (CommitConflictError, FileExistsError):
                time.sleep(random.uniform(0.2, 1.0) * 0.02 * n_tries)
        return write()

    def _write(self, asked: Any, batch: Mapping[str, Vectors]) -> None:
        """Commit what the texts lack of the batch, judged on the newest version."""
        import pyarrow as pa

        dataset = self._open_for(batch)
        rows = scan_rows(dataset)
        lacks = {column: rows.find(asked, column) < 0 for column in batch}
        chosen = np.logical_or.reduce(list(lacks.values()))
        if not chosen.any():
            return
        asked = asked.filter(pa.array(chosen))
        batch = {column: array[chosen] for column, array in batch.items()}
        lacks = {column: mask[chosen] for column, mask in lacks.items()}
        if self.place.is_local and (rows.find(asked) >= 0).any():
            table = complete_rows(dataset, rows, asked=asked, vectors=batch, holds=lacks)
            merge = dataset.merge_insert("hash").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(table)
        else:
            import_lance().write_dataset(make_rows(asked, batch, lacks), dataset, mode="append")

    def _open_for(self, batch: Mapping[str, Vectors]) -> Any:
        """Open the table, made and widened as the batch needs it."""
        import pyarrow as pa

        dataset = self.place.open()
        if dataset is None:  # an empty table is there, and false
            dataset = self._create()
        widths = read_widths(dataset)
        for column, array in batch.items():
            if widths.get(column, array.shape[1]) != array.shape[1]:
                raise StoreError(
                    f"'{column}' is {widths[column] - SEAL} wide in the store and {array.shape[1] - SEAL} in the "
                    f"batch: two models share a key; run `embedtune store prune {self.place.digest}`."
                )
        new = sorted(set(batch) - set(widths))
        if new:
            # Adds nulls without rewriting a row: only the schema changes.
            dataset.add_columns(
                [pa.field(name, pa.list_(pa.float16(), batch[name].shape[1])) for name in new]
            )
        return dataset

    def _create(self) -> Any:
        import pyarrow as pa

        fields = [
            pa.field("hash", pa.binary(HASH_BYTES), nullable=False),
            pa.field("held", pa.dictionary(pa.int32(), pa.string())),
        ]
        schema = pa.schema(fields, metadata={"embedtune.key": self.key.to_json()})
        lance = import_lance()
        try:
            # Without retries: Lance's own would put the empty table in the place of one that another writer
            # has made, and filled, in the meantime.
            return lance.LanceDataset.commit(
                self.place.table_uri,
                lance.LanceOperation.Overwrite(schema, []),
                enable_v2_manifest_paths=True,
                max_retries=0,
            )
        except OSError as error:
            if self.place.open() is None:
                raise
            raise FileExistsError(str(error)) from error

    def _compact(self) -> None:
        """Merge fragments once too many are small, then delete old versions."""
        from lance.commit import CommitConflictError

        dataset = self.place.open()
        if dataset is None:
            return
        small = [part for part in dataset.get_fragments() if part.physical_rows < ROWS_PER_FRAGMENT]
        if len(small) <= MAX_SMALL_FRAGMENTS:
            return
        try:
            dataset.optimize.compact_files(target_rows_per_fragment=ROWS_PER_FRAGMENT, num_threads=1)
            dataset.cleanup_old_versions(KEEP_VERSIONS)
        except CommitConflictError:
            return  # Without a lock another writer may have been compacting; the next append looks again.
