"""Trunk: what the frozen lower layers make of the texts, computed once for all epochs, seeds and settings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedtune.embed.batching import plan_batches
from embedtune.embed.hidden import find_stack, read_hidden
from embedtune.embed.tokens import Tokens, pad_tokens
from embedtune.finetune.model import PooledClassifier
from embedtune.progress import track

#: A trunk that would be larger is not kept: the lower layers are then run in every step.
MOST_BYTES = 4 * 2**30

#: Trunks kept for the next training on the same texts.
_N_KEPT = 2

_BATCH_TOKENS = 4096

_kept: OrderedDict[str, Trunk] = OrderedDict()
_lock = threading.RLock()


class Trunk(NamedTuple):
    """Hidden states of texts under the lowest trained layer, without padding.

    Attributes
    ----------
    states : Tensor, shape (n_tokens, width)
        On the CPU, text after text.
    starts : ndarray of int64, shape (n_texts + 1,)
        Where each text's states begin; the last is their number.
    """

    states: Tensor
    starts: NDArray[np.int64]

    def pad(self, rows: Sequence[int], *, n_tokens: int) -> Tensor:
        """Return the rows' states, zeros behind them, shape (n_rows, n_tokens, width)."""
        padded = self.states.new_zeros(len(rows), n_tokens, self.states.shape[1])
        for place, row in enumerate(rows):
            start, stop = self.starts[row], self.starts[row + 1]
            padded[place, : stop - start] = self.states[start:stop]
        return padded


class Entry(nn.Module):
    """Stands where frozen layers stood: hands on the states put into it, or its input if there are none."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.states: Tensor | None = None
        if (kind := getattr(layer, "attention_type", None)) is not None:
            self.attention_type = kind  # models that mix kinds of attention ask each layer for its own

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the states."""
        return hidden_states if self.states is None else self.states


@contextlib.contextmanager
def stand_on_trunk(
    model: PooledClassifier,
    tokens: Tokens,
    *,
    n_lower: int,
    n_layers: int,
    pad_id: int,
    weights: Sequence[str],
    device: str,
    precision: str,
) -> Iterator[tuple[Trunk | None, float]]:
    """Put the trunk in the place of the lowest `n_lower` layers inside the block, and the layers back after it.

    The same texts and weights always give the same trunk to the last bit, so a training that was interrupted goes on
    as if it hadn't been.

    Parameters
    ----------
    model : PooledClassifier
        Its lowest layers frozen; moved to `device`.
    tokens : Tokens
        Of all rows.
    n_lower, n_layers : int
        Layers that are frozen, and all.
    pad_id : int
    weights : sequence of str
        Hashes of all that the lower layers depend on.
    device, precision : str
        As in training.

    Yields
    ------
    (Trunk, float) or (None, 0.0)
        The trunk and the seconds it took, none if it was kept; None where it would be too large, or the model's layers
        can't be told apart.
    """
    stack = find_stack(model.backbone, n_layers) if n_lower else None
    width = model.head.in_features
    if stack is None or int(tokens.lengths.sum()) * width * 4 > MOST_BYTES:
        yield None, 0.0
        return
    model.to(torch.device(device))
    key = _make_key(tokens, [*weights, str(n_lower), device.partition(":")[0], precision])
    started = time.perf_counter()
    with _lock:
        found = _kept.get(key)
        if found is None:
            while len(_kept) >= _N_KEPT:
                _kept.popitem(last=False)
            found = _kept[key] = _read(
                model.backbone,
                stack,
                tokens,
                n_lower=n_lower,
                pad_id=pad_id,
                device=device,
                precision=precision,
            )
        _kept.move_to_end(key)
    seconds = time.perf_counter() - started
    lower = [stack[number] for number in range(n_lower)]
    for number, layer in enumerate(lower):
        stack[number] = Entry(layer)
    model.entry = stack[n_lower - 1]
    try:
        yield found, seconds
    finally:
        model.entry = None
        for number, layer in enumerate(lower):
            stack[number] = layer


def release_trunks() -> None:
    """Let go of the trunks kept for the next training."""
    with _lock:
        _kept.clear()


def _make_key(tokens: Tokens, parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([list(parts), tokens.ids]).encode()).hexdigest()


def _read(
    backbone: nn.Module,
    stack: nn.ModuleList,
    tokens: Tokens,
    *,
    n_lower: int,
    pad_id: int,
    device: str,
    precision: str,
) -> Trunk:
    starts = np.concatenate([[0], np.cumsum(tokens.lengths)])
    states: Tensor | None = None
    place = torch.device(device)
    backbone.eval()
    with track("read the frozen layers", len(tokens.ids), unit="texts") as bar:
        for rows in plan_batches(tokens.lengths, max_tokens=_BATCH_TOKENS):
            batch = pad_tokens(tokens, rows, pad_id=pad_id)
            inputs = {
                "input_ids": torch.from_numpy(batch.ids).to(place),
                "attention_mask": torch.from_numpy(batch.mask).to(place),
            }
            # Not inference_mode, whose tensors can't take part in training.
            with (
                torch.no_grad(),
                torch.autocast(place.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"),
            ):
                hidden = read_hidden(
                    backbone, stack, inputs, layers=[n_lower], reduce=lambda _, hidden: hidden.float()
                )[n_lower].cpu()
            if states is None:
                states = hidden.new_empty(int(starts[-1]), hidden.shape[2])
            for at, row in enumerate(rows):
                states[starts[row] : starts[row + 1]] = hidden[at, : starts[row + 1] - starts[row]]
            bar.advance(len(rows))
    assert states is not None
    return Trunk(states, starts)
