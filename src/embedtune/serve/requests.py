"""Bodies of requests: bytes to checked values, or a refusal of one line."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from embedtune.data.lines import is_damaged
from embedtune.errors import suggest_nearest
from embedtune.serve.limits import Limits
from embedtune.serve.models import ServedModel
from embedtune.serve.refusals import Refusal, refuse_slow

_INPUT: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
    ]
}


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, protected_namespaces=())

    model: str | None = Field(None, description="A name of /v1/models; may be left out where there is one.")


class PredictBody(_Body):
    """What /v1/predict reads."""

    # Of any type: pydantic would collect an error for each of a million wrong items.
    input: Any = Field(description="A text, or a list of them.", json_schema_extra=_INPUT)
    top_k: int | None = Field(None, ge=1, le=10**9, description="Likeliest labels to name; all by default.")
    threshold: float | None = Field(
        None, ge=0, le=1, description="Abstain where the label's probability is below this."
    )
    coverage: float | None = Field(
        None, gt=0, lt=1, description="Add sets of labels that hold the true one this often."
    )


class EmbedBody(_Body):
    """What /v1/embeddings reads: OpenAI's fields."""

    input: Any = Field(description="A text, or a list of them.", json_schema_extra=_INPUT)
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64 is of float32, little-endian."
    )
    dimensions: int | None = Field(None, description="Must be the vector's length, if given.")
    user: str | None = Field(None, description="Not read.")


class ExplainBody(_Body):
    """What /v1/explain reads."""

    input: str = Field(min_length=1, description="One text.")


Body = TypeVar("Body", bound=_Body)


def describe_body(schema: type[_Body]) -> dict[str, Any]:
    """Return a body's part of the OpenAPI description."""
    described = schema.model_json_schema()
    described["additionalProperties"] = False
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": described}}}}


async def read_body(request: Request, schema: type[Body], limits: Limits) -> Body:
    """Read and check a body.

    Raises
    ------
    Refusal
        408 if it doesn't come in time, 413 if it is too long, 400 if it breaks off or isn't a JSON object in UTF-8, 422
        if a field is wrong.
    """
    try:
        async with asyncio.timeout(limits.request_seconds):
            raw = await _receive(request, limits.max_body_bytes)
    except TimeoutError:
        raise refuse_slow("body", limits.request_seconds) from None
    except ClientDisconnect:
        raise Refusal(400, "the body broke off.", code="incomplete_body") from None
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise Refusal(400, "the body isn't UTF-8: send JSON in UTF-8.", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise Refusal(
            400, f"the body isn't JSON: {error.msg} at byte {error.pos}.", code="invalid_json"
        ) from None
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets in brackets in brackets
        raise Refusal(
            400, "the body is JSON beyond all measure: send a plain object.", code="invalid_json"
        ) from None
    if not isinstance(value, dict):
        raise Refusal(
            422, 'the body isn\'t a JSON object: send one such as {"input": "a text"}.', code="wrong_type"
        )
    for name in value:
        if name not in schema.model_fields:
            known = ", ".join(schema.model_fields)
            shown = name.encode("ascii", "backslashreplace").decode()[:40]
            near = suggest_nearest(name[:40], schema.model_fields)
            raise Refusal(
                422, f"the field '{shown}' is unknown{near}: allowed are {known}.", code="unknown_field"
            )
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        told = first["msg"][:1].lower() + first["msg"][1:]
        raise Refusal(422, f"the field '{name}' is wrong: {told}.", param=name, code="wrong_value") from None


async def _receive(request: Request, max_bytes: int) -> bytes:
    def refuse() -> Refusal:
        return Refusal(
            413,
            f"the body is longer than {max_bytes} bytes: send fewer or shorter texts at once.",
            code="body_too_long",
            headers={"Connection": "close"},
        )

    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes):
        raise refuse()
    pieces, n_bytes = [], 0
    async for piece in request.stream():
        n_bytes += len(piece)
        if n_bytes > max_bytes:
            raise refuse()
        pieces.append(piece)
    return b"".join(pieces)


def check_input(value: Any, limits: Limits) -> list[str]:
    """Return the texts of a request.

    Raises
    ------
    Refusal
        422 if there is none, too many, or one is no string, empty, too long or not Unicode.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise _refuse_input("input is no text: send a string, or a list of one or more.", "wrong_type")
    if len(texts) > limits.max_texts:
        raise _refuse_input(
            f"input has {len(texts)} texts, and a request may have {limits.max_texts}: send several requests.",
            "too_many_texts",
        )
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            kind = "null" if text is None else type(text).__name__
            raise _refuse_input(f"text {number} is of type {kind}: send strings.", "wrong_type")
        if not text.strip():
            raise _refuse_input(f"text {number} is empty: leave it out.", "empty_text")
        if len(text) > limits.max_chars:
            raise _refuse_input(
                f"text {number} has {len(text)} characters, and a text may have {limits.max_chars}: shorten it.",
                "text_too_long",
            )
        if is_damaged(text):
            raise _refuse_input(
                f"text {number} holds half a surrogate pair, which is no character: send whole ones.",
                "not_unicode",
            )
    return texts


def pick_model(name: str | None, models: dict[str, ServedModel]) -> ServedModel:
    """Return the model asked for, or the only one.

    Raises
    ------
    Refusal
        404 if there is no such model, 422 if none is named among several.
    """
    if name is None:
        if len(models) > 1:
            raise Refusal(422, f"no model is named: choose one of {', '.join(models)}.", param="model")
        return next(iter(models.values()))
    if name not in models:
        shown = name.encode("ascii", "backslashreplace").decode()[:60]
        near = suggest_nearest(name[:60], models)
        raise Refusal(
            404,
            f"there is no model '{shown}'{near}: choose one of {', '.join(models)}.",
            param="model",
            code="model_not_found",
        )
    return models[name]


def check_dimensions(dimensions: int | None, model: ServedModel) -> None:
    """Refuse a model without vectors, and a length that its vectors don't have.

    Raises
    ------
    Refusal
        422.
    """
    if model.width is None:
        raise Refusal(
            422,
            f"the bundle '{model.name}' reads texts with word counts alone, which are too long for an embedding: "
            "serve one with a backbone.",
            param="model",
            code="no_embedding",
        )
    if dimensions is not None and dimensions != model.width:
        raise Refusal(
            422,
            f"the vectors of '{model.name}' have {model.width} dimensions: ask for those, or leave dimensions out.",
            param="dimensions",
        )


def find_threshold(coverage: float | None, model: ServedModel) -> float | None:
    """Return the probability from which labels belong to a set; None where no sets are asked for.

    Raises
    ------
    Refusal
        422 if the bundle has no calibrator.
    """
    if coverage is None:
        return None
    calibrator = model.classifier.calibrator_
    if calibrator is None:
        raise Refusal(
            422,
            f"the bundle '{model.name}' has no calibrator to take sets from: leave coverage out.",
            param="coverage",
            code="no_calibrator",
        )
    threshold = float(calibrator.find_threshold(coverage))
    return threshold if math.isfinite(threshold) else 0.0


def _refuse_input(message: str, code: str) -> Refusal:
    return Refusal(422, message, param="input", code=code)
