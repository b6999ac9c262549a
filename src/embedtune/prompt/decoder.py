"""Decoders: causal language models with their head, as prompts are asked of them."""

from __future__ import annotations

import gc
import inspect
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from embedtune.embed.backbone import Description, describe_backbone, release_backbones
from embedtune.embed.loading import load_weights
from embedtune.embed.precision import resolve_compute, resolve_device, resolve_precision
from embedtune.embed.quantization import (
    QUANTIZED,
    count_weights,
    make_quantization,
    place_quantized,
    settle_on_cpu,
)
from embedtune.errors import BackboneError
from embedtune.memory import explain_out_of_memory, is_out_of_memory


@dataclass(frozen=True, eq=False)
class Decoder:
    """A loaded decoder in evaluation mode, without gradients.

    Attributes
    ----------
    cache_argument : str or None
        What its forward method calls the key/value cache; None if it takes none.
    takes_positions : bool
        Whether positions can be given, rather than counted by the model itself.
    keeps_logits : bool
        Whether it can be told to compute logits for the last tokens only.
    lock : threading.RLock
        Held while it runs.
    """

    description: Description
    model: Any
    n_parameters: int
    precision: str
    device: str
    cache_argument: str | None
    takes_positions: bool
    keeps_logits: bool
    lock: Any = field(default_factory=threading.RLock, repr=False)

    @property
    def tokenizer(self) -> Any:
        return self.description.tokenizer

    @property
    def model_id(self) -> str:
        return self.description.model_id


#: The one decoder kept for whoever asks for it next: two large ones rarely fit.
_loaded: dict[tuple[Any, ...], Decoder] = {}
_lock = threading.RLock()


def describe_decoder(
    model: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Description:
    """Read a decoder's config and tokenizer, but not its weights.

    Raises
    ------
    BackboneError, MissingExtraError
        As `describe_backbone` does, and if the model is no decoder or its tokenizer can't tell where tokens begin.
    """
    description = describe_backbone(model, revision=revision, trust_remote_code=trust_remote_code)
    kind = type(description.config)
    is_known = kind in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in (
        getattr(description.config, "auto_map", None) or {}
    )
    # BERT and its like can be loaded as decoders, and then see what they are to foretell
    is_encoder = kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(description.config, "is_decoder", False)
    if not is_known or is_encoder:
        raise BackboneError(
            f"'{description.model_id}' ({description.config.model_type}) is no decoder: a prompt is asked of a causal "
            "language model such as LLaMA, Qwen, Mistral, Gemma or SmolLM."
        )
    if not description.tokenizer.is_fast:
        raise BackboneError(
            f"'{description.model_id}' has no fast tokenizer (tokenizer.json), which prompts need: "
            "choose another model."
        )
    return description


def load_decoder(
    model: str | Path,
    *,
    revision: str | None = None,
    precision: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Decoder:
    """Load a decoder with its language-model head, or return the one already loaded.

    Parameters are those of `embedtune.embed.backbone.load_backbone`.

    Raises
    ------
    BackboneError, MissingExtraError
        As `describe_decoder` does, and if weights are missing from the checkpoint, the head's for one.
    ResourceError
        If the model doesn't fit into the device's memory.
    """
    device = resolve_device(device)
    precision = resolve_precision(precision, device)
    description = describe_decoder(model, revision=revision, trust_remote_code=trust_remote_code)
    key = (description, precision, device)
    with _lock:
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = _load(description, precision, device, trust_remote_code)
        return _loaded[key]


def _load(description: Description, precision: str, device: str, trust_remote_code: bool) -> Decoder:
    quantized = precision in QUANTIZED
    dtype = getattr(torch, resolve_compute(precision, device))
    model, _ = load_weights(
        description.model_id,
        description.source,
        revision=description.revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        causal=True,
        quantization=make_quantization(precision, compute=dtype) if quantized else None,
        device_map=place_quantized(device) if quantized else None,
    )
    model.eval().requires_grad_(False)
    if quantized:
        settle_on_cpu(model, name=description.model_id)
    else:
        try:
            model = _move(model, device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            model = _move_alone(description.model_id, model, precision, device)
    accepted = inspect.signature(model.forward).parameters
    # `past_key_values` became `cache` in the course of transformers 5
    names = [one for one in ("cache", "past_key_values") if one in accepted]
    return Decoder(
        description=description,
        model=model,
        n_parameters=sum(map(count_weights, model.parameters())),
        precision=precision,
        device=device,
        cache_argument=names[0] if names else None,
        takes_positions="position_ids" in accepted,
        keeps_logits="logits_to_keep" in accepted,
    )


def _move(model: Any, device: str) -> Any:
    return model.to(torch.device(device))


def _move_alone(name: str, model: Any, precision: str, device: str) -> Any:
    """Try again after the encoders' backbones have left the device: a run may read with the model it asks."""
    release_backbones()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    with explain_out_of_memory(
        f"'{name}' in {precision} does not fit into the memory of {device}: "
        "set precision to bfloat16 or float16, or device to cpu."
    ):
        return _move(model, device)
