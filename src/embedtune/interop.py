"""Encoders as sentence-transformers models, so that what is written for those (MTEB, evaluators) reads ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedtune.errors import MissingExtraError

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import InputModule
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "sentence_transformers":
        raise
    raise MissingExtraError(
        "a sentence-transformers model needs that package: pip install 'embedtune[interop]'"
    ) from None


class EncoderModule(InputModule):
    """A fitted encoder as the one module of a `SentenceTransformer`: texts in, its columns out.

    Parameters
    ----------
    encoder : encoder
        Fitted, with dense columns.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.encoder = encoder

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return the texts as they are, behind the prompt if there is one."""
        return {"texts": self._prepend_prompt(inputs, prompt) if prompt else list(inputs)}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``, float32 (n_texts, width)."""
        vectors = np.ascontiguousarray(self.encoder.transform(features["texts"]), dtype=np.float32)
        embedding: Tensor = torch.from_numpy(vectors)
        return {**features, "sentence_embedding": embedding}

    def get_embedding_dimension(self) -> int:
        """Return the number of columns."""
        return int(sum(self.encoder.widths_))

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Refuse: an encoder is saved in a bundle.

        Raises
        ------
        NotImplementedError
        """
        raise NotImplementedError("an encoder is saved in a bundle: use EmbedClassifier.save.")


def to_sentence_transformer(encoder: Any) -> SentenceTransformer:
    """Return a fitted encoder as a `SentenceTransformer`, which MTEB takes as a model.

    Parameters
    ----------
    encoder : TransformerEncoder, StaticEncoder, or another with dense columns
        Batches are the encoder's own: it reads all texts of a call together.

    Raises
    ------
    MissingExtraError
        If sentence-transformers isn't installed.
    """
    return SentenceTransformer(modules=[EncoderModule(encoder)], device="cpu")
