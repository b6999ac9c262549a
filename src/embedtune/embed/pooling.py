"""Pooling: one vector per text out of one hidden state per token.

Two more ways to pool exist that are no function of hidden states and a mask, `MODEL_POOLINGS`: ``pooler``
(the model's own trained pooler) and ``mean_padded`` (the published LLMEmbed mean over padding as well).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from embedtune.errors import ConfigError, suggest_nearest

if TYPE_CHECKING:
    from torch import Tensor


def pool_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average the masked-in tokens; a text with none gives zeros."""
    kept = hidden.masked_fill(~mask.unsqueeze(-1), 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def pool_weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average the masked-in tokens with weights 1, 2, 3 …: a decoder's later tokens have read more.

    Muennighoff, "SGPT: GPT Sentence Embeddings for Semantic Search", arXiv 2202.08904, equation 2.
    """
    counts = mask.long()  # what sums booleans is up to the backend
    weights = (counts.cumsum(dim=1) * counts).unsqueeze(-1)
    kept = hidden.masked_fill(~mask.unsqueeze(-1), 0.0)
    return (kept * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def pool_cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the first masked-in token ([CLS], <s>)."""
    return _take_token(hidden, mask.int().argmax(dim=1))


def pool_last(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the last masked-in token, the only one of a decoder that has read the whole text."""
    from_the_end = mask.int().flip(dims=(1,)).argmax(dim=1)
    return _take_token(hidden, mask.shape[1] - 1 - from_the_end)


def pool_max(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take each dimension's maximum over the masked-in tokens; a text with none gives zeros."""
    highest = hidden.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(dim=1)
    return highest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)


def pool_all_positions(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average over every position, padding included (arXiv 2406.03725's code); the mask is ignored."""
    return hidden.mean(dim=1)


def _take_token(hidden: Tensor, position: Tensor) -> Tensor:
    index = position.view(-1, 1, 1).expand(-1, 1, hidden.shape[2])
    return hidden.gather(1, index).squeeze(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": pool_mean,
    "weighted_mean": pool_weighted_mean,
    "cls": pool_cls,
    "last": pool_last,
    "max": pool_max,
}

#: Those that leave a prefix's tokens out.
OWN_TOKENS = frozenset({"mean", "weighted_mean", "max"})

MODEL_POOLINGS = ("pooler", "mean_padded")


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """Pool hidden states into one vector per text, in float32.

    Parameters
    ----------
    hidden : torch.Tensor, shape (n_texts, n_tokens, width), any float dtype
    mask : torch.Tensor, shape (n_texts, n_tokens)
        Non-zero where a token counts; padding may be on either side, and its values (NaN too) don't matter.
    how : str
        A key of `POOLINGS`.

    Returns
    -------
    torch.Tensor, shape (n_texts, width), float32, on the device of `hidden`

    Raises
    ------
    ConfigError
        If `how` isn't a key of `POOLINGS`.
    """
    return POOLINGS[_check_name(how, tuple(POOLINGS))](hidden.float(), mask.bool())


def check_pooling(how: str) -> str:
    """Return `how` if an encoder offers it.

    Raises
    ------
    ConfigError
        If it is neither in `POOLINGS` nor in `MODEL_POOLINGS`.
    """
    return _check_name(how, (*POOLINGS, *MODEL_POOLINGS))


def _check_name(how: str, offered: tuple[str, ...]) -> str:
    if how not in offered:
        nearest = suggest_nearest(str(how), offered)
        raise ConfigError(f"pooling {how!r} is unknown{nearest}: choose one of {', '.join(offered)}.")
    return how
