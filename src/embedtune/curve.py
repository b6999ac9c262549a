"""The learning curve: frozen against fine-tuned with few labels, and where fine-tuning starts to pay."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedtune.assemble import build_classifier, build_encoder, list_tuning_arguments
from embedtune.classifier import EmbedClassifier
from embedtune.config import TransformerView
from embedtune.data.splits import Splits
from embedtune.evaluate.metrics import compute_metrics
from embedtune.files import write_json
from embedtune.finetune.train import fine_tune
from embedtune.heads.decision import decide
from embedtune.plan import TaskRun, arm_key, list_tuned_reads, resolve_settings
from embedtune.progress import track
from embedtune.runfolder import digest

STEP = "fit.curve"
#: Few rows are gone through more often: five epochs of 24 rows would be five steps.
MIN_STEPS = 100
#: By contrast a step compares all pairs of its rows, so fewer steps do.
CONTRASTIVE = {"objective": "contrastive", "epochs": 15, "min_steps": 20}


def trace_curve(run: TaskRun, splits: Splits) -> None:
    """Write curve.json: macro-F1 on the test rows by labels per class, every seed with rows of its own.

    ``frozen+`` trains the run's head on frozen views, ``end-to-end`` fine-tunes the run's first tuned backbone, with
    at least `MIN_STEPS` steps, and ``contrastive`` does so by contrast.

    References
    ----------
    Mosbach, Andriushchenko and Klakow 2021, "On the Stability of Fine-tuning BERT" (few rows need many epochs).
    """
    path = run.path / "curve.json"
    experiment = run.experiment
    arms = [arm for arm in ("frozen+", "end-to-end") if arm in experiment.compare.arms]
    ways = [*arms, "contrastive"] if "end-to-end" in arms else arms

    def compute() -> dict[str, Any]:
        pool = splits.rows("tune", "train")
        smallest = int(np.bincount(splits.codes[pool], minlength=len(splits.label_names)).min())
        counts = [n for n in experiment.compare.label_counts if n <= smallest]
        scores: dict[str, list[list[float]]] = {way: [] for way in ways}
        with track(
            "learning curve", len(ways) * len(counts) * len(experiment.seeds), unit="trainings"
        ) as bar:
            for n in counts:
                chosen = [_draw(splits, pool, n, seed) for seed in experiment.seeds]
                for way in ways:
                    pairs = zip(experiment.seeds, chosen, strict=True)
                    scores[way].append([_score(run, splits, way, rows, seed, bar) for seed, rows in pairs])
        left_out = [n for n in experiment.compare.label_counts if n > smallest]
        write_json(path, {"metric": "macro_f1", "counts": counts, "left_out": left_out, "arms": scores})
        return {}

    keys = [arm_key(run, arm) for arm in arms]
    run.folder.run_step(
        STEP, digest(keys, experiment.compare.label_counts, MIN_STEPS, CONTRASTIVE), compute, outputs=[path]
    )


def _draw(splits: Splits, pool: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """Choose `n` rows of each class."""
    random = np.random.default_rng(seed)
    by_class = [pool[splits.codes[pool] == label] for label in range(len(splits.label_names))]
    return np.sort(np.concatenate([random.choice(rows, n, replace=False) for rows in by_class]))


def _score(run: TaskRun, splits: Splits, way: str, rows: NDArray[np.int64], seed: int, bar: Any) -> float:
    texts, labels = [splits.texts[i] for i in rows], [splits.labels[i] for i in rows]
    test = splits.rows("test")
    asked = [splits.texts[i] for i in test]
    if way == "frozen+":
        classifier = build_classifier(run, way, seed)
        classifier.fit(texts, labels, groups=[splits.groups[i] for i in rows])
        probabilities = classifier.predict_proba(asked)
    else:
        with tempfile.TemporaryDirectory() as place:
            classifier = _tune(run, splits, way, texts, labels, seed, Path(place))
            probabilities = classifier.predict_proba(asked)
    bar.advance()
    predicted = decide(probabilities, classifier.decision_weights_)
    return float(compute_metrics(splits.codes[test], probabilities, predicted)["macro_f1"])


def _tune(
    run: TaskRun, splits: Splits, way: str, texts: list[str], labels: list[str], seed: int, place: Path
) -> EmbedClassifier:
    view: TransformerView = list_tuned_reads(run, "end-to-end")[0]
    arguments = list_tuning_arguments(run, view, resolve_settings(run, view))
    how = CONTRASTIVE if way == "contrastive" else {"min_steps": max(arguments["min_steps"], MIN_STEPS)}
    tuned = fine_tune(
        view.model,
        texts,
        labels=labels,
        label_names=splits.label_names,
        output_dir=place / "adapter",
        seed=seed,
        **{**arguments, **how, "validation_fraction": 0.0},
    )
    encoder = build_encoder(run, view.model_copy(update={"layers": (-1,)}), adapter=place / "adapter")
    encoder.set_params(store=None)  # nobody reads with this adapter again
    return EmbedClassifier.from_finetuned(
        encoder, weight=tuned.head_weight, bias=tuned.head_bias, labels=tuned.label_names
    )
