"""PooledClassifier: a backbone, a view's pooling and a linear head, trained together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embedtune.embed.backbone import Description
from embedtune.embed.loading import load_weights
from embedtune.embed.pooling import OWN_TOKENS, pool, pool_all_positions
from embedtune.embed.quantization import (
    count_weights,
    import_peft,
    make_quantization,
    place_quantized,
    settle_on_cpu,
)
from embedtune.embed.quiet import hush_libraries
from embedtune.errors import BackboneError, ConfigError
from embedtune.finetune.contrastive import contrast
from embedtune.finetune.lora import add_lora
from embedtune.finetune.settings import Settings


class PooledClassifier(nn.Module):
    """Classify texts by a linear map of one pooled vector per text.

    Parameters
    ----------
    backbone : nn.Module
        A transformers base model, or a PEFT model around one.
    width, n_labels : int
    pooling : str
        As `TransformerEncoder` takes it, on the last layer.
    dropout : float
        On the pooled vector, in training.
    label_weights : Tensor of float32, shape (n_labels,), optional
        Weights of the labels in the loss.
    contrasts : bool
        Let the loss compare the rows' vectors, and leave the head alone.
    """

    # Trainer would otherwise hand forward a count of its own.
    accepts_loss_kwargs = False

    def __init__(
        self,
        backbone: nn.Module,
        *,
        width: int,
        n_labels: int,
        pooling: str,
        dropout: float,
        label_weights: Tensor | None = None,
        contrasts: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.contrasts = contrasts
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, n_labels)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.label_weights: Tensor | None
        self.register_buffer("label_weights", label_weights, persistent=False)
        self._frozen = _find_frozen(backbone)
        self.entry: Any = None  # see `finetune.trunk`

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        counted: Tensor,
        labels: Tensor | None = None,
        states: Tensor | None = None,
        share: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return ``logits``, float32 (n_texts, n_labels), and ``loss`` if labels are given.

        Parameters
        ----------
        input_ids, attention_mask, counted : Tensor, shape (n_texts, n_tokens)
            As `embed.tokens.pad_tokens` makes them.
        labels : Tensor of int64, shape (n_texts,), optional
        states : Tensor, shape (n_texts, n_tokens, width), optional
            What the frozen layers put out, where a trunk stands in their place.
        share : Tensor of float32, shape (), optional
            What the loss is multiplied by: the rows' part of a step that several processes make, times their number.
        """
        pooled = self.pool(input_ids, attention_mask, counted, states)
        with torch.autocast(input_ids.device.type, enabled=False):
            logits = self.head(self.dropout(pooled))
            if labels is None:
                return {"logits": logits}
            if self.contrasts:
                loss = contrast(pooled, labels)
            else:
                loss = nn.functional.cross_entropy(logits, labels, weight=self.label_weights)
            if share is not None:
                loss = loss * share
        return {"loss": loss, "logits": logits}

    def pool(
        self, input_ids: Tensor, attention_mask: Tensor, counted: Tensor, states: Tensor | None = None
    ) -> Tensor:
        """Return the pooled vectors that the head reads, float32 (n_texts, width); parameters as `forward`'s."""
        if states is not None:
            self.entry.states = states
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        with torch.autocast(input_ids.device.type, enabled=False):
            return self._pool(output, attention_mask, counted)

    def _pool(self, output: Any, mask: Tensor, counted: Tensor) -> Tensor:
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output.float()
            return pooled
        hidden = output.last_hidden_state
        if self.pooling == "mean_padded":
            return pool_all_positions(hidden.float(), mask)
        return pool(hidden, counted if self.pooling in OWN_TOKENS else mask, self.pooling)

    def train(self, mode: bool = True) -> PooledClassifier:
        """Switch to training; parts without a trained parameter stay as they evaluate, dropout off."""
        super().train(mode)
        if mode:
            for module in self._frozen:
                module.eval()
        return self


