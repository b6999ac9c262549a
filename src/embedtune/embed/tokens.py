"""Texts to token ids, and token ids to padded model inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedtune.errors import BackboneError, ConfigError

#: A tokenizer may put a space before a text, and decompose a sign or two.
_SPARE_TOKENS = 8


class Tokens(NamedTuple):
    """Token ids of some texts.

    Attributes
    ----------
    ids : list of list of int
        At least one per text.
    counted : list of list of bool, or None
        Whether mean and max see a token: all but the prefix's. None without a prefix.
    """

    ids: list[list[int]]
    counted: list[list[bool]] | None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Token counts, shape (n_texts,)."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)


class PaddedBatch(NamedTuple):
    """A right-padded batch: ids, attention mask and mask of counted tokens, all (n_texts, n_tokens).

    Padding is on the right whatever the tokenizer prefers, so positions start at 0 in every model.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    counted: NDArray[np.bool_]


def tokenize(tokenizer: Any, texts: Sequence[str], *, max_length: int, prefix: str = "") -> Tokens:
    """Turn texts into token ids, special tokens included, truncated to `max_length`.

    Special tokens count with a prefix too, so mean and max differ by the prefix's own tokens alone. A text
    without any token (an empty one, in a tokenizer without special tokens) becomes one end-of-text token.

    Raises
    ------
    ConfigError
        If `max_length` leaves no room for a text.
    BackboneError
        If a prefix is asked for and the tokenizer can't tell where tokens begin.
    """
    n_special = tokenizer.num_special_tokens_to_add(pair=False)
    if max_length <= n_special:
        raise ConfigError(
            f"max_length {max_length} leaves no room for a text: set it to {n_special + 1} or more "
            f"({n_special} special tokens surround each text)."
        )
    if prefix and not tokenizer.is_fast:
        raise BackboneError(
            "prefix needs a fast tokenizer (tokenizer.json), which this model lacks: set prefix=''."
        )
    encoded = tokenizer(
        [prefix + text for text in texts],
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=bool(prefix),
        return_special_tokens_mask=bool(prefix),
    )
    filler = _pick_filler(tokenizer)
    ids = [row or [filler] for row in encoded["input_ids"]]
    if not prefix:
        return Tokens(ids, None)
    n_prefix = len(prefix)
    counted = [
        [special == 1 or end > n_prefix for special, (_, end) in zip(specials, offsets, strict=True)]
        or [True]
        for specials, offsets in zip(encoded["special_tokens_mask"], encoded["offset_mapping"], strict=True)
    ]
    # Nothing but the prefix was read: without a token of the text's own, all of them stand for it.
    counted = [row if any(row) else [True] * len(row) for row in counted]
    return Tokens(ids, counted)


def find_longer(
    tokenizer: Any, texts: Sequence[str], *, max_length: int, prefix: str = ""
) -> NDArray[np.bool_]:
    """Return which texts `tokenize` truncates, shape (n_texts,).

    No tokenizer makes more tokens than bytes, but for a few at the beginning, so most short texts aren't tokenized.
    """
    room = max_length - tokenizer.num_special_tokens_to_add(pair=False)
    rows = [i for i, text in enumerate(texts) if len((prefix + text).encode()) > room - _SPARE_TOKENS]
    longer = np.zeros(len(texts), dtype=np.bool_)
    if rows:
        encoded = tokenizer(
            [prefix + texts[row] for row in rows],
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        longer[rows] = [len(ids) > room for ids in encoded["input_ids"]]
    return longer


def pad_tokens(
    tokens: Tokens, rows: NDArray[np.intp], *, pad_id: int, n_tokens: int | None = None
) -> PaddedBatch:
    """Pad the given rows to `n_tokens`, or to the longest of them."""
    width = n_tokens or max(len(tokens.ids[row]) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    counted = np.zeros((len(rows), width), dtype=np.bool_)
    for place, row in enumerate(rows):
        length = len(tokens.ids[row])
        ids[place, :length] = tokens.ids[row]
        mask[place, :length] = 1
        counted[place, :length] = True if tokens.counted is None else tokens.counted[row]
    return PaddedBatch(ids, mask, counted)


def pick_pad_id(tokenizer: Any) -> int:
    """Return the pad token's id, or the unknown token's (as LLMEmbed's code does), or 0; it is masked out."""
    for token_id in (tokenizer.pad_token_id, tokenizer.unk_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def _pick_filler(tokenizer: Any) -> int:
    for token_id in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token_id is not None:
            return int(token_id)
    return pick_pad_id(tokenizer)
