"""Running batches through a backbone: padded, pooled, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from embedtune.embed.backbone import Backbone
from embedtune.embed.hidden import read_hidden
from embedtune.embed.pooling import OWN_TOKENS, pool, pool_all_positions
from embedtune.embed.quantization import hush_bitsandbytes
from embedtune.embed.tokens import PaddedBatch, Tokens, pad_tokens, pick_pad_id
from embedtune.errors import BackboneError, ResourceError

Vectors = dict[int, NDArray[np.float32]]


def embed_batch(
    backbone: Backbone,
    tokens: Tokens,
    rows: NDArray[np.intp],
    *,
    layers: Sequence[int],
    pooling: str,
    max_length: int,
) -> Vectors:
    """Embed some texts in one forward pass, or in several halves where memory doesn't hold them all.

    Parameters
    ----------
    backbone : Backbone
    tokens : Tokens
    rows : ndarray of intp, shape (n_rows,)
        Which of the texts.
    layers : sequence of int
        Hidden-state numbers.
    pooling : str
    max_length : int
        Padded to with ``mean_padded``; otherwise the longest row decides.

    Returns
    -------
    dict of int to ndarray of float32, shape (n_rows, width)

    Raises
    ------
    ResourceError
        If not even one text fits into memory.
    BackboneError
        If the values overflow the precision.
    """
    n_tokens = max_length if pooling == "mean_padded" else None
    batch = pad_tokens(tokens, rows, pad_id=pick_pad_id(backbone.tokenizer), n_tokens=n_tokens)
    try:
        vectors = _run(backbone, batch, layers=layers, pooling=pooling)
    except torch.OutOfMemoryError:
        vectors = None
    if vectors is None:  # outside the handler, whose traceback would keep the activations alive
        return _embed_halves(backbone, tokens, rows, layers=layers, pooling=pooling, max_length=max_length)
    for layer, values in vectors.items():
        if not np.isfinite(values).all():
            raise BackboneError(
                f"layer {layer} of '{backbone.model_id}' gives values that aren't finite in {backbone.precision}: "
                "set precision to float32, or check the checkpoint."
            )
    return vectors


def _embed_halves(
    backbone: Backbone,
    tokens: Tokens,
    rows: NDArray[np.intp],
    *,
    layers: Sequence[int],
    pooling: str,
    max_length: int,
) -> Vectors:
    if len(rows) == 1:
        raise ResourceError(
            f"a text of {len(tokens.ids[rows[0]])} tokens does not fit into the memory of {backbone.device}: "
            "set max_length lower, precision to bfloat16, or device to cpu."
        )
    if backbone.device.startswith("cuda"):
        torch.cuda.empty_cache()
    middle = len(rows) // 2
    first, second = (
        embed_batch(backbone, tokens, half, layers=layers, pooling=pooling, max_length=max_length)
        for half in (rows[:middle], rows[middle:])
    )
    return {layer: np.concatenate([first[layer], second[layer]]) for layer in first}


def _run(backbone: Backbone, batch: PaddedBatch, *, layers: Sequence[int], pooling: str) -> Vectors:
    device = torch.device(backbone.device)
    inputs = {
        "input_ids": torch.from_numpy(batch.ids).to(device),
        "attention_mask": torch.from_numpy(batch.mask).to(device),
    }
    counted = torch.from_numpy(batch.counted if pooling in OWN_TOKENS else batch.mask.astype(bool)).to(device)
    with hush_bitsandbytes(), torch.inference_mode():
        if pooling == "pooler":
            pooled = {backbone.n_layers: backbone.model(**inputs).pooler_output.float()}
        elif pooling == "mean_padded":
            pooled = read_hidden(
                backbone.model,
                backbone.stack,
                inputs,
                layers=layers,
                reduce=lambda hidden: pool_all_positions(hidden.float(), counted),
            )
        else:
            pooled = read_hidden(
                backbone.model,
                backbone.stack,
                inputs,
                layers=layers,
                # A model spread over devices leaves its hidden states where each layer is.
                reduce=lambda hidden: pool(hidden, counted.to(hidden.device), pooling),
            )
        return {layer: values.cpu().numpy() for layer, values in pooled.items()}
