"""The finished parts of an output, beside it until it is whole.

::

    OUT.partial/
      settings.json            what the parts are of: inputs, bundle, settings
      lock                     held by the process that writes them
      00000-000003.arrow       piece 3 of the first input: rows, with what was added to them
      00000-000003.jsonl       its rejected rows; written first, so that a piece with an .arrow is complete

Behind each piece's contents stands their sha256.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from embedtune.data.places import Place
from embedtune.errors import DataError
from embedtune.predict.labels import Answers

log = logging.getLogger(__name__)

_FACTS = b"embedtune:part"
_SEAL_BYTES = 32
#: What a changed entry of settings.json is called.
_NAMES = {"inputs": "another input", "bundle": "another bundle", "settings": "other settings"}


class Part(NamedTuple):
    """A finished piece.

    Attributes
    ----------
    table : pyarrow.Table
        The rows labelled, columns of the input and added ones.
    cut : list of int
        Rows of `table` whose text is longer than a backbone reads.
    """

    table: pa.Table
    cut: list[int]

    def list_answers(self, names: Sequence[str]) -> Answers:
        """Return the probabilities, in the columns `names`, as they were computed."""
        probabilities = np.column_stack([self.table[name].to_numpy() for name in names])
        is_cut = np.zeros(len(probabilities), dtype=np.bool_)
        is_cut[self.cut] = True
        return Answers(probabilities, is_cut)


class Parts:
    """The folder of an output's parts.

    Parameters
    ----------
    folder : Place
    identity : mapping
        ``inputs``, ``bundle`` and ``settings``, JSON-able. A folder of anything else is emptied.
    """

    def __init__(self, folder: Place, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        self._identity = json.loads(json.dumps(identity))

    def holds_same(self) -> bool:
        """Tell whether the folder is there and its parts are of the same inputs, bundle and settings."""
        return bool(self._read_identity() == self._identity)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Have the folder for this process; what it holds of other inputs or settings is deleted.

        Raises
        ------
        DataError
            If another process has it.
        """
        if self._folder.local is None:
            self._prepare()
            yield
            return
        self._folder.local.mkdir(exist_ok=True)
        lock = FileLock(self._folder.local / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise DataError(
                f"another process is writing {self._folder.address}: wait for it, stop it, or choose another -o."
            ) from None
        try:
            self._prepare()
            yield
        except BaseException:
            if not any(self._folder.local.glob("*.arrow")):
                self.remove()  # nothing that would be lost
            raise
        finally:
            lock.release()

    def has(self, number: int, piece: int) -> bool:
        return self._find(number, piece, "arrow").exists()

    def write(self, number: int, piece: int, part: Part, rejected: Sequence[Mapping[str, Any]]) -> None:
        """Keep a piece of input `number`."""
        if rejected:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
            _write_sealed(self._find(number, piece, "jsonl"), lines.encode())
        facts = json.dumps({"cut": part.cut}).encode()
        table = part.table.replace_schema_metadata({**(part.table.schema.metadata or {}), _FACTS: facts})
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd", unify_dictionaries=True)
        with pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        _write_sealed(self._find(number, piece, "arrow"), sink.getvalue().to_pybytes())

    def read(self, number: int, piece: int) -> Part:
        table = self._open(number, piece).read_all()
        metadata = dict(table.schema.metadata)
        facts = json.loads(metadata.pop(_FACTS))
        return Part(table.replace_schema_metadata(metadata or None), facts["cut"])

    def read_schema(self, number: int, piece: int) -> pa.Schema:
        return self._open(number, piece).schema

    def read_rejected(self, number: int, piece: int) -> bytes:
        place = self._find(number, piece, "jsonl")
        return self._read_sealed(place) if place.exists() else b""

    def _open(self, number: int, piece: int) -> Any:
        return pa.ipc.open_file(pa.py_buffer(self._read_sealed(self._find(number, piece, "arrow"))))

    def _read_sealed(self, place: Place) -> bytes:
        data = place.read_bytes()
        contents, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
        if hashlib.sha256(contents).digest() != seal:
            raise DataError(
                f"{place.address} is damaged: delete {self._folder.address}, and give the command again."
            )
        return contents

    def remove(self) -> None:
        """Delete the folder, its settings first: what a killed process leaves is then no one's."""
        self._folder.inside("settings.json").remove()
        self._folder.remove()

    def _prepare(self) -> None:
        found = self._read_identity()
        if found == self._identity:
            return
        if found is not None:
            other = [
                name
                for key, name in _NAMES.items()
                if found.get(key, None) not in (None, self._identity[key])
            ]
            log.warning(
                "%s is of %s: starting anew.", self._folder.address, " and ".join(other) or "another version"
            )
        if self._folder.local is None:
            self._folder.remove()
        else:
            for path in self._folder.local.iterdir():
                if path.name != "lock":
                    path.unlink()
        text = json.dumps(self._identity, indent=2, ensure_ascii=False) + "\n"
        self._folder.inside("settings.json").write_bytes(text.encode())

    def _read_identity(self) -> Any:
        place = self._folder.inside("settings.json")
        if not place.exists():
            return None
        try:
            found = json.loads(place.read_bytes())
        except ValueError:  # damaged: of nothing that is known
            return {}
        return found if isinstance(found, dict) else {}

    def _find(self, number: int, piece: int, extension: str) -> Place:
        return self._folder.inside(f"{number:05d}-{piece:06d}.{extension}")


def _write_sealed(place: Place, contents: bytes) -> None:
    place.write_bytes(contents + hashlib.sha256(contents).digest())
