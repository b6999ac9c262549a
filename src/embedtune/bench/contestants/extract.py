"""Contestant: the texts through the encoder, without a store, into a new one, or out of a full one."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedtune.embed.encoder import TransformerEncoder


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Load the backbone, and fill the store that ``"full"`` reads."""
    folder = Path(tempfile.mkdtemp(dir=job["folder"]))
    encoder = TransformerEncoder(job["model"], layers=job["layers"])
    encoder.transform(job["texts"][:8])
    if job["store"] == "full":
        encoder.set_params(store=folder).transform(job["texts"])

    def run() -> dict[str, Any]:
        if job["store"] == "new":
            shutil.rmtree(folder)
            encoder.set_params(store=folder)
        vectors = encoder.transform(job["texts"])
        return {"vectors": vectors, "n_computed": encoder.last_n_computed_}

    return run
