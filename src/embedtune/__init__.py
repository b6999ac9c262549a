"""embedtune: is fine-tuning worth it on this task? Read texts with small language models, compare, keep the better.

The names below are loaded when first used, so importing embedtune loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedtune.cascade import CascadeClassifier
    from embedtune.classifier import EmbedClassifier, load_bundle
    from embedtune.data.dataset import TextDataset
    from embedtune.data.sources import load_dataset
    from embedtune.embed.encoder import TransformerEncoder
    from embedtune.embed.lexical import LexicalEncoder
    from embedtune.embed.static import StaticEncoder
    from embedtune.heads.cooccurrence_head import CooccurrenceHead
    from embedtune.prompt.classifier import PromptClassifier

__version__ = "0.1.0.dev0"

__all__ = [
    "CascadeClassifier",
    "CooccurrenceHead",
    "EmbedClassifier",
    "LexicalEncoder",
    "PromptClassifier",
    "StaticEncoder",
    "TextDataset",
    "TransformerEncoder",
    "load_bundle",
    "load_dataset",
]

_HOMES = {
    "CascadeClassifier": "cascade",
    "CooccurrenceHead": "heads.cooccurrence_head",
    "EmbedClassifier": "classifier",
    "LexicalEncoder": "embed.lexical",
    "PromptClassifier": "prompt.classifier",
    "StaticEncoder": "embed.static",
    "TextDataset": "data.dataset",
    "TransformerEncoder": "embed.encoder",
    "load_bundle": "classifier",
    "load_dataset": "data.sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedtune' has no attribute '{name}'")
    return getattr(import_module(f"embedtune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
