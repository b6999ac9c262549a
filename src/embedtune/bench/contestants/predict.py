"""EmbedClassifier.predict_proba on a list of texts, by a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Load the bundle, on the cores that a server would have."""
    if job["cores"]:
        os.sched_setaffinity(0, job["cores"])
    from embedtune import load_bundle

    classifier, texts = load_bundle(job["bundle"]), job["texts"]
    classifier.predict_proba(texts[:2])

    def run() -> dict[str, Any]:
        return {"probabilities": classifier.predict_proba(texts)}

    return run
