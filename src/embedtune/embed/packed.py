"""Running batches through a backbone without padding: texts end to end, attention inside each text."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedtune.embed.backbone import Backbone
from embedtune.embed.hidden import read_hidden
from embedtune.embed.packed_attention import (
    Lengths,
    attends_fully,
    move,
    tell_lengths,
    use_packed_attention,
)
from embedtune.embed.pooling import OWN_TOKENS
from embedtune.embed.runner import Column, Vectors, check_finite, refuse_long_text
from embedtune.embed.tokens import Tokens
from embedtune.memory import is_out_of_memory

#: By backbone, what its first position is called; None if it can't be packed.
_first_positions: weakref.WeakKeyDictionary[Backbone, int | None] = weakref.WeakKeyDictionary()


class PackedRunner:
    """Runs a backbone on texts laid end to end, so that no token of a pass is padding.

    A batch's vectors are copied back while the next batch runs.

    Parameters
    ----------
    backbone : Backbone
        One that `can_pack` allows.
    columns : sequence of (int, str)
    """

    def __init__(self, backbone: Backbone, columns: Sequence[Column]) -> None:
        self.backbone, self.columns = backbone, tuple(columns)
        self._first = _find_first_position(backbone) or 0

    def run(
        self, tokens: Tokens, batches: Iterable[NDArray[np.intp]]
    ) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
        """Yield each batch's rows and vectors."""
        waiting: tuple[NDArray[np.intp], Callable[[], Vectors]] | None = None
        with use_packed_attention(self.backbone.model):
            for rows in batches:
                collect = self._start(tokens, rows)
                if waiting is not None:
                    yield waiting[0], waiting[1]()
                waiting = rows, collect
            if waiting is not None:
                yield waiting[0], waiting[1]()

    def _start(self, tokens: Tokens, rows: NDArray[np.intp]) -> Callable[[], Vectors]:
        """Start a batch, in halves where memory doesn't hold it; return what waits for its vectors."""
        n_tokens = sum(len(tokens.ids[row]) for row in rows)
        pooled = None
        if self.backbone.limit.allows(n_tokens) or len(rows) == 1:
            try:
                pooled = self._run(tokens, rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.backbone.limit.lower(n_tokens // 2)
        if pooled is not None:
            return self._send_back(pooled)
        if len(rows) == 1:
            raise refuse_long_text(n_tokens, self.backbone.device)
        torch.cuda.empty_cache()
        middle = len(rows) // 2
        halves = [self._start(tokens, half)() for half in (rows[:middle], rows[middle:])]
        joined = {column: np.concatenate([half[column] for half in halves]) for column in self.columns}
        return lambda: joined

    def _run(self, tokens: Tokens, rows: NDArray[np.intp]) -> dict[Column, Tensor]:
        device = torch.device(self.backbone.device)
        lengths = Lengths.of([len(tokens.ids[row]) for row in rows], device)
        ids = torch.tensor([token for row in rows for token in tokens.ids[row]])
        counted = torch.ones(len(ids), dtype=torch.bool)
        if tokens.counted is not None:
            counted = torch.tensor([flag for row in rows for flag in tokens.counted[row]])
        own = move(counted, device)
        every = torch.ones(len(ids), dtype=torch.bool, device=device)
        poolings: dict[int, list[str]] = {}
        for layer, pooling in self.columns:
            poolings.setdefault(layer, []).append(pooling)

        def reduce(layer: int, hidden: Tensor) -> dict[Column, Tensor]:
            return {
                (layer, pooling): pool_packed(
                    hidden[0], own if pooling in OWN_TOKENS else every, lengths, pooling
                )
                for pooling in poolings[layer]
            }

        found = _read_packed(
            self.backbone,
            move(ids, device),
            lengths,
            layers=list(poolings),
            first=self._first,
            reduce=reduce,
        )
        return {column: values for by_pooling in found.values() for column, values in by_pooling.items()}

    def _send_back(self, pooled: dict[Column, Tensor]) -> Callable[[], Vectors]:
        on_device = self.backbone.device.startswith("cuda")
        arrived = {
            column: torch.empty(values.shape, dtype=values.dtype, pin_memory=on_device).copy_(
                values, non_blocking=on_device
            )
            for column, values in pooled.items()
        }
        event: Any = torch.cuda.Event() if on_device else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record()

        def collect() -> Vectors:
            if event is not None:
                event.synchronize()
            vectors = {column: arrived[column].numpy() for column in self.columns}
            check_finite(vectors, model_id=self.backbone.model_id, precision=self.backbone.precision)
            return vectors

        return collect


def can_pack(backbone: Backbone) -> bool:
    """Tell whether a backbone reads packed texts as padded ones: by its kinds of attention, and on a short probe."""
    return _find_first_position(backbone) is not None


def pool_packed(hidden: Tensor, counted: Tensor, lengths: Lengths, how: str) -> Tensor:
    """Pool packed hidden states (n_tokens, width) into float32 (n_texts, width), as `pool` does padded ones.

    Parameters
    ----------
    hidden : Tensor
    counted : Tensor of bool, shape (n_tokens,)
        At least one token of each text.
    lengths : Lengths
    how : {"mean", "weighted_mean", "cls", "last", "max"}
    """
    n_texts, hidden = len(lengths.counts), hidden.float()
    text_of = torch.repeat_interleave(
        torch.arange(n_texts, device=hidden.device),
        lengths.bounds.diff().long(),
        output_size=len(hidden),
    )
    if how == "max":
        masked = hidden.masked_fill(~counted[:, None], float("-inf"))
        lowest = hidden.new_full((n_texts, hidden.shape[1]), float("-inf"))
        return lowest.scatter_reduce_(0, text_of[:, None].expand_as(masked), masked, "amax")
    place = torch.arange(len(hidden), device=hidden.device)
    if how in ("cls", "last"):
        start = len(hidden) if how == "cls" else -1
        ends = torch.full((n_texts,), start, device=hidden.device)
        kept = place.masked_fill(~counted, start)
        return hidden[ends.scatter_reduce_(0, text_of, kept, "amin" if how == "cls" else "amax")]
    weights = counted.float()
    if how == "weighted_mean":
        running = counted.cumsum(0)
        before = torch.cat([running.new_zeros(1), running])[lengths.bounds[:-1].long()]
        weights = weights * (running - before[text_of])
    total = hidden.new_zeros(n_texts, hidden.shape[1]).index_add_(0, text_of, hidden * weights[:, None])
    return total / hidden.new_zeros(n_texts).index_add_(0, text_of, weights)[:, None]


def _read_packed(
    backbone: Backbone,
    ids: Tensor,
    lengths: Lengths,
    *,
    layers: Sequence[int],
    first: int,
    reduce: Callable[[int, Tensor], Any],
) -> dict[int, Any]:
    starts = torch.repeat_interleave(
        lengths.bounds[:-1].long(), lengths.bounds.diff().long(), output_size=len(ids)
    )
    positions = torch.arange(len(ids), device=ids.device) - starts + first
    with tell_lengths(lengths), torch.inference_mode():
        return read_hidden(
            backbone.model,
            backbone.stack,
            {"input_ids": ids[None], "position_ids": positions[None]},
            layers=layers,
            reduce=reduce,
        )


def _find_first_position(backbone: Backbone) -> int | None:
    """Return what the model calls a text's first position, or None if it can't be packed."""
    if backbone not in _first_positions:
        _first_positions[backbone] = _probe(backbone)
    return _first_positions[backbone]


def _probe(backbone: Backbone) -> int | None:
    config = backbone.description.config.get_text_config(decoder=False)
    if backbone.stack is None or not attends_fully(config):
        return None
    device = torch.device(backbone.device)
    ids = torch.tensor([[2, 3, 4, 5, 6], [7, 3, 8, 0, 0]], device=device)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=device)
    last = backbone.n_layers
    with torch.inference_mode():
        padded = read_hidden(
            backbone.model,
            backbone.stack,
            {"input_ids": ids, "attention_mask": mask},
            layers=[last],
            reduce=lambda _, hidden: hidden[mask.bool()].float(),
        )[last]
    near = 1e-3 if backbone.precision == "float32" else 0.1
    # RoBERTa's family counts from the pad token's number plus one.
    for first in (0, (getattr(config, "pad_token_id", None) or 0) + 1):
        try:
            with use_packed_attention(backbone.model):
                packed = _read_packed(
                    backbone,
                    ids[mask.bool()],
                    Lengths.of((5, 3), device),
                    layers=[last],
                    first=first,
                    reduce=lambda _, hidden: hidden[0].float(),
                )[last]
        except (TypeError, ValueError, KeyError, NotImplementedError):
            return None  # a model whose attention isn't transformers' interface, or that takes no positions
        if torch.allclose(packed, padded, rtol=near, atol=near * float(padded.abs().max())):
            return first
    return None
