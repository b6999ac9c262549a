"""How a fine-tuning is done: the settings, and what is allowed in them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from embedtune.embed.pooling import check_pooling
from embedtune.errors import ConfigError, suggest_nearest

METHODS = ("full", "upper", "lora")
CLASS_WEIGHTS = (None, "balanced")
SCHEDULERS = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Settings:
    """The arguments of `fine_tune` that change its result, apart from the model and the rows."""

    label_names: tuple[str, ...]
    method: str
    n_upper_layers: int
    lora_rank: int
    lora_alpha: int
    lora_targets: str
    epochs: int
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
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        return {**asdict(self), "label_names": list(self.label_names)}


def check_settings(settings: Settings) -> None:
    """Refuse settings that can't work.

    Raises
    ------
    ConfigError
        If a name is unknown or a number out of range.
    """
    if settings.method not in METHODS:
        nearest = suggest_nearest(str(settings.method), METHODS)
        raise ConfigError(
            f"method {settings.method!r} is unknown{nearest}: choose one of {', '.join(METHODS)}."
        )
    if settings.class_weight not in CLASS_WEIGHTS:
        nearest = suggest_nearest(str(settings.class_weight), ["balanced"])
        raise ConfigError(
            f"class_weight {settings.class_weight!r} is unknown{nearest}: set it to 'balanced' or None."
        )
    if settings.scheduler not in SCHEDULERS:
        nearest = suggest_nearest(str(settings.scheduler), SCHEDULERS)
        raise ConfigError(
            f"scheduler {settings.scheduler!r} is unknown{nearest}: choose one of {', '.join(SCHEDULERS)}."
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
    if not settings.weight_decay >= 0:
        raise ConfigError(f"weight_decay {settings.weight_decay!r} is out of range: set it to 0 or more.")
