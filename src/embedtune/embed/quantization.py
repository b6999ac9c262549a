"""Quantized weights through bitsandbytes: 8-bit LLM.int8() and 4-bit NF4, to read with and to train adapters on.

References
----------
Dettmers et al. 2022, "LLM.int8()", arXiv:2208.07339. Dettmers et al. 2023, "QLoRA", arXiv:2305.14314.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from embedtune.errors import ConfigError, MissingExtraError

QUANTIZED = ("int8", "nf4")

#: Weights that share a scale in NF4.
_NF4_BLOCK = 64


def check_quantization(kind: str, device: str) -> None:
    """Refuse a device or an installation that can't hold weights quantized to `kind`.

    Raises
    ------
    ConfigError
        If the device is neither CUDA nor a CPU.
    MissingExtraError
        If bitsandbytes isn't installed.
    """
    if not device.startswith(("cuda", "cpu")):
        raise ConfigError(
            f"{kind} weights need a CUDA device or a CPU, not {device!r}: keep the weights in another precision, "
            "or set device to cpu."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"{kind} weights need bitsandbytes: pip install 'embedtune[llm]'.")


def import_bitsandbytes() -> Any:
    """Import bitsandbytes without the warnings that its import causes."""
    with hush_bitsandbytes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("bitsandbytes")


def import_peft() -> Any:
    """Import peft, which imports bitsandbytes where it is installed."""
    if importlib.util.find_spec("bitsandbytes") is not None:
        import_bitsandbytes()
    return importlib.import_module("peft")


def make_quantization(kind: str, *, compute: Any) -> Any:
    """Return transformers' settings for weights quantized to `kind`; products are computed in the dtype `compute`."""
    import transformers

    import_bitsandbytes()  # before transformers does, whose import would warn
    settings: Any = transformers.BitsAndBytesConfig
    if kind == "int8":
        return settings(load_in_8bit=True)
    return settings(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def place_quantized(device: str) -> dict[str, Any]:
    """Return the device map that puts a whole model on one device, where its weights are quantized."""
    import torch

    if not device.startswith("cuda"):
        return {"": device}
    index = torch.device(device).index
    return {"": torch.cuda.current_device() if index is None else index}


def settle_on_cpu(model: Any, *, name: str) -> None:
    """Make 4-bit layers on a CPU compute what they do on CUDA; others are left alone.

    Two traps in bitsandbytes 0.50: its CPU code reads the scales row by row, so rows that aren't whole blocks
    come out wrong, without a word; and where the processor has AVX512-BF16, the first product in evaluation mode
    rearranges the weights into a form that loses gradients in a later training step (and is slower: 0.12 s
    against 0.08 s for 1024 tokens and a 2048 x 2048 layer on one core).

    Raises
    ------
    ConfigError
        If a layer's rows aren't whole blocks.
    """
    for layer_name, module in model.named_modules():
        if type(module).__name__ != "Linear4bit" or module.weight.device.type != "cpu":
            continue
        if module.in_features % _NF4_BLOCK:
            raise ConfigError(
                f"'{name}' can't be read in nf4 on a CPU: its layer {layer_name} has rows of {module.in_features} "
                f"weights, not a multiple of {_NF4_BLOCK}. Set device to cuda, or precision to int8 or float32."
            )
        module.support_avx512bf16_for_cpu = False


def count_weights(parameter: Any) -> int:
    """Return how many weights a parameter stands for: two per byte in NF4."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel() if state is not None else parameter.numel())


@contextlib.contextmanager
def hush_bitsandbytes() -> Iterator[None]:
    """Hold back what bitsandbytes logs, such as the cast to float16 before each of its 8-bit products."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
