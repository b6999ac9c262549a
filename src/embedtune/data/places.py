"""Where files lie: on this machine, in an object store that fsspec reaches, in a folder, behind a pattern."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from embedtune.errors import DataError, MissingExtraError
from embedtune.files import replace_file

#: Standard input or output.
STANDARD = "-"

#: Extensions of the tables that a folder is searched for: a .txt or .json in it may be anything.
FOLDER_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".xlsx")

#: Ends of the names of what labelling leaves beside its output, which no folder is searched for.
PARTIAL, REJECTED = ".partial", ".rejected.jsonl"


@dataclass(frozen=True)
class Place:
    """A file or folder, whether it exists or not.

    Attributes
    ----------
    address : str
        As the user wrote it, for messages.
    fs : fsspec.AbstractFileSystem
    path : str
        Within `fs`.
    name : str
        Its last part, for messages.
    suffix : str
        The extension, in lower case, which says how it is read or written.
    """

    address: str
    fs: Any
    path: str
    name: str
    suffix: str

    @property
    def local(self) -> Path | None:
        """The path on this machine, None elsewhere."""
        return Path(self.path) if "file" in _list_protocols(self.fs) else None

    def beside(self, end: str) -> Place:
        """Return the place whose name is this one's and `end`."""
        return _make_place(self.address.rstrip("/") + end, self.fs, self.path.rstrip("/") + end)

    def inside(self, name: str) -> Place:
        """Return a place in this folder."""
        return _make_place(f"{self.address.rstrip('/')}/{name}", self.fs, f"{self.path.rstrip('/')}/{name}")

    def exists(self) -> bool:
        return bool(self.fs.exists(self.path))

    def is_dir(self) -> bool:
        return bool(self.fs.isdir(self.path))

    def open(self) -> BinaryIO:
        """Open to be read from the beginning.

        Raises
        ------
        DataError
            If it isn't there, is a folder, or may not be read.
        """
        try:
            if self.local is not None:
                return self.local.open("rb")
            return cast("BinaryIO", self.fs.open(self.path, "rb"))
        except FileNotFoundError:
            raise DataError(
                f"{self.address} doesn't exist: check the path (relative paths start at {Path.cwd().name}/)."
            ) from None
        except IsADirectoryError:
            raise DataError(f"{self.address} is a folder: name a file in it.") from None
        except OSError as error:
            raise DataError(
                f"{self.address} can't be read: {error.strerror or error}. Check its permissions."
            ) from error

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()

    def write_bytes(self, data: bytes) -> None:
        """Write the file, whole or not at all."""
        if self.local is None:
            self.fs.pipe_file(self.path, data)  # one request, after which the object is there
            return
        with replace_file(self.local) as scratch:
            scratch.write_bytes(data)

    @contextmanager
    def replace(self) -> Iterator[BinaryIO]:
        """Open to be written; the file takes its place, whole, when the block ends well."""
        if self.local is not None:
            with replace_file(self.local) as scratch, scratch.open("wb") as file:
                yield file
                file.flush()
            return
        with tempfile.TemporaryDirectory(prefix="embedtune-") as folder:
            scratch = Path(folder) / "file"
            with scratch.open("wb") as file:
                yield file
            self.fs.makedirs(self.fs._parent(self.path), exist_ok=True)
            self.fs.put_file(str(scratch), self.path)

    def remove(self) -> None:
        """Delete the file, or the folder and all in it, if it is there."""
        if self.exists():
            self.fs.rm(self.path, recursive=self.is_dir())

    def stamp(self) -> list[Any]:
        """Return what changes when the file does, JSON-able: size and time, or what a store says of the object."""
        if self.local is not None:
            stat = self.local.stat()
            return [stat.st_size, stat.st_mtime_ns]
        return [self.fs.ukey(self.path)]


class Found(NamedTuple):
    """A file of a folder or pattern, and its path below what they have in common."""

    place: Place
    relative: str


class Inputs(NamedTuple):
    """Files to be read, and whether a folder or pattern was named, not a file."""

    files: list[Found]
    are_many: bool


def find_place(address: str | Path, *, suffix: str | None = None) -> Place:
    """Return the place of a path or of a URI such as ``s3://bucket/rows.parquet``.

    Raises
    ------
    DataError
        If the URI's scheme is unknown.
    MissingExtraError
        If its package isn't installed.
    """
    import fsspec

    text = os.fspath(address)
    scheme = text.partition("://")[0]
    try:
        fs, path = fsspec.core.url_to_fs(text if "://" in text else str(Path(text).absolute()))
    except ImportError as error:
        raise MissingExtraError(f"{scheme}:// can't be read yet ({error}).") from error
    except ValueError:
        raise DataError(
            f"{text}: '{scheme}://' is no scheme that fsspec knows: give a path, or a URI such as s3:// or gs://."
        ) from None
    return _make_place(text, fs, path, suffix=suffix)


def find_inputs(address: str | Path) -> Inputs:
    """Return the file at an address, or, sorted by name, those of a folder or pattern (``*``, ``?``, ``[``).

    Folders are searched for `FOLDER_SUFFIXES` at any depth. Hidden files, and those that labelling leaves beside
    its output, are left out.

    Raises
    ------
    DataError
        If there is no such file, or none in the folder or behind the pattern.
    """
    place = find_place(address)
    if place.is_dir():
        paths = [
            path
            for path in place.fs.find(place.path)
            if PurePosixPath(path).suffix.lower() in FOLDER_SUFFIXES and not _is_aside(path, place.path)
        ]
        if not paths:
            raise DataError(
                f"{place.address} holds no file in {', '.join(FOLDER_SUFFIXES)}: name another folder."
            )
        return Inputs(_list_found(place, paths, place.path), True)
    if any(sign in place.path for sign in "*?[") and not place.exists():
        parts = place.path.split("/")
        n_fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in "*?["))
        top = "/".join(parts[:n_fixed])
        found = [path for path in place.fs.glob(place.path) if not place.fs.isdir(path)]
        paths = [path for path in found if not _is_aside(path, top)]
        if not paths:
            raise DataError(
                f"no file fits the pattern {place.address}: check it, and quote it for the shell."
            )
        return Inputs(_list_found(place, paths, top), True)
    return Inputs([Found(place, place.name)], False)


def _list_found(place: Place, paths: list[str], top: str) -> list[Found]:
    scheme = f"{place.address.partition('://')[0]}://" if "://" in place.address else ""
    return [
        Found(_make_place(scheme + path, place.fs, path), path.removeprefix(top).lstrip("/"))
        for path in sorted(paths)
    ]


def _is_aside(path: str, top: str) -> bool:
    parts = path.removeprefix(top).strip("/").split("/")
    return path.endswith(REJECTED) or any(part.startswith(".") or part.endswith(PARTIAL) for part in parts)


def _make_place(address: str, fs: Any, path: str, *, suffix: str | None = None) -> Place:
    pure = PurePosixPath(path)
    return Place(address, fs, path, pure.name, pure.suffix.lower() if suffix is None else suffix)


def _list_protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
