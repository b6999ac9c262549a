"""Encoders as sentence-transformers models, and MTEB's evaluation of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedtune import StaticEncoder, TransformerEncoder
from embedtune.interop import to_sentence_transformer
from interop_cases import make_task

SUBJECTS = ("sales", "profit", "orders", "income", "output", "demand")
TEXTS = [
    f"{subject} {move} {when}"
    for subject in SUBJECTS
    for move in ("rose", "fell")
    for when in ("today", "again", "")
]


@pytest.mark.parametrize("kind", ["transformer", "static"])
def test_encode_gives_the_encoders_columns(kind: str, tiny_bert: Path) -> None:
    encoder: Any = StaticEncoder()
    if kind == "transformer":
        encoder = TransformerEncoder(str(tiny_bert), layers=(-1, 1), max_length=16)
    model = to_sentence_transformer(encoder)
    expected = encoder.fit_transform(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS, batch_size=5), expected, atol=1e-5)
    unit = model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    prompted = model.encode(TEXTS[:2], prompt="query: ")
    np.testing.assert_allclose(
        prompted, encoder.transform([f"query: {text}" for text in TEXTS[:2]]), atol=1e-5
    )
    assert model.encode("one text").shape == (model.get_embedding_dimension(),) == (expected.shape[1],)


def test_mteb_evaluates_an_encoder() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mteb's own imports
        import mteb

        task = make_task(TEXTS, [" rose " in text for text in TEXTS])
        found = mteb.evaluate(to_sentence_transformer(StaticEncoder()), [task], cache=None)
    assert found.task_results[0].get_score() > 0.9


def test_module_is_saved_as_a_bundle_only(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="saved in a bundle"):
        to_sentence_transformer(StaticEncoder()).save(str(tmp_path / "model"))
