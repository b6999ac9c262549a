"""Writing a backbone with its pooling as an ONNX graph, for runtimes without torch."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedtune.embed.backbone import load_backbone
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.graph import PooledReading, make_example
from embedtune.embed.pooling import MODEL_POOLINGS
from embedtune.embed.quiet import hush_libraries
from embedtune.errors import BackboneError, MissingExtraError
from embedtune.files import explain_full_disk

INPUTS = ("input_ids", "attention_mask", "counted")


class _WithoutPrefix(PooledReading):
    """Poolings count all tokens, so that a mask of those that count isn't asked for."""

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return one (n_texts, width) per column."""
        return super().forward(ids, mask, mask.bool())


def write_onnx(encoder: TransformerEncoder, path: Path) -> dict[str, Any]:
    """Write an encoder's backbone, adapter merged, in float32, and return what its user must know.

    The graph takes ``input_ids`` and ``attention_mask``, int64 (n_texts, n_tokens), and, of an encoder with a prefix,
    ``counted``, bool of the same shape: the mask without the prefix's own tokens. It puts out one float32
    (n_texts, width) per layer and pooling; side by side, in their order, they are what the encoder's `transform` gives.

    Raises
    ------
    MissingExtraError
        If onnx or onnxscript isn't installed.
    BackboneError
        If the model can't be converted, or is pooled by more than hidden states and a mask.
    """
    if {pooling for _, pooling in encoder.columns_} & set(MODEL_POOLINGS):
        raise BackboneError(
            f"pooling '{encoder.pooling}' can't be written as ONNX: use mean, cls, last or max."
        )
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise MissingExtraError("writing ONNX needs onnx and onnxscript: pip install 'embedtune[onnx]'.")
    backbone = load_backbone(
        encoder.model,
        adapter=encoder.adapter,
        revision=encoder.revision,
        trust_remote_code=encoder.trust_remote_code,
        precision="float32",
        device="cpu",
    )
    columns = encoder.columns_
    family, n_inputs = (PooledReading, 3) if encoder.prefix else (_WithoutPrefix, 2)
    outputs = [f"layer{layer}_{pooling}" for layer, pooling in columns]
    open_shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with hush_libraries(), _hush_exporter(), backbone.lock, torch.no_grad():
            program = torch.onnx.export(
                family(backbone.model, columns).eval(),
                make_example()[:n_inputs],
                dynamo=True,
                dynamic_shapes=(open_shape,) * n_inputs,
                input_names=list(INPUTS[:n_inputs]),
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:  # whatever the exporter's passes meet in a model they don't know
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"'{backbone.model_id}' can't be converted to ONNX: {told[:200]}") from error
    assert program is not None
    with explain_full_disk(path.parent):
        program.save(str(path))
    backbone.tokenizer.save_pretrained(path.parent / f"{path.stem}-tokenizer")
    return {
        "file": path.name,
        "tokenizer": f"{path.stem}-tokenizer",
        "model": backbone.model_id,
        "weights": backbone.weights_hash,
        "inputs": list(INPUTS[:n_inputs]),
        "outputs": outputs,
        "max_length": encoder.max_length,
        "prefix": encoder.prefix,
    }


@contextlib.contextmanager
def _hush_exporter() -> Iterator[None]:
    """Keep the exporter from reporting what it doesn't need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
