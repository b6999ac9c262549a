"""Tiny decoders of several families, all with the tiny LLaMA's tokenizer, and slow references for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from embedtune.embed.pooling import OWN_TOKENS, pool
from embedtune.embed.tokens import tokenize

SHAPE: dict[str, Any] = {
    # Above the tokenizer's 456: transformers reads it as Qwen2's own kind, which adds a token.
    "vocab_size": 480,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "head_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

#: By name: the config class and what is its own.
FAMILIES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {}),
    # A window shorter than the longest text: padding must not count into it.
    "mistral": (transformers.MistralConfig, {"sliding_window": 12}),
    "gemma": (transformers.GemmaConfig, {}),
}


def build_decoder(family: str, tokenizer_dir: Path, folder: Path, *, causal: bool = False) -> Path:
    """Write a random model of the family beside a copy of the tokenizer in `tokenizer_dir`; return its folder."""
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    make, own = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_config(make(**SHAPE, **own))
    model.save_pretrained(folder)
    for path in tokenizer_dir.glob("*token*.json"):
        shutil.copy(path, folder)
    return folder


def read_slowly(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    pooling: str,
    prefix: str = "",
    side: str | None = None,
) -> np.ndarray:
    """Return every hidden state, pooled, shape (n_texts, n_layers + 1, width): unpadded, or padded on one side."""
    tokens = tokenize(tokenizer, texts, max_length=48, prefix=prefix)
    counted = tokens.counted or [[True] * len(ids) for ids in tokens.ids]
    groups = [[row] for row in range(len(texts))] if side is None else [list(range(len(texts)))]
    rows = []
    for group in groups:
        width = max(len(tokens.ids[row]) for row in group)
        ids, mask, kept = (torch.zeros(len(group), width, dtype=torch.long) for _ in range(3))
        for place, row in enumerate(group):
            n = len(tokens.ids[row])
            where = slice(width - n, width) if side == "left" else slice(0, n)
            ids[place, where] = torch.tensor(tokens.ids[row])
            mask[place, where] = 1
            kept[place, where] = torch.tensor(counted[row]).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            states = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True
            ).hidden_states
        seen = kept if pooling in OWN_TOKENS else mask
        rows.append(torch.stack([pool(state, seen, pooling) for state in states], dim=1).numpy())
    return np.concatenate(rows)
