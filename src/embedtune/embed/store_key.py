"""What an embedding depends on, as a key; and the names of texts and columns in the store."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from embedtune.errors import StoreError
from embedtune.files import OtherRelease, check_release

#: Goes up whenever the same inputs would give other numbers or another layout; older tables stay unread.
SCHEMA = 2

HASH_BYTES = 16


@dataclass(frozen=True)
class StoreKey:
    """All that decides an embedding, apart from its text, layer and pooling.

    Two encoders share vectors exactly when their keys are equal.

    Attributes
    ----------
    backbone : str
        Model id or folder name, as the user gave it.
    weights : str
        Hash of the weights, or the resolved revision.
    adapter : str or None
        Hash of the adapter's weights; None for the backbone as downloaded.
    tokenizer : str
        Hash of the tokenizer's files.
    max_length : int
        In tokens.
    prefix : str
        Put in front of every text.
    precision : str
        Resolved, never ``"auto"``: ``"float32"``, ``"bfloat16"``, ``"float16"``, or of quantized weights also what is
        computed in, as in ``"nf4+bfloat16"``.
    """

    backbone: str
    weights: str
    adapter: str | None
    tokenizer: str
    max_length: int
    prefix: str
    precision: str

    def digest(self) -> str:
        """Return 32 hex digits that change with any field and with the store's schema version."""
        return digest_key(self.to_json())

    def to_json(self) -> str:
        """Return the readable form, schema version included."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> StoreKey:
        """Read what `to_json` wrote.

        Raises
        ------
        StoreError
            If the text isn't a key of this schema version.
        """
        try:
            values: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"the key can't be read ({error})") from error
        if not isinstance(values, dict):
            raise StoreError("the key isn't a JSON object")
        try:
            check_release(values, {"schema": int}, schema=SCHEMA, again="its texts are read anew")
        except OtherRelease as error:
            raise StoreError(f"the table {error}") from error
        names = {"schema", *(field.name for field in fields(cls))}
        if set(values) != names:
            raise StoreError(f"the key doesn't have the fields {', '.join(sorted(names))}")
        return cls(**{name: value for name, value in values.items() if name != "schema"})


def digest_key(text: str) -> str:
    """Return the name of the folder that belongs to a key in its readable form."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def hash_text(text: str) -> bytes:
    """Return 16 bytes that stand for the exact text: case, spaces and Unicode form count."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()


def column_name(layer: int, pooling: str) -> str:
    """Return the column of a hidden state (0 is the embedding layer) under a pooling.

    Examples
    --------
    >>> column_name(6, "mean")
    'layer_06_mean'
    """
    if layer < 0:
        raise StoreError(f"layer {layer} has no column: count hidden states from 0, the embedding layer.")
    return f"layer_{layer:02d}_{pooling}"


def default_store_uri() -> str:
    """Return ``$EMBEDTUNE_STORE``, or ``embedtune/store`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if named := os.environ.get("EMBEDTUNE_STORE"):
        return named
    cache_dir = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(cache_dir) / "embedtune" / "store")
