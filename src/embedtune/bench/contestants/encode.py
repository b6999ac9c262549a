"""TransformerEncoder.transform on a list of texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Build the encoder and load its backbone."""
    from embedtune import TransformerEncoder

    settings = dict(job["settings"])
    if isinstance(settings.get("pooling"), list):
        settings["pooling"] = tuple(settings["pooling"])
    encoder = TransformerEncoder(**settings)
    texts = job["texts"]
    encoder.transform(texts[:1])

    def run() -> dict[str, Any]:
        return {"vectors": encoder.transform(texts), "reading": encoder.reading_}

    return run
