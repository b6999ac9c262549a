"""Where a table lies: paths, lock, key file, time of last use; on a local disk or in an object store."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from embedtune.embed.store_key import StoreKey, digest_key
from embedtune.errors import EmbedtuneError, MissingExtraError, ResourceError, StoreError
from embedtune.files import is_disk_full

LOCK_TIMEOUT = 600.0  # seconds; an append takes well under one
TOUCH_AFTER = timedelta(minutes=10)

#: What reading a damaged table raises.
DAMAGE = (OSError, ValueError, RuntimeError, LookupError)

_whole_deletions: set[str] = set()


class ForeignTable(StoreError):
    """A table of another release, which keeps what it keeps; this one neither reads nor mends it."""


def import_lance() -> Any:
    """Return the module `lance`, which is imported nowhere before it is needed."""
    try:
        import lance
    except ImportError as error:
        raise MissingExtraError(
            "the embedding store needs Lance, which isn't installed: run `pip install pylance`, "
            "or set store=None to compute embeddings each time."
        ) from error
    return lance


@dataclass(frozen=True)
class Place:
    """One table's folder under the store's root.

    Attributes
    ----------
    root : str
        An absolute local path, or an object-store URI such as ``s3://bucket/folder``.
    digest : str
        Of the table's key; the folder's name.
    """

    root: str
    digest: str

    @property
    def is_local(self) -> bool:
        """Whether files can be locked and renamed here."""
        return is_local(self.root)

    @property
    def uri(self) -> str:
        """The table's folder."""
        return f"{self.root}/{self.digest}"

    @property
    def table_uri(self) -> str:
        """The Lance data set inside the folder."""
        return f"{self.uri}/table.lance"

    def open(self) -> Any | None:
        """Return the newest version as a Lance data set, None where there is no table.

        Raises
        ------
        StoreError
            If there is a table that can't be opened.
        """
        lance = import_lance()
        for n_left in (2, 1, 0):
            try:
                if damaged := self.list_damaged_deletions():
                    raise ValueError(f"{damaged[0]} is damaged")
                dataset = lance.dataset(self.table_uri)
                dataset.schema  # noqa: B018 which may be what is damaged
                return dataset
            except BaseException as error:
                if not isinstance(error, Exception) and not is_panic(error):
                    raise
                if not self.list_manifests():
                    return None
                # The first writer may have committed, or a pruning begun, between the two looks.
                if not n_left:
                    raise describe_damage(self.digest, error) from error
                time.sleep(0.05)
        return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing this table; does nothing in an object store.

        The lock file lies outside the table's folder: pruning mustn't delete it under a waiting writer.
        """
        if not self.is_local:
            yield
            return
        from filelock import FileLock, Timeout

        lock_path = Path(self.root) / ".locks" / f"{self.digest}.lock"
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock_path, timeout=LOCK_TIMEOUT):
                yield
        except Timeout as error:
            raise StoreError(
                f"another process has held '{lock_path}' for {LOCK_TIMEOUT:.0f} s: "
                "see whether an embedtune process hangs, stop it and try again."
            ) from error

    def write_key(self, key: StoreKey, *, anew: bool = False) -> None:
        """Save the key's readable form, once, or `anew`."""
        filesystem, folder = open_filesystem(self.uri)
        if not anew and _exists(filesystem, f"{folder}/key.json"):
            return
        filesystem.create_dir(folder, recursive=True)
        # On a disk written aside first: a crash leaves no half key. Object stores do that themselves.
        path = f"{folder}/key.json.new" if self.is_local else f"{folder}/key.json"
        with filesystem.open_output_stream(path) as stream:
            stream.write(key.to_json().encode("utf-8"))
        if self.is_local:
            filesystem.move(path, f"{folder}/key.json")

    def read_key(self) -> StoreKey:
        """Read what `write_key` saved.

        Raises
        ------
        ForeignTable
            If another release wrote it: the key is as it was written, and this one doesn't know its fields.
        StoreError
            If there is no key, or it can't be read or belongs to another folder.
        """
        filesystem, folder = open_filesystem(self.uri)
        try:
            with filesystem.open_input_stream(f"{folder}/key.json") as stream:
                text = stream.read().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"key.json can't be read ({shorten(error)})") from error
        try:
            key = StoreKey.from_json(text)
        except StoreError as error:
            if digest_key(text) == self.digest:
                raise ForeignTable(str(error)) from error
            raise
        if key.digest() != self.digest:
            raise StoreError(f"key.json belongs to {key.digest()}")
        return key

    def touch(self) -> None:
        """Note that the table is in use now; a store that can't be written is left alone."""
        filesystem, folder = open_filesystem(self.uri)
        if not _exists(filesystem, folder):
            return
        used = self.last_used()
        if used is not None and datetime.now(UTC) - used < TOUCH_AFTER:
            return
        try:
            with filesystem.open_output_stream(f"{folder}/last_used"):
                pass
        except OSError:
            return

    def last_used(self) -> datetime | None:
        """Return when the table was last read or written, to ten minutes; None where nothing tells."""
        filesystem, folder = open_filesystem(self.uri)
        info = filesystem.get_file_info(f"{folder}/last_used")
        used: datetime | None = info.mtime
        return used

    def measure_bytes(self) -> int:
        """Return what the folder takes."""
        from pyarrow.fs import FileSelector

        filesystem, folder = open_filesystem(self.uri)
        selector = FileSelector(folder, recursive=True, allow_not_found=True)
        return sum(info.size for info in filesystem.get_file_info(selector) if info.is_file)

    def delete(self) -> int:
        """Delete the table and its folder, and return the bytes freed; waiting writers start a new one.

        On a local disk it is moved aside first, so that nobody sees half a table, not even after a crash.
        """
        filesystem, folder = open_filesystem(self.uri)
        with explain_storage_errors(self), self.lock():
            n_bytes = self.measure_bytes()
            if self.is_local:
                aside = f"{folder.removesuffix(self.digest)}.pruned-{self.digest}"
                if _exists(filesystem, aside):
                    filesystem.delete_dir(aside)
                filesystem.move(folder, aside)
                folder = aside
            filesystem.delete_dir(folder)
        return n_bytes

    def list_manifests(self) -> list[str]:
        """Return the commits' files, the newest first; the folder alone may be a first writer's beginning."""
        from pyarrow.fs import FileSelector

        filesystem, folder = open_filesystem(self.uri)
        selector = FileSelector(f"{folder}/table.lance/_versions", allow_not_found=True)
        # Lance counts down in their names.
        found = filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.extension == "manifest")

    def list_damaged_deletions(self) -> list[str]:
        """Return the lists of deleted rows that aren't Arrow files: Lance would end the process over one.

        Each is read once per process: their names aren't used again.
        """
        import pyarrow as pa

        if not self.is_local:
            return []
        damaged = []
        for path in sorted(Path(self.uri, "table.lance", "_deletions").glob("*.arrow")):
            if str(path) in _whole_deletions:
                continue
            try:
                pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all().validate(full=True)
            except FileNotFoundError:
                continue  # Cleaned up in the meantime.
            except (pa.ArrowException, OSError, ValueError, MemoryError):
                damaged.append(path.name)
            else:
                _whole_deletions.add(str(path))
        return damaged

    def delete_deletions(self, name: str) -> None:
        """Delete a list of deleted rows: its fragment can then not be read."""
        Path(self.uri, "table.lance", "_deletions", name).unlink()

    def delete_manifest(self, name: str) -> None:
        """Delete a commit's file, as if the commit hadn't been made."""
        filesystem, folder = open_filesystem(self.uri)
        versions = f"{folder}/table.lance/_versions"
        filesystem.delete_file(f"{versions}/{name}")
        if _exists(filesystem, f"{versions}/latest_version_hint.json"):
            filesystem.delete_file(f"{versions}/latest_version_hint.json")


