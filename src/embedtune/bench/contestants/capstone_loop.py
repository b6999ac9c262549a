"""How the capstone reads a BERT: in the data's order, padded to 512, float32, every layer handed back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Load tokenizer and model as the script does."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModel.from_pretrained(job["model"]).eval()
    texts, size = job["texts"], job["batch_size"]

    def run() -> dict[str, Any]:
        pooled = []
        with torch.no_grad():
            for start in range(0, len(texts), size):
                batch = tokenizer(
                    texts[start : start + size],
                    padding="max_length",
                    truncation=True,
                    max_length=job["max_length"],
                    return_tensors="pt",
                )
                states = model(**batch, output_hidden_states=True).hidden_states
                pooled.append(torch.stack(states[-5:], dim=1).mean(dim=2))
        return {"n_texts": len(torch.cat(pooled))}

    return run
