"""A task that MTEB evaluates models on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def make_task(texts: Sequence[str], labels: Sequence[Any]) -> Any:
    """Return a classification of the texts, tested on themselves. MTEB's imports warn."""
    import datasets
    from mteb.abstasks import AbsTaskClassification
    from mteb.abstasks.task_metadata import TaskMetadata

    kinds = sorted(set(labels))

    class Moves(AbsTaskClassification):  # type: ignore[misc]
        metadata = TaskMetadata(
            name="Moves",
            description="Which way did it go?",
            dataset={"path": "nobody/moves", "revision": "1"},
            type="Classification",
            category="t2c",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="accuracy",
        )

        def load_data(self, **kwargs: Any) -> None:
            rows = datasets.Dataset.from_dict(
                {"text": list(texts), "label": [kinds.index(label) for label in labels]}
            )
            self.dataset = datasets.DatasetDict(train=rows, test=rows)
            self.data_loaded = True

    return Moves()
