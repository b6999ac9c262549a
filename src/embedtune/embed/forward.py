"""Running batches through a backbone in torch: padded, pooled, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedtune.embed.backbone import Backbone
from embedtune.embed.hidden import read_hidden
from embedtune.embed.pooling import OWN_TOKENS, pool, pool_all_positions
from embedtune.embed.quantization import hush_bitsandbytes
from embedtune.embed.runner import Column, Vectors, check_finite, refuse_long_text
from embedtune.embed.tokens import PaddedBatch, Tokens, pad_tokens, pick_pad_id
from embedtune.memory import is_out_of_memory


class TorchRunner:
    """Runs a backbone in torch, on any device.

    Parameters
    ----------
    backbone : Backbone
    columns : sequence of (int, str)
        ``pooler`` and ``mean_padded`` go with no other pooling.
    max_length : int
        Padded to with ``mean_padded``; otherwise a batch's longest row decides.
    """

    def __init__(self, backbone: Backbone, columns: Sequence[Column], *, max_length: int) -> None:
        self.backbone, self.columns, self.max_length = backbone, tuple(columns), max_length

    def run(
        self, tokens: Tokens, batches: Iterable[NDArray[np.intp]]
    ) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
        """Yield each batch's rows and vectors."""
        for rows in batches:
            yield (
                rows,
                embed_batch(self.backbone, tokens, rows, columns=self.columns, max_length=self.max_length),
            )


def embed_batch(
    backbone: Backbone,
    tokens: Tokens,
    rows: NDArray[np.intp],
    *,
    columns: Sequence[Column],
    max_length: int,
) -> Vectors:
    """Embed some texts in one forward pass, or in several halves where memory doesn't hold them all.

    The size that worked is remembered with the backbone, so that later batches don't run out of memory again.

    Parameters
    ----------
    backbone : Backbone
    tokens : Tokens
    rows : ndarray of intp, shape (n_rows,)
        Which of the texts.
    columns : sequence of (int, str)
        Hidden-state numbers and poolings.
    max_length : int
        Padded to with ``mean_padded``; otherwise the longest row decides.

    Returns
    -------
    dict of (int, str) to ndarray of float32, shape (n_rows, width)

    Raises
    ------
    ResourceError
        If not even one text fits into memory.
    BackboneError
        If the values overflow the precision.
    """
    n_tokens = max_length if any(pooling == "mean_padded" for _, pooling in columns) else None
    longest = n_tokens or max(len(tokens.ids[row]) for row in rows)
    vectors = None
    if backbone.limit.allows(len(rows) * longest) or len(rows) == 1:
        batch = pad_tokens(tokens, rows, pad_id=pick_pad_id(backbone.tokenizer), n_tokens=n_tokens)
        try:
            vectors = _run(backbone, batch, columns=columns)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            backbone.limit.lower(len(rows) * longest // 2)
    if vectors is None:  # outside the handler, whose traceback would keep the activations alive
        return _embed_halves(backbone, tokens, rows, columns=columns, max_length=max_length)
    check_finite(vectors, model_id=backbone.model_id, precision=backbone.precision)
    return vectors


def _embed_halves(
    backbone: Backbone,
    tokens: Tokens,
    rows: NDArray[np.intp],
    *,
    columns: Sequence[Column],
    max_length: int,
) -> Vectors:
    if len(rows) == 1:
        raise refuse_long_text(len(tokens.ids[rows[0]]), backbone.device)
    if backbone.device.startswith("cuda"):
        torch.cuda.empty_cache()
    middle = len(rows) // 2
    first, second = (
        embed_batch(backbone, tokens, half, columns=columns, max_length=max_length)
        for half in (rows[:middle], rows[middle:])
    )
    return {column: np.concatenate([first[column], second[column]]) for column in first}


def _run(backbone: Backbone, batch: PaddedBatch, *, columns: Sequence[Column]) -> Vectors:
    device = torch.device(backbone.device)
    inputs = {
        "input_ids": torch.from_numpy(batch.ids).to(device),
        "attention_mask": torch.from_numpy(batch.mask).to(device),
    }
    own = torch.from_numpy(batch.counted).to(device)
    read = inputs["attention_mask"].bool()
    poolings: dict[int, list[str]] = {}
    for layer, pooling in columns:
        poolings.setdefault(layer, []).append(pooling)

    def reduce(layer: int, hidden: Tensor) -> dict[Column, Tensor]:
        found = {}
        for pooling in poolings[layer]:
            if pooling == "mean_padded":
                found[layer, pooling] = pool_all_positions(hidden.float(), own)
            else:
                # A model spread over devices leaves its hidden states where each layer is.
                counted = (own if pooling in OWN_TOKENS else read).to(hidden.device)
                found[layer, pooling] = pool(hidden, counted, pooling)
        return found

    with hush_bitsandbytes(), torch.inference_mode():
        if any(pooling == "pooler" for _, pooling in columns):
            pooled = {(backbone.n_layers, "pooler"): backbone.model(**inputs).pooler_output.float()}
        else:
            by_layer = read_hidden(
                backbone.model, backbone.stack, inputs, layers=list(poolings), reduce=reduce
            )
            pooled = {column: values for found in by_layer.values() for column, values in found.items()}
        return {column: values.cpu().numpy() for column, values in pooled.items()}
