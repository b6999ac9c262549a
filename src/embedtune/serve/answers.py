"""Bodies of answers: their schemas, and how they are made of what was read."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from embedtune.heads.calibration import find_sets
from embedtune.serve.batcher import Reading
from embedtune.serve.models import ServedModel
from embedtune.serve.words import Span

Label = str | int | float | bool


class Usage(BaseModel):
    """Tokens that backbones read (words where there is none)."""

    prompt_tokens: int
    total_tokens: int
    truncated_texts: int = Field(
        description="Texts whose end was not read: they are longer than the backbone reads."
    )


class Likelihood(BaseModel):
    """A label and its probability."""

    label: Label
    probability: float


class Prediction(BaseModel):
    """What is said of one text."""

    index: int
    label: Label | None = Field(description="null where the classifier abstains.")
    abstained: bool
    probabilities: list[Likelihood] = Field(description="The likeliest first.")
    set: list[Label] | None = Field(
        description="Labels that can't be ruled out, where coverage was asked for."
    )
    truncated: bool


class PredictAnswer(BaseModel):
    """The answer of /v1/predict."""

    object: Literal["list"]
    model: str
    data: list[Prediction]
    usage: Usage


class Embedding(BaseModel):
    """A text's vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbedAnswer(BaseModel):
    """The answer of /v1/embeddings."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Usage


class Word(BaseModel):
    """A stretch of the text, and how much the label owes to it."""

    start: int = Field(description="In Unicode characters.")
    end: int
    text: str
    change: float = Field(description="The label's probability, less what it is without this stretch.")


class ExplainAnswer(BaseModel):
    """The answer of /v1/explain."""

    model: str
    label: Label
    probabilities: list[Likelihood]
    words: list[Word]
    truncated: bool


class ModelCard(BaseModel):
    """A served bundle."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    labels: list[Label]
    width: int | None = Field(description="Length of a vector; null where there are none.")
    has_sets: bool = Field(description="Whether coverage may be asked for.")


class ModelList(BaseModel):
    """The answer of /v1/models."""

    object: Literal["list"]
    data: list[ModelCard]


class Fault(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer that isn't one."""

    model_config = ConfigDict(title="Error")

    error: Fault


def make_predictions(
    model: ServedModel,
    reading: Reading,
    *,
    top_k: int | None,
    threshold: float | None,
    set_threshold: float | None,
) -> dict[str, Any]:
    """Return the answer of /v1/predict."""
    named = model.classifier.decide(reading.rows).tolist()
    sets = None if set_threshold is None else find_sets(reading.rows, set_threshold).sum(axis=1)
    data = []
    for index, row in enumerate(reading.rows):
        ranked = _rank(model, row)
        probability = float(row[model.labels.index(named[index])])
        abstains = threshold is not None and probability < threshold
        likely = None if sets is None else [entry["label"] for entry in ranked[: int(sets[index])]]
        data.append(
            {
                "index": index,
                "label": None if abstains else named[index],
                "abstained": abstains,
                "probabilities": ranked[:top_k],
                "set": likely,
                "truncated": bool(reading.counts.cut[index]),
            }
        )
    return {"object": "list", "model": model.name, "data": data, "usage": _count_usage(reading)}


def make_embeddings(model: ServedModel, reading: Reading, *, encoding_format: str) -> dict[str, Any]:
    """Return the answer of /v1/embeddings."""
    if encoding_format == "base64":
        vectors = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in reading.rows]
    else:
        vectors = reading.rows.tolist()
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    return {"object": "list", "model": model.name, "data": data, "usage": _count_usage(reading)}


def make_explanation(model: ServedModel, reading: Reading, text: str, spans: list[Span]) -> dict[str, Any]:
    """Return the answer of /v1/explain, of a reading of the text and then of it without each span."""
    label = model.classifier.decide(reading.rows[:1]).tolist()[0]
    of_label = reading.rows[:, model.labels.index(label)]
    words = [
        {"start": span.start, "end": span.end, "text": text[span.start : span.end], "change": change}
        for span, change in zip(spans, (of_label[0] - of_label[1:]).tolist(), strict=True)
    ]
    return {
        "model": model.name,
        "label": label,
        "probabilities": _rank(model, reading.rows[0]),
        "words": words,
        "truncated": bool(reading.counts.cut[0]),
    }


def make_card(model: ServedModel) -> dict[str, Any]:
    """Return a model's entry of /v1/models."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "embedtune",
        "labels": model.labels,
        "width": model.width,
        "has_sets": model.classifier.calibrator_ is not None,
    }


def _rank(model: ServedModel, row: NDArray[np.float64]) -> list[dict[str, Any]]:
    order = np.argsort(-row, kind="stable")
    return [{"label": model.labels[k], "probability": float(row[k])} for k in order]


def _count_usage(reading: Reading) -> dict[str, int]:
    n_tokens = int(reading.counts.read.sum())
    return {
        "prompt_tokens": n_tokens,
        "total_tokens": n_tokens,
        "truncated_texts": int(reading.counts.cut.sum()),
    }