def build_classifier(
    description: Description,
    settings: Settings,
    *,
    label_weights: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> PooledClassifier:
    """Load a fresh copy of a backbone, choose what is trained, and put a head on it.

    Quantized weights are put on `device`, others stay on the CPU for now.

    Random numbers (head, adapters) come from torch's global generator.

    Raises
    ------
    BackboneError
        If the model can't be loaded, is an encoder-decoder, lacks the pooler asked for, or its layers can't be
        told apart.
    ConfigError
        If `n_upper_layers` is more than there are, or no layer takes an adapter.
    """
    if getattr(description.config, "is_encoder_decoder", False):
        raise BackboneError(
            f"'{description.model_id}' is an encoder-decoder, which can't be fine-tuned here: "
            "give an encoder (BERT, RoBERTa ...) or a decoder (LLaMA, Qwen ...)."
        )
    model, missing = load_for_training(
        description, settings, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    _choose_pooler(model, description.model_id, settings.pooling, missing)
    if settings.method == "lora":
        model = put_lora(model, description, settings)
    elif settings.method == "upper":
        freeze_lower(model, n_upper=settings.n_upper_layers, n_layers=description.n_layers)
    if settings.gradient_checkpointing:
        with hush_libraries():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return PooledClassifier(
        model,
        width=description.width,
        n_labels=len(settings.label_names),
        pooling=settings.pooling,
        dropout=settings.dropout,
        label_weights=label_weights,
        contrasts=settings.objective == "contrastive",
    )


def load_for_training(
    description: Description,
    settings: Settings,
    *,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool,
    causal: bool = False,
) -> tuple[Any, list[str]]:
    """Load a fresh copy of a backbone, as `embed.loading.load_weights` does, quantized if the settings say so.

    Quantized weights are frozen; what isn't quantized (embeddings, norms) is in float32 then, as QLoRA has it.
    """
    if settings.quantization == "none":
        return load_weights(
            description.model_id,
            description.source,
            revision=description.revision,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            causal=causal,
        )
    model, missing = load_weights(
        description.model_id,
        description.source,
        revision=description.revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        causal=causal,
        quantization=make_quantization(settings.quantization, compute=dtype),
        device_map=place_quantized(device),
    )
    settle_on_cpu(model, name=description.model_id)
    return import_peft().prepare_model_for_kbit_training(model, use_gradient_checkpointing=False), missing


def put_lora(model: Any, description: Description, settings: Settings) -> Any:
    """Put the LoRA adapters that the settings describe on a model."""
    return add_lora(
        model,
        model_id=description.model_id,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.dropout,
        targets=settings.lora_targets,
    )


def freeze_lower(model: nn.Module, *, n_upper: int, n_layers: int) -> None:
    """Leave only the top `n_upper` layers, and a final norm after them, to be trained.

    Raises
    ------
    ConfigError
        If the model has fewer layers.
    BackboneError
        If its layers can't be told apart (ALBERT, which shares them).
    """
    if n_upper > n_layers:
        raise ConfigError(f"n_upper_layers {n_upper} is out of range: this model has {n_layers} layers.")
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not found:
        raise BackboneError(
            f"the {n_layers} layers of {type(model).__name__} can't be told apart: set method to 'full' or 'lora'."
        )
    stack_name, stack = found[0]
    trained_before = {id(p) for p in model.parameters() if p.requires_grad}
    upper = {id(parameter) for layer in stack[n_layers - n_upper :] for parameter in layer.parameters()}
    # Parameters are registered in the order they are used: what follows the stack is the final norm.
    behind = False
    for name, parameter in model.named_parameters():
        inside = name.startswith(f"{stack_name}.")
        behind = behind or inside
        is_final_norm = behind and not inside and any(word in name.lower() for word in ("norm", "ln_f"))
        keep = id(parameter) in upper or is_final_norm or name.startswith("pooler.")
        parameter.requires_grad_(keep and id(parameter) in trained_before)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many numbers are trained, and how many there are."""
    sizes = [(count_weights(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _find_frozen(module: nn.Module) -> tuple[nn.Module, ...]:
    """Return the outermost parts that have parameters, none of them trained."""
    flags = [parameter.requires_grad for parameter in module.parameters()]
    if flags and not any(flags):
        return (module,)
    return tuple(found for child in module.children() for found in _find_frozen(child))


def _choose_pooler(model: Any, model_id: str, pooling: str, missing: list[str]) -> None:
    """Drop a pooler that the checkpoint lacks; freeze one that isn't read."""
    pooler = getattr(model, "pooler", None)
    if pooler is not None and any(name.startswith("pooler.") for name in missing):
        model.pooler = pooler = None
    if pooling == "pooler" and pooler is None:
        raise BackboneError(f"'{model_id}' has no trained pooler: set pooling to mean, cls or last.")
    if pooler is not None and pooling != "pooler":
        pooler.requires_grad_(False)
