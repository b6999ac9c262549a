"""LoRA: low-rank adapters on a backbone's linear layers, everything else frozen.

References
----------
Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from embedtune.embed.quantization import import_peft
from embedtune.embed.quiet import hush_libraries
from embedtune.errors import ConfigError, suggest_nearest

#: The last part of an attention projection's name in the families we know.
_ATTENTION_NAMES = frozenset(
    ("query", "key", "value", "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj")
    + ("q_lin", "k_lin", "v_lin", "out_lin", "q", "k", "v", "o", "Wqkv", "Wo", "c_attn", "query_key_value")
)

TARGETS = ("all-linear", "attention")


def find_lora_targets(model: nn.Module, targets: str) -> list[str]:
    """Return the full names of the linear layers to adapt: all of attention and MLP, or attention's alone.

    The pooler and a language-model head, which are not between layers, are left out.

    Raises
    ------
    ConfigError
        If `targets` is none of `TARGETS`, or the model has no such layer.
    """
    if targets not in TARGETS:
        nearest = suggest_nearest(str(targets), TARGETS)
        raise ConfigError(
            f"lora_targets {targets!r} is unknown{nearest}: choose one of {', '.join(TARGETS)}."
        )
    find_output = getattr(model, "get_output_embeddings", None)
    output = find_output() if callable(find_output) else None
    found = [
        name
        for name, module in model.named_modules()
        if module is not output
        and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and "pooler" not in name.split(".")
        and (targets == "all-linear" or name.rpartition(".")[2] in _ATTENTION_NAMES)
    ]
    if not found:
        raise ConfigError(
            f"lora_targets {targets!r} matches no layer of {type(model).__name__}: set it to 'all-linear', "
            "or method to 'full'."
        )
    return found


def add_lora(model: nn.Module, *, model_id: str, rank: int, alpha: int, dropout: float, targets: str) -> Any:
    """Put LoRA adapters on a base model and freeze the rest.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Changed in place.
    model_id : str
        Written into the adapter's settings as the model it belongs to.
    rank : int
    alpha : int
        The update is scaled by alpha / rank.
    dropout : float
        On the adapters' input, in training.
    targets : {"all-linear", "attention"}

    Returns
    -------
    peft.PeftModel

    Raises
    ------
    ConfigError
        As `find_lora_targets` does.
    """
    peft = import_peft()
    names = find_lora_targets(model, targets)
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        bias="none",
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    with hush_libraries():
        adapted = peft.get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = model_id
    return adapted