def is_local(uri: str) -> bool:
    """Tell whether the URI names a folder of this machine."""
    return "://" not in uri or uri.startswith("file://")


def open_filesystem(uri: str) -> tuple[Any, str]:
    """Return pyarrow's file system for the URI and the path in it.

    Raises
    ------
    StoreError
        If pyarrow knows no file system for it.
    """
    from pyarrow.fs import FileSystem

    try:
        filesystem, path = FileSystem.from_uri(uri)
    except (ValueError, NotImplementedError, OSError) as error:
        raise StoreError(
            f"the store '{uri}' can't be opened ({shorten(error)}): "
            "give a local folder, or a URI that pyarrow knows, such as s3://bucket/folder or gs://bucket/folder."
        ) from error
    return filesystem, path


@contextmanager
def explain_storage_errors(place: Place) -> Iterator[None]:
    """Turn what Lance, pyarrow and the system raise inside the block into one-line errors of ours.

    Raises
    ------
    ResourceError
        If the disk is full or the quota used up.
    StoreError
        For anything else that can't be read or written.
    """
    try:
        yield
    except EmbedtuneError:
        raise
    except BaseException as error:
        if not isinstance(error, DAMAGE) and not is_panic(error):
            raise
        if is_disk_full(error):
            raise ResourceError(
                f"no space left for the embedding store in '{place.root}': free some "
                "(`embedtune store prune`) or set EMBEDTUNE_STORE to a larger disk, then run the same "
                "command again; nothing stored is lost."
            ) from error
        if isinstance(error, PermissionError):
            raise StoreError(
                f"the store '{place.root}' can't be written ({shorten(error)}): "
                "set EMBEDTUNE_STORE to a folder of yours."
            ) from error
        raise describe_damage(place.digest, error) from error


def describe_damage(digest: str, error: BaseException) -> StoreError:
    """Return the error that tells how to get rid of a damaged table."""
    return StoreError(
        f"table {digest} of the embedding store can't be used ({shorten(error)}): "
        "run `embedtune store verify` to see what is damaged and `embedtune store repair` to drop it; what was "
        "dropped is computed again."
    )


def is_panic(error: BaseException) -> bool:
    """Tell whether Lance's Rust code gave up, as it does on some damaged files."""
    return type(error).__name__ == "PanicException"


def shorten(error: BaseException) -> str:
    """Return the message on one line, without Lance's source positions."""
    message = re.sub(r",? ?/[^ ]*/rust/[^ ]*\.rs:\d+:\d+", "", " ".join(str(error).split()))
    return message if len(message) <= 200 else f"{message[:197]}..."


def _exists(filesystem: Any, path: str) -> bool:
    from pyarrow.fs import FileType

    kind = filesystem.get_file_info(path).type
    return bool(kind != FileType.NotFound)
