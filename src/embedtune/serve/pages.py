"""The pages for people: one to try a sentence, one that describes the interface. They load nothing from elsewhere."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment

#: Whatever a text holds, a browser runs our one script and asks nobody but this server.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_ASSETS = {"page.js": "text/javascript", "page.css": "text/css"}


def add_pages(app: FastAPI) -> None:
    """Add ``/``, its script and style, and ``/docs``. They say nothing of the bundles, so they need no key."""

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(_read("page.html"), headers=HEADERS)

    for name, kind in _ASSETS.items():
        app.add_api_route(f"/{name}", _make_sender(name, kind), include_in_schema=False)

    @app.get("/docs", include_in_schema=False)
    async def show_docs() -> Response:
        return HTMLResponse(_draw_docs(json.dumps(app.openapi())), headers=HEADERS)


def _make_sender(name: str, kind: str) -> Any:
    async def send() -> Response:
        return Response(_read(name), media_type=kind, headers=HEADERS)

    return send


@cache
def _read(name: str) -> str:
    return (files("embedtune.serve") / "static" / name).read_text(encoding="utf-8")


@cache
def _draw_docs(described: str) -> str:
    description = json.loads(described)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["name_type"] = _name_type
    environment.filters["find_schema"] = lambda schema: _find_schema(schema, description)
    return environment.from_string(_read("docs.html")).render(api=description)


def _find_schema(schema: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: dict[str, Any] = description["components"]["schemas"][reference.rsplit("/", 1)[-1]]
    return found


def _name_type(schema: dict[str, Any]) -> str:
    """Return a schema in a few words, such as ``list of str, or null``."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    if "anyOf" in schema:
        return ", or ".join(_name_type(part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", or ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_name_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
