"""Texts and shorthands that the encoder's tests share."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedtune.embed import forward
from embedtune.embed.encoder import TransformerEncoder

TEXTS = [
    "Gold settles lower.",
    "",
    "Operating profit rose to EUR 13.1 mn from EUR 8.7 mn, and costs fell by 5 %; the outlook is unchanged.",
    "up",
    "Sales were unchanged and the board proposes a dividend 🚀",
    "shares jump after earnings beat",
]


def encode(model: Path | str, texts: Any = TEXTS, **settings: Any) -> np.ndarray:
    settings = {"precision": "float32", "device": "cpu", **settings}
    return TransformerEncoder(model, **settings).transform(texts)


def count_rows(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Record the rows of every forward pass."""
    batches: list[list[int]] = []
    run = forward.embed_batch

    def record(backbone: Any, tokens: Any, rows: Any, **settings: Any) -> Any:
        batches.append(rows.tolist())
        return run(backbone, tokens, rows, **settings)

    monkeypatch.setattr(forward, "embed_batch", record)
    return batches
