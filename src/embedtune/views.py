"""What a classifier's views are to its head: named, read block by block, scaled, and joined to one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from embedtune.bundle import NamedEncoder
from embedtune.embed.crossfitted import CrossFittedEncoder
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.lexical import LexicalEncoder
from embedtune.embed.static import StaticEncoder

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def name_views(views: Sequence[Any] | None) -> list[NamedEncoder]:
    """Return views as (name, encoder) pairs; bare encoders are named by their kind and place."""
    if views is None:
        views = [
            ("minilm", TransformerEncoder(DEFAULT_MODEL, layers="last5")),
            ("static", StaticEncoder()),
            ("lexical", LexicalEncoder()),
        ]
    return [view if isinstance(view, tuple) else (f"view{i}", view) for i, view in enumerate(views)]


class ViewReading(NamedTuple):
    """What a stack may take as one view: its name, its blocks, and the backbone that must be run for it, if any."""

    name: str
    blocks: tuple[int, ...]
    source: int | None


def list_readings(views: Sequence[NamedEncoder]) -> list[ViewReading]:
    """Return the readings of all encoders: several layers as the last one, and all of them; others one by one.

    The own heads of a cross-fitted backbone are a reading of theirs, which comes with it.
    """
    readings: list[ViewReading] = []
    first = 0
    for number, (name, encoder) in enumerate(views):
        blocks = tuple(range(first, first + len(encoder.widths_)))
        first += len(blocks)
        is_backbone = isinstance(encoder, TransformerEncoder | CrossFittedEncoder)
        own_heads = (
            blocks[-1:] if isinstance(encoder, CrossFittedEncoder) and encoder.heads is not None else ()
        )
        blocks = blocks[: len(blocks) - len(own_heads)]
        if len(blocks) == 1:
            readings.append(ViewReading(name, blocks, number if is_backbone else None))
        elif not is_backbone:  # a lexical view's two kinds of n-grams
            kinds = ("words", "characters")
            readings += [
                ViewReading(f"{name}, {kind}", (block,), None)
                for kind, block in zip(kinds, blocks, strict=True)
            ]
        else:
            last = int(np.argmax(encoder.layers_))
            readings.append(ViewReading(f"{name}, layer {encoder.layers_[last]}", (blocks[last],), number))
            readings.append(ViewReading(f"{name}, {len(blocks)} layers", blocks, number))
        if own_heads:
            readings.append(ViewReading(f"{name}, its own heads", own_heads, number))
    return readings


def normalize_embeddings(matrix: Any, encoder: Any) -> Any:
    """Scale each embedding of a text to norm one; n-grams and heads' opinions stay as they are."""
    if not isinstance(encoder, TransformerEncoder | CrossFittedEncoder | StaticEncoder):
        return matrix
    has_heads = isinstance(encoder, CrossFittedEncoder) and encoder.heads is not None
    widths = encoder.widths_[:-1] if has_heads else encoder.widths_
    scaled = np.array(matrix, dtype=np.float32)
    ends = np.cumsum(widths)
    for end, width in zip(ends, widths, strict=True):
        block = scaled[:, end - width : end]
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return scaled


def join_matrices(matrices: Sequence[Any]) -> Any:
    """Return matrices side by side: CSR if any of them is sparse."""
    if any(sparse.issparse(matrix) for matrix in matrices):
        return sparse.hstack(
            [sparse.csr_matrix(matrix) for matrix in matrices], format="csr", dtype=np.float32
        )
    return np.hstack(matrices)
