"""Precision and device: what the weights are held in, and where."""

from __future__ import annotations

import functools
from pathlib import Path

from embedtune.embed.quantization import QUANTIZED, check_quantization
from embedtune.errors import ConfigError, suggest_nearest

PRECISIONS = ("auto", "float32", "bfloat16", "float16", *QUANTIZED)

#: What a processor calls its bfloat16 matrix instructions (x86: AVX-512 and AMX; Arm: bf16).
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def resolve_device(device: str) -> str:
    """Return a torch device name; ``"auto"`` is the first CUDA device, else Apple's GPU, else the CPU.

    Raises
    ------
    ConfigError
        If torch knows no such device, or it isn't there.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ConfigError(f"device {device!r} is unknown: choose auto, cpu, cuda, cuda:N or mps.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r} isn't there: torch sees no CUDA device. Set device to auto or cpu."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"device {device!r} isn't there: torch sees no Apple GPU. Set device to auto or cpu."
        )
    return device


def resolve_precision(precision: str, device: str, *, backend: str = "torch") -> str:
    """Return ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"`` or ``"nf4"``.

    ``"auto"`` is bfloat16 on a CPU that multiplies it in hardware and float32 on any other (where half
    precision is up to a hundred times slower); bfloat16 on a CUDA device that has it, else float16; float32
    elsewhere. Torch needs bitsandbytes for quantized weights, OpenVINO nothing.

    Raises
    ------
    ConfigError
        If `precision` is none of `PRECISIONS`, or the device can't hold quantized weights.
    MissingExtraError
        If quantized weights are asked for and bitsandbytes isn't installed.
    """
    if precision not in PRECISIONS:
        nearest = suggest_nearest(str(precision), PRECISIONS)
        raise ConfigError(
            f"precision {precision!r} is unknown{nearest}: choose one of {', '.join(PRECISIONS)}."
        )
    if precision in QUANTIZED and backend == "torch":
        check_quantization(precision, device)
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device == "cpu" and multiplies_bfloat16():
        return "bfloat16"
    return "float32"


def resolve_compute(precision: str, device: str) -> str:
    """Return the precision that products are computed in: of quantized weights, what ``"auto"`` is there."""
    return resolve_precision("auto", device) if precision in QUANTIZED else precision


@functools.cache
def multiplies_bfloat16(cpuinfo_path: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this processor has bfloat16 matrix instructions; False without `cpuinfo_path`."""
    if not cpuinfo_path.exists():
        return False
    for line in cpuinfo_path.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return not _BFLOAT16_FLAGS.isdisjoint(value.split())
    return False
