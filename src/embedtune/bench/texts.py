"""The texts that benchmarks read: real data where it is, the bundled sample where it isn't."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedtune.data.dataset import TextDataset
from embedtune.data.sources import load_dataset
from embedtune.errors import DataError

#: Under EMBEDTUNE_DATA, without a built-in task of their own.
_FILES = {
    "phrasebank": "financial_phrasebank/Sentences_50Agree.txt",
    "phrasebank_allagree": "financial_phrasebank/Sentences_AllAgree.txt",
}
#: LLaMA-2 tokens, <s> included, of PhraseBank's sentences: every twentieth of their distribution.
PHRASEBANK_LENGTHS = (
    3, 14, 17, 19, 21, 23, 25, 27, 29, 30, 32, 34, 36, 39, 41, 44, 48, 53, 60, 70, 190,
)  # fmt: skip


def load_data(name: str) -> TextDataset:
    """Return ``"phrasebank"``, ``"phrasebank_allagree"`` or a built-in task's data.

    Raises
    ------
    DataError
        If it isn't there.
    """
    if name not in _FILES:
        return load_dataset(name)
    folder = os.environ.get("EMBEDTUNE_DATA")
    if folder is None:
        raise DataError(
            f"'{name}' is looked for under EMBEDTUNE_DATA: set it to the folder that holds {_FILES[name]}."
        )
    return load_dataset(Path(folder) / _FILES[name])


def choose_texts(*, n_each: int = 1500, seed: int = 0) -> list[str]:
    """Return `n_each` gold headlines and as many PhraseBank sentences, all different; with 0, the sample's."""
    if not n_each:
        return list(dict.fromkeys(load_data("sentiment").texts))
    draw = random.Random(seed)
    parts = [list(dict.fromkeys(load_data(name).texts)) for name in ("gold_sentiment", "phrasebank")]
    return [text for part in parts for text in draw.sample(part, min(n_each, len(part)))]


def draw_lengths(n_texts: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return token counts distributed as those of PhraseBank's sentences."""
    steps = np.linspace(0, 1, len(PHRASEBANK_LENGTHS))
    drawn = np.random.default_rng(seed).random(n_texts)
    return np.interp(drawn, steps, PHRASEBANK_LENGTHS).round().astype(np.int64)
