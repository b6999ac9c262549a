"""Attention over texts laid end to end, each inside itself, through transformers' attention interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Under which transformers knows this attention.
ATTENTION = "embedtune_packed"
#: The argument of a model's forward pass that carries the lengths down to its attention, for models that pass it on.
ARGUMENT = "packed_lengths"

#: What torch's kernel takes, the same for query, key and value.
_KERNEL_TYPES = ({torch.float16}, {torch.bfloat16})

_lengths: ContextVar[Lengths] = ContextVar("lengths")


@dataclass(frozen=True)
class Lengths:
    """Tokens per text, on the host and as running sums (n_texts + 1,) of int32 on the device."""

    counts: tuple[int, ...]
    bounds: Tensor

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> Lengths:
        """Return the lengths of texts that follow one another."""
        bounds = torch.tensor(np.concatenate([[0], np.cumsum(counts)]), dtype=torch.int32)
        return cls(tuple(counts), move(bounds, device))

    def to(self, device: torch.device, non_blocking: bool = False) -> Lengths:
        """Bring them to a device, as data loaders bring a batch's tensors there."""
        return Lengths(self.counts, self.bounds.to(device, non_blocking=non_blocking))


def attend_packed(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend inside each text, as transformers' attention interface has it.

    Query, key and value have shape (1, n_heads, n_tokens, head_width), the result (1, n_tokens, n_heads, head_width).
    """
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    lengths: Lengths = kwargs.get(ARGUMENT) or _lengths.get()
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if q.is_cuda and {q.dtype, k.dtype, v.dtype} in _KERNEL_TYPES and (kernel := _find_kernel()) is not None:
        if scaling is not None:
            q = q * (scaling * q.shape[-1] ** 0.5)  # the kernel divides by the root itself
        return kernel(q, _widen(k, q), _widen(v, q), lengths, causal)[None], None
    return _attend_by_length(q, _widen(k, q), _widen(v, q), lengths, causal, scaling)[None], None


def _widen(part: Tensor, query: Tensor) -> Tensor:
    """Repeat the heads that several of the query's share."""
    n_shared = query.shape[1] // part.shape[1]
    return part if n_shared == 1 else part.repeat_interleave(n_shared, dim=1)


def _find_kernel() -> Callable[[Tensor, Tensor, Tensor, Lengths, bool], Tensor] | None:
    """Return torch's attention over texts of any length, where this torch has it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    by_window = "window_size" in inspect.signature(varlen_attn).parameters

    def attend(query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, causal: bool) -> Tensor:
        way: dict[str, Any] = (
            {"window_size": (-1, 0 if causal else -1)} if by_window else {"is_causal": causal}
        )
        longest = max(lengths.counts)
        found: Any = varlen_attn(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            lengths.bounds,
            lengths.bounds,
            longest,
            longest,
            **way,
        )
        attended: Tensor = found[0] if isinstance(found, tuple) else found
        return attended

    return attend


def _attend_by_length(
    query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, causal: bool, scaling: float | None
) -> Tensor:
    """Attend to runs of texts of equal length at once: (n_tokens, n_heads, head_width)."""
    out, start, counts = torch.empty_like(query), 0, lengths.counts
    first = 0
    while first < len(counts):
        last = first
        while last < len(counts) and counts[last] == counts[first]:
            last += 1
        stop = start + counts[first] * (last - first)
        q, k, v = (
            part[start:stop].reshape(last - first, counts[first], *part.shape[1:]).transpose(1, 2)
            for part in (query, key, value)
        )
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling)
        out[start:stop] = found.transpose(1, 2).flatten(0, 1)
        start, first = stop, last
    return out


@contextmanager
def use_packed_attention(model: Any) -> Iterator[None]:
    """Let a transformers model attend by `attend_packed`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend_packed)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def tell_lengths(lengths: Lengths) -> Iterator[None]:
    """Tell the attention in this thread how long the texts of the next passes are."""
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


def attends_fully(config: Any) -> bool:
    """Tell whether every layer attends to the whole text, as `attend_packed` does."""
    kinds = set(getattr(config, "layer_types", None) or ())
    return not kinds - {"full_attention"} and not getattr(config, "sliding_window", None)


def move(values: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor of the host to the device, in the background where that is possible."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
