"""Batching: which texts run together, decided by their token counts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedtune.errors import ConfigError


@dataclass
class MemoryLimit:
    """The most padded tokens that a pass may hold; None until memory first ran out."""

    tokens: int | None = None

    def allows(self, n_tokens: int) -> bool:
        """Tell whether a pass of so many tokens may be tried."""
        return self.tokens is None or n_tokens <= self.tokens

    def lower(self, n_tokens: int) -> None:
        """Remember that no more than `n_tokens` fit."""
        self.tokens = n_tokens if self.tokens is None else min(self.tokens, n_tokens)


def plan_batches(lengths: Sequence[int] | NDArray[np.integer], *, max_tokens: int) -> list[NDArray[np.intp]]:
    """Cut texts into batches of similar length whose padded size stays within a token budget.

    Parameters
    ----------
    lengths : sequence of int, shape (n_texts,)
        Tokens per text.
    max_tokens : int
        Upper bound on rows times longest row; a text longer than this runs alone.

    Returns
    -------
    list of ndarray of intp
        Row numbers per batch, longest texts first, so that memory runs out at once or never. Equal lengths
        keep their order. The same lengths and budget always give the same batches.

    Raises
    ------
    ConfigError
        If `max_tokens` is under 1.
    """
    if max_tokens < 1:
        raise ConfigError(f"a batch of {max_tokens} tokens holds no text: set batch_tokens to 1 or more.")
    counts = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    order = np.argsort(-counts, kind="stable")
    batches, start = [], 0
    while start < len(order):
        n_rows = max(1, int(max_tokens // counts[order[start]]))
        batches.append(order[start : start + n_rows])
        start += n_rows
    return batches
