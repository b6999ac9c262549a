"""Texts and shorthands that the encoder's tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
    """Record the rows of every batch, whatever runs it."""
    batches: list[list[int]] = []
    watch_batches(monkeypatch, lambda rows: batches.append(rows.tolist()))
    return batches


def watch_batches(monkeypatch: pytest.MonkeyPatch, watch: Callable[[np.ndarray], Any]) -> None:
    """Call `watch` with a batch's rows just before its vectors leave the runner."""
    make = TransformerEncoder._make_runner

    class Watched:
        def __init__(self, runner: Any) -> None:
            self.runner = runner

        def run(self, tokens: Any, batches: Any) -> Iterator[Any]:
            for rows, found in self.runner.run(tokens, batches):
                watch(rows)
                yield rows, found

    monkeypatch.setattr(TransformerEncoder, "_make_runner", lambda *args: Watched(make(*args)))
