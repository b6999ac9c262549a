"""The routes, and what they take and give."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import embedtune
from embedtune.serve import answers, pages
from embedtune.serve.batcher import Batcher
from embedtune.serve.gate import Gate
from embedtune.serve.metrics import Metrics
from embedtune.serve.models import ServedModel
from embedtune.serve.refusals import Refusal
from embedtune.serve.requests import (
    EmbedBody,
    ExplainBody,
    PredictBody,
    check_dimensions,
    check_input,
    describe_body,
    find_threshold,
    pick_model,
    read_body,
)
from embedtune.serve.shedding import Shedder
from embedtune.serve.words import MAX_SPANS, find_spans, leave_out

_BEARER = HTTPBearer(auto_error=False, description="The server's EMBEDTUNE_API_KEY, if it has one.")
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.ErrorAnswer, "description": described}
    for status, described in {
        400: "The body isn't JSON in UTF-8, or broke off.",
        401: "The key is missing or wrong.",
        404: "There is no such model.",
        408: "The body didn't come in time.",
        413: "The body is too long.",
        422: "A field is wrong.",
        429: "The queue is full; Retry-After says for how long.",
        500: "The classifier failed on these texts.",
        503: "The server is stopping, or unwell.",
    }.items()
}


def make_app(
    models: dict[str, ServedModel], batcher: Batcher, metrics: Metrics, *, key: str | None = None
) -> FastAPI:
    """Return the server's application.

    Parameters
    ----------
    models : dict of str to ServedModel
    batcher : Batcher
        Stopped with the application.
    metrics : Metrics
    key : str, optional
        What ``Authorization: Bearer`` must carry under /v1 and at /metrics.
    """

    @asynccontextmanager
    async def live(app: FastAPI) -> Any:
        yield
        batcher.close()

    app = FastAPI(
        title="embedtune",
        summary="Labels and embeddings of texts, by bundles that embedtune trained.",
        version=embedtune.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=live,
    )
    guard = Depends(_make_guard(key))
    app.include_router(_make_routes(models, batcher), prefix="/v1", dependencies=[guard], responses=_REFUSALS)
    _add_probes(app, batcher, metrics, guard)
    pages.add_pages(app)
    app.add_exception_handler(Refusal, _answer_refusal)
    app.add_exception_handler(HTTPException, _answer_http)
    described = app.openapi()["paths"]
    read = {path for path, methods in described.items() if "post" in methods}
    app.add_middleware(Shedder, batcher=batcher, paths=read)
    app.add_middleware(Gate, metrics=metrics, paths={*described, "/", "/docs", "/openapi.json"})
    return app


def _make_routes(models: dict[str, ServedModel], batcher: Batcher) -> APIRouter:
    routes = APIRouter()
    limits = batcher.limits

    @routes.post("/predict", response_model=answers.PredictAnswer, openapi_extra=describe_body(PredictBody))
    async def predict(request: Request) -> Response:
        """Label texts: probabilities, an abstention below a threshold, sets of labels at a coverage."""
        body = await read_body(request, PredictBody, limits)
        model, texts = pick_model(body.model, models), check_input(body.input, limits)
        set_threshold = find_threshold(body.coverage, model)
        reading = await batcher.read(model, "predict", texts)
        made = answers.make_predictions(
            model, reading, top_k=body.top_k, threshold=body.threshold, set_threshold=set_threshold
        )
        return JSONResponse(made)

    @routes.post("/embeddings", response_model=answers.EmbedAnswer, openapi_extra=describe_body(EmbedBody))
    async def embed(request: Request) -> Response:
        """Embed texts, as OpenAI's interface does: the backbone's highest layer that is read, scaled to norm one."""
        body = await read_body(request, EmbedBody, limits)
        model, texts = pick_model(body.model, models), check_input(body.input, limits)
        check_dimensions(body.dimensions, model)
        reading = await batcher.read(model, "embed", texts)
        return JSONResponse(answers.make_embeddings(model, reading, encoding_format=body.encoding_format))

    @routes.post("/explain", response_model=answers.ExplainAnswer, openapi_extra=describe_body(ExplainBody))
    async def explain(request: Request) -> Response:
        """Label a text, and say what the label's probability loses without each of its words."""
        body = await read_body(request, ExplainBody, limits)
        model, (text,) = pick_model(body.model, models), check_input(body.input, limits)
        spans = find_spans(text, max_spans=min(MAX_SPANS, max(limits.queue_texts - 1, 1)))
        reading = await batcher.read(model, "predict", [text, *leave_out(text, spans)])
        return JSONResponse(answers.make_explanation(model, reading, text, spans))

    @routes.get("/models", response_model=answers.ModelList)
    async def list_models() -> Response:
        """List the models."""
        return JSONResponse(
            {"object": "list", "data": [answers.make_card(model) for model in models.values()]}
        )

    @routes.get("/models/{name}", response_model=answers.ModelCard)
    async def show_model(name: str) -> Response:
        """Show one model."""
        return JSONResponse(answers.make_card(pick_model(name, models)))

    return routes


def _add_probes(app: FastAPI, batcher: Batcher, metrics: Metrics, guard: Any) -> None:
    unwell: dict[int | str, dict[str, Any]] = {
        503: {"model": answers.ErrorAnswer, "description": "It isn't."}
    }

    @app.get("/health", responses=unwell)
    async def health() -> dict[str, str]:
        """Tell whether the server is well; after memory ran out or the worker died, it has to be restarted."""
        _check_fault(batcher)
        return {"status": "ok"}

    @app.get("/ready", responses=unwell)
    async def ready() -> dict[str, str]:
        """Tell whether requests are taken."""
        _check_fault(batcher)
        if batcher.is_closing:
            raise Refusal(503, "the server is stopping.", code="stopping")
        return {"status": "ready"}

    @app.get("/metrics", dependencies=[guard], responses={401: _REFUSALS[401]}, response_class=Response)
    async def show_metrics() -> Response:
        """Return counters in Prometheus's text format."""
        metrics.healthy.set(batcher.fault is None)
        return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _check_fault(batcher: Batcher) -> None:
    if batcher.fault is not None:
        raise Refusal(503, f"{batcher.fault}: restart the server.", code="unwell")


def _make_guard(key: str | None) -> Any:
    async def check_key(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if key is None:
            return
        sent = given.credentials.encode("latin-1") if given else b""  # the bytes that were sent
        if not hmac.compare_digest(sent, os.fsencode(key)):
            raise Refusal(
                401,
                "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    return check_key


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse(error.as_dict(), error.status, headers=error.headers)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers: Mapping[str, str] = error.headers or {}
    told = {404: "there is no such page: see /docs.", 405: "this page takes another method: see /docs."}
    refusal = Refusal(error.status_code, told.get(error.status_code, str(error.detail)), headers=headers)
    return JSONResponse(refusal.as_dict(), refusal.status, headers=refusal.headers)
