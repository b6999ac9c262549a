"""The work that a job can't do without: floating-point operations of a transformer's matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def count_extraction(
    lengths: Sequence[int] | NDArray[np.integer], config: Any, *, n_layers: int | None = None
) -> float:
    """Return the FLOPs of reading texts of the given token counts once, padding not counted.

    Per token and layer, 2 for each weight of the projections and the feed-forward part; per pair of tokens and layer,
    4 times the heads' width for scores and weighted sums. Norms, activations and softmax are not counted.

    Parameters
    ----------
    lengths : sequence of int
    config : transformers.PretrainedConfig
    n_layers : int, optional
        Layers that are run; all by default.
    """
    counts = np.asarray(lengths, dtype=np.float64)
    width, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or width // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    n_projections = 3 if hasattr(config, "num_key_value_heads") else 2  # gated, or plain
    weights = width * head_width * (2 * heads + 2 * groups) + n_projections * width * inner
    layers = config.num_hidden_layers if n_layers is None else n_layers
    return float(layers * (2 * weights * counts.sum() + 4 * heads * head_width * (counts**2).sum()))
