"""Long texts in pieces that a backbone can read, and the pieces' vectors as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedtune.errors import BackboneError, ConfigError, suggest_nearest

LONG_TEXTS = ("cut", "split")


class Pieces(NamedTuple):
    """Texts cut into pieces, a short one being its own.

    Attributes
    ----------
    texts : list of str
        The pieces, text after text.
    owner : ndarray of int, shape (n_pieces,)
        The number of each piece's text, ascending; every text has a piece.
    n_tokens : ndarray of float64, shape (n_pieces,)
        The piece's own tokens, at least 1.
    """

    texts: list[str]
    owner: NDArray[np.intp]
    n_tokens: NDArray[np.float64]

    def pool(self, vectors: NDArray[np.float32], *, pooling: str) -> NDArray[np.float32]:
        """Return one vector per text, (n_texts, width), of the pieces' (n_pieces, width).

        The mean weighted by tokens, or under ``"max"`` the maximum; a text of one piece keeps its vector to the bit.
        """
        starts = np.flatnonzero(np.diff(self.owner, prepend=-1))
        pooled = vectors[starts]
        sizes = np.diff(np.append(starts, len(self.owner)))
        if (sizes == 1).all():
            return pooled
        if pooling == "max":
            several: NDArray[Any] = np.maximum.reduceat(vectors, starts)
        else:
            weighted = vectors * self.n_tokens[:, None]
            several = np.add.reduceat(weighted, starts) / np.add.reduceat(self.n_tokens, starts)[:, None]
        pooled[sizes > 1] = several[sizes > 1].astype(np.float32)
        return pooled


def check_long_texts(long_texts: str) -> None:
    """Raise ConfigError unless `long_texts` is known."""
    if long_texts not in LONG_TEXTS:
        raise ConfigError(
            f"long_texts {long_texts!r} is unknown{suggest_nearest(str(long_texts), LONG_TEXTS)}: "
            f"choose one of {', '.join(LONG_TEXTS)}."
        )


def split_texts(tokenizer: Any, texts: Sequence[str], *, max_length: int, prefix: str = "") -> Pieces:
    """Cut texts into pieces that fit into `max_length` tokens, special tokens and prefix included.

    A piece ends before a space in its second half where there is one, so that words stay whole.

    Raises
    ------
    ConfigError
        If `max_length` leaves no room for a text.
    BackboneError
        If the tokenizer can't tell where tokens begin.
    """
    if not tokenizer.is_fast:
        raise BackboneError(
            "long_texts 'split' needs a fast tokenizer (tokenizer.json), which this model lacks: set long_texts='cut'."
        )
    n_prefix = len(tokenizer(prefix, add_special_tokens=False)["input_ids"]) if prefix else 0
    room = max_length - tokenizer.num_special_tokens_to_add(pair=False) - n_prefix
    if room < 1:
        raise ConfigError(
            f"max_length {max_length} leaves no room for a text: set it to {max_length - room + 1} or more."
        )
    pieces: list[str] = []
    owner: list[int] = []
    n_tokens: list[int] = []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
    )
    for number, (text, offsets) in enumerate(zip(texts, encoded["offset_mapping"], strict=True)):
        for start, stop, count in _cut(text, [begin for begin, _ in offsets], room):
            pieces.append(text[start:stop])
            owner.append(number)
            n_tokens.append(max(count, 1))
    return Pieces(pieces, np.array(owner, dtype=np.intp), np.array(n_tokens, dtype=np.float64))


def _cut(text: str, begins: list[int], room: int) -> list[tuple[int, int, int]]:
    """Return each piece's first character, the one behind its last, and its tokens."""
    if len(begins) <= room:
        return [(0, len(text), len(begins))]
    found, first = [], 0
    while first < len(begins):
        last = min(first + room, len(begins))
        if last < len(begins):
            words = (
                token
                for token in range(last, first + room // 2, -1)
                if text[begins[token]].isspace() or text[begins[token] - 1].isspace()
            )
            last = next(words, last)
        stop = begins[last] if last < len(begins) else len(text)
        found.append((begins[first] if first else 0, stop, last - first))
        first = last
    return found
