"""Backend: which library runs a backbone."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from embedtune.embed.pooling import MODEL_POOLINGS
from embedtune.embed.precision import resolve_compute, resolve_precision
from embedtune.errors import ConfigError, MissingExtraError, suggest_nearest

if TYPE_CHECKING:
    from embedtune.embed.backbone import Description

BACKENDS = ("auto", "torch", "openvino")

#: Precisions that OpenVINO computes in.
_OPENVINO_PRECISIONS = ("float32", "bfloat16", "int8")

#: Families whose conversion the tests compare with torch.
_PROVEN = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "llama", "qwen3"})

#: Weights of the layers; a converted model is held twice for a while.
_MOST_WEIGHTS = 1_000_000_000


def resolve_backend(
    backend: str, *, precision: str, device: str, pooling: tuple[str, ...], description: Description | None
) -> str:
    """Return ``"torch"`` or ``"openvino"``.

    ``"auto"`` is OpenVINO, if it is installed, for a model of a tested family with up to a billion weights that is
    read on a CPU in bfloat16 or int8; and torch for all else: float32 is exact, so it stays torch's.

    Parameters
    ----------
    backend : {"auto", "torch", "openvino"}
    precision : str
        As it was asked for.
    device : str
        Resolved.
    pooling : tuple of str
    description : Description or None
        None for a model spread over devices, or one that runs code of its own.

    Raises
    ------
    ConfigError
        If there is no such backend, or it can't do what is asked.
    MissingExtraError
        If OpenVINO is asked for and isn't installed.
    """
    if backend not in BACKENDS:
        nearest = suggest_nearest(str(backend), BACKENDS)
        raise ConfigError(f"backend {backend!r} is unknown{nearest}: choose one of {', '.join(BACKENDS)}.")
    if backend == "torch":
        return backend
    installed = importlib.util.find_spec("openvino") is not None
    if backend == "openvino":
        if device != "cpu" or set(pooling) & set(MODEL_POOLINGS):
            raise ConfigError(
                f"backend 'openvino' reads on a CPU and pools by itself, and device is {device!r}, pooling "
                f"{', '.join(pooling)}: set backend to torch."
            )
        if precision not in ("auto", *_OPENVINO_PRECISIONS):
            raise ConfigError(
                f"backend 'openvino' does not compute in {precision!r}: "
                f"set precision to {', '.join(_OPENVINO_PRECISIONS)}, or backend to torch."
            )
        if not installed:
            raise MissingExtraError("backend 'openvino' needs it: pip install 'embedtune[openvino]'.")
        return backend
    suits = (
        installed
        and device == "cpu"
        and description is not None
        and getattr(description.config, "model_type", None) in _PROVEN
        and 12 * description.n_layers * description.width**2 <= _MOST_WEIGHTS
        and not set(pooling) & set(MODEL_POOLINGS)
        and (precision == "int8" or resolve_precision(precision, device, backend="torch") == "bfloat16")
    )
    return "openvino" if suits else "torch"


def name_reading(precision: str, device: str, backend: str) -> str:
    """Return all that decides how values are rounded: precision, that of products, backend if it isn't torch.

    Examples
    --------
    >>> name_reading("float32", "cpu", "torch")
    'float32'
    """
    resolved = resolve_precision(precision, device, backend=backend)
    compute = resolve_compute(resolved, device)
    return "+".join(dict.fromkeys((resolved, compute))) + ("" if backend == "torch" else f"+{backend}")
