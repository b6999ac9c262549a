"""EmbeddingStore: where embeddings are kept, so that no text is run twice through the same backbone.

One Lance table per `StoreKey`; see `store_table` for what a table promises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from embedtune.embed.store_check import check_table, repair_table
from embedtune.embed.store_key import StoreKey, column_name, default_store_uri, hash_text
from embedtune.embed.store_place import ForeignTable, Place, explain_storage_errors, is_local, open_filesystem
from embedtune.embed.store_table import EmbeddingTable
from embedtune.errors import StoreError
from embedtune.progress import track

__all__ = [
    "EmbeddingStore",
    "EmbeddingTable",
    "StoreKey",
    "StoreProblem",
    "StoreRow",
    "column_name",
    "default_store_uri",
    "hash_text",
]


@dataclass(frozen=True)
class StoreRow:
    """One table of the store, as `EmbeddingStore.list` shows it.

    Attributes
    ----------
    digest : str
        The folder's name; `EmbeddingStore.prune` takes it, or its beginning.
    key : StoreKey or None
        None if the table's key can't be read, or another release wrote it.
    n_texts : int or None
        None if the table can't be read.
    columns : tuple of str
    n_bytes : int
        On disk, versions that readers may still use included.
    last_used : datetime or None
        To ten minutes.
    note : str
        Why there is no key; empty where there is.
    """

    digest: str
    key: StoreKey | None
    n_texts: int | None
    columns: tuple[str, ...]
    n_bytes: int
    last_used: datetime | None
    note: str = ""


@dataclass(frozen=True)
class StoreProblem:
    """Something wrong with one table, or what was dropped of it for that."""

    digest: str
    message: str


class EmbeddingStore:
    """A folder, or object-store prefix, of embedding tables.

    Any number of processes may read and write it. Creating the object touches nothing.

    Parameters
    ----------
    uri : str or Path, optional
        A local folder or an object-store URI; `default_store_uri` if not given.
    """

    def __init__(self, uri: str | Path | None = None) -> None:
        text = str(uri) if uri is not None else default_store_uri()
        if is_local(text):
            text = str(Path(text.removeprefix("file://")).expanduser().absolute())
        self.uri = text.rstrip("/")

    def __repr__(self) -> str:
        return f"EmbeddingStore({self.uri!r})"

    def table(self, key: StoreKey) -> EmbeddingTable:
        """Return the table of a key; it is made with the first append."""
        return EmbeddingTable(key, Place(self.uri, key.digest()))

    def list(self) -> tuple[StoreRow, ...]:
        """Return a row per table, the most recently used first; damaged ones are listed too."""
        rows = [self._describe(digest) for digest in self._list_digests()]
        oldest = datetime.min.replace(tzinfo=UTC)
        return tuple(sorted(rows, key=lambda row: row.last_used or oldest, reverse=True))

    def verify(self) -> tuple[StoreProblem, ...]:
        """Read everything and return what is wrong: unreadable fragments, double texts, changed vectors."""
        digests = self._list_digests()
        problems: tuple[StoreProblem, ...] = ()
        with track("verify the store", len(digests), unit="tables") as bar:
            for digest in digests:
                found = check_table(Place(self.uri, digest))
                problems += tuple(StoreProblem(digest, message) for message in found)
                bar.advance()
        return problems

    def repair(self) -> tuple[StoreProblem, ...]:
        """Drop what `verify` finds, and nothing else; return what was dropped, by table.

        What was dropped is lacking: whoever asks for it computes it again.

        Raises
        ------
        StoreError, ResourceError
            If a table stays locked or can't be written.
        """
        digests = self._list_digests()
        dropped: tuple[StoreProblem, ...] = ()
        with track("repair the store", len(digests), unit="tables") as bar:
            for digest in digests:
                place = Place(self.uri, digest)
                if check_table(place):
                    dropped += tuple(StoreProblem(digest, told) for told in repair_table(place))
                bar.advance()
        return dropped

    def prune(
        self,
        older_than_days: float | None = None,
        *,
        keys: Sequence[str | StoreKey] | None = None,
        everything: bool = False,
    ) -> int:
        """Delete whole tables and what the others no longer refer to; return the bytes freed.

        Parameters
        ----------
        older_than_days : float, optional
            Delete tables last used longer ago.
        keys : sequence of str or StoreKey, optional
            Delete these: keys, digests as `list` shows them, or a digest's beginning if only one has it.
        everything : bool
            Delete all tables.

        Raises
        ------
        StoreError
            If a key names no table or several.
        """
        digests = self._list_digests()
        doomed = set(digests) if everything else {self._match(key, digests) for key in keys or ()}
        if older_than_days is not None:
            limit = datetime.now(UTC) - timedelta(days=older_than_days)
            doomed |= {d for d in digests if (Place(self.uri, d).last_used() or limit) < limit}
        freed = 0
        for digest in digests:
            place = Place(self.uri, digest)
            freed += place.delete() if digest in doomed else self._clean(place)
        return freed

    def _clean(self, place: Place) -> int:
        try:
            return EmbeddingTable(place.read_key(), place).clean()
        except StoreError:
            return 0  # Damaged: `verify` tells; deleting it is for the user to ask.

    def _describe(self, digest: str) -> StoreRow:
        place = Place(self.uri, digest)
        key: StoreKey | None = None
        n_texts: int | None = None
        columns: tuple[str, ...] = ()
        note = ""
        try:
            key = place.read_key()
            table = EmbeddingTable(key, place)
            n_texts, columns = table.count_texts(), table.list_columns()
        except ForeignTable:
            note = "of another release"
        except StoreError:
            note = "unreadable"  # Listed with what could be read.
        return StoreRow(digest, key, n_texts, columns, place.measure_bytes(), place.last_used(), note)

    def _list_digests(self) -> Sequence[str]:
        from pyarrow.fs import FileSelector, FileType

        filesystem, root = open_filesystem(self.uri)
        with explain_storage_errors(Place(self.uri, "")):
            infos = filesystem.get_file_info(FileSelector(root, allow_not_found=True))
        names = [info.base_name for info in infos if info.type == FileType.Directory]
        return sorted(name for name in names if not name.startswith("."))

    def _match(self, key: str | StoreKey, digests: Sequence[str]) -> str:
        text = key.digest() if isinstance(key, StoreKey) else key
        found = [digest for digest in digests if digest.startswith(text)]
        if len(found) != 1 or not text:
            which = "no table" if not found else f"{len(found)} tables"
            raise StoreError(
                f"'{text}' names {which} of the store '{self.uri}': run `embedtune store list` to see them."
            )
        return found[0]
