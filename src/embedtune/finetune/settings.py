"""How a fine-tuning is done: the settings, and what is allowed in them."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from embedtune.embed.pooling import check_pooling
from embedtune.embed.quantization import QUANTIZED, check_quantization
from embedtune.errors import ConfigError, MissingExtraError, suggest_nearest

OBJECTIVES = ("classification", "contrastive", "instruction")
QUANTIZATIONS = ("none", *QUANTIZED)
OPTIMIZERS = ("adamw", "paged_adamw")
METHODS = ("full", "upper", "lora")
CLASS_WEIGHTS = (None, "balanced")
SCHEDULERS = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Settings:
    """The arguments of `fine_tune` that change its result, apart from the model and the rows."""

    label_names: tuple[str, ...]
    objective: str
    instruction: str
    label_templates: tuple[str, ...]
    method: str
    n_upper_layers: int
    lora_rank: int
    lora_alpha: int
    lora_targets: str
    epochs: int
    min_steps: int
    learning_rate: float
    head_learning_rate: float
    batch_size: int
    max_length: int
    pooling: str
    prefix: str
    dropout: float
    validation_fraction: float
    patience: int | None
    class_weight: str | None
    warmup_fraction: float
    weight_decay: float
    scheduler: str
    max_grad_norm: float
    gradient_checkpointing: bool
    quantization: str
    optimizer: str
    seed: int

    def for_rows(self, n_rows: int) -> Self:
        """Return the settings with as many epochs of `n_rows` rows as `epochs` and `min_steps` come to."""
        return replace(
            self, epochs=max(self.epochs, math.ceil(self.min_steps / math.ceil(n_rows / self.batch_size)))
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        return asdict(self) | {
            "label_names": list(self.label_names),
            "label_templates": list(self.label_templates),
        }


def check_settings(settings: Settings) -> None:
    """Refuse settings that can't work.

    Raises
    ------
    ConfigError
        If a name is unknown or a number out of range.
    """
    for name, allowed in (
        ("objective", OBJECTIVES),
        ("method", METHODS),
        ("scheduler", SCHEDULERS),
        ("quantization", QUANTIZATIONS),
        ("optimizer", OPTIMIZERS),
    ):
        value = getattr(settings, name)
        if value not in allowed:
            nearest = suggest_nearest(str(value), allowed)
            raise ConfigError(f"{name} {value!r} is unknown{nearest}: choose one of {', '.join(allowed)}.")
    if settings.class_weight not in CLASS_WEIGHTS:
        nearest = suggest_nearest(str(settings.class_weight), ["balanced"])
        raise ConfigError(
            f"class_weight {settings.class_weight!r} is unknown{nearest}: set it to 'balanced' or None."
        )
    for template in settings.label_templates:
        if "{label}" not in template:
            raise ConfigError(
                f"label_templates has {template!r}, which names no label: put {{label}} where the name goes."
            )
    check_pooling(settings.pooling)
    for name in ("n_upper_layers", "lora_rank", "epochs", "batch_size", "max_length", "patience"):
        value = getattr(settings, name)
        if name == "patience" and value is None:
            continue
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} {value!r} is out of range: set it to 1 or more.")
    for name in ("learning_rate", "head_learning_rate", "lora_alpha", "max_grad_norm"):
        if not getattr(settings, name) > 0:
            raise ConfigError(f"{name} {getattr(settings, name)!r} is out of range: set it above 0.")
    for name, highest in (("validation_fraction", 0.5), ("warmup_fraction", 1.0), ("dropout", 0.9)):
        if not 0 <= getattr(settings, name) <= highest:
            raise ConfigError(
                f"{name} {getattr(settings, name)!r} is out of range: set it between 0 and {highest}."
            )
    if not isinstance(settings.min_steps, int) or settings.min_steps < 0:
        raise ConfigError(f"min_steps {settings.min_steps!r} is out of range: set it to 0 or more.")
    if not settings.weight_decay >= 0:
        raise ConfigError(f"weight_decay {settings.weight_decay!r} is out of range: set it to 0 or more.")


def check_requirements(
    *, objective: str, method: str, quantization: str, optimizer: str, device: str
) -> None:
    """Refuse settings that contradict each other, or need what this device or installation lacks.

    Raises
    ------
    ConfigError, MissingExtraError
    """
    if objective == "instruction" and method == "upper":
        raise ConfigError(
            "instruction tuning can't train the upper layers alone: set method to lora or full."
        )
    if quantization != "none" and method != "lora":
        raise ConfigError(
            f"{quantization} weights can't be trained, only adapters on them: set method to lora, not {method!r}, "
            "or quantization to none."
        )
    if objective == "instruction" and importlib.util.find_spec("trl") is None:
        raise MissingExtraError("instruction tuning needs trl: pip install 'embedtune[llm]'.")
    if quantization != "none":
        check_quantization(quantization, device)
    if optimizer == "paged_adamw":
        if not device.startswith("cuda"):
            raise ConfigError(
                f"optimizer 'paged_adamw' moves its state between a CUDA device and the CPU, and the device is "
                f"{device!r}: set optimizer to adamw."
            )
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtraError(
                "optimizer 'paged_adamw' needs bitsandbytes: pip install 'embedtune[llm]'."
            )
