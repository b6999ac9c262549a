"""What a run's settings describe, as objects: an arm's classifier, a view's encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.base import clone

from embedtune.classifier import EmbedClassifier
from embedtune.config import FinetuneSettings, LexicalView, StaticView, TransformerView
from embedtune.embed.crossfitted import CrossFittedEncoder
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.lexical import LexicalEncoder
from embedtune.embed.static import StaticEncoder
from embedtune.embed.store import EmbeddingStore
from embedtune.finetune.saved import read_finetuned, read_heads
from embedtune.plan import (
    SCANNED_POOLINGS,
    TUNED_ON,
    TaskRun,
    Training,
    adapter_dir,
    adapter_step,
    list_trainings,
    list_tuned_reads,
    list_views,
    split_folds,
)
from embedtune.prompt.classifier import PromptClassifier


def build_classifier(run: TaskRun, arm: str, seed: int) -> EmbedClassifier:
    """Return the classifier of an arm with a head of its own, ready to be fitted."""
    settings = run.experiment.fit
    options: dict[str, Any] = {
        "class_weight": settings.class_weight,
        "normalize": settings.normalize,
        "calibration": settings.calibration,
        "decision": settings.decision,
        "random_state": seed,
    }
    if arm == "floor":
        return EmbedClassifier([("lexical", LexicalEncoder())], "logistic", **options)
    tuned = {view.model for view in list_tuned_reads(run)} if arm in TUNED_ON else set()
    folds = _number_folds(run, seed) if arm == "tuned+" else {}
    views: list[tuple[str, Any]] = []
    for name, view in list_views(run, arm):
        if isinstance(view, TransformerView):
            trainings = list_trainings(run, arm) if view.model in tuned else []
            adapters = [adapter_dir(run, view.model, training, seed) for training in trainings]
            encoders = [build_encoder(run, view, adapter=adapter) for adapter in adapters or (None,)]
            if len(encoders) == 1:
                views.append((name, encoders[0]))
            else:
                # the co-occurrence head takes blocks of one width only
                heads = None if settings.head == "cooccurrence" else read_heads(adapters)
                views.append((name, CrossFittedEncoder(encoders, folds=folds, heads=heads)))
        elif isinstance(view, StaticView):
            views.append((name, StaticEncoder(view.source)))
        else:
            assert isinstance(view, LexicalView)
            views.append((name, LexicalEncoder(**view.model_dump(exclude={"kind"}))))
    if settings.head == "cooccurrence":
        options["head_options"] = settings.cooccurrence.model_dump()
    return EmbedClassifier(views, settings.head, **options)


def _number_folds(run: TaskRun, seed: int) -> dict[str, int]:
    """Return the fold of each text of tune + train; one text has one group, and so one fold."""
    splits = run.splits
    folds = split_folds(run, splits, seed)
    return {splits.texts[i]: fold for fold, (_, unseen) in enumerate(folds) for i in unseen}


def choose_end_to_end(run: TaskRun, seed: int) -> TransformerView:
    """Return the view whose fine-tuned backbone did best on its validation rows."""
    training = Training(TUNED_ON["end-to-end"])

    def validated(view: TransformerView) -> float:
        return run.record(adapter_step(view.model, training, seed))["result"]["validation_macro_f1"] or 0.0

    return max(list_tuned_reads(run, "end-to-end"), key=validated)


def read_end_to_end(run: TaskRun, view: TransformerView, training: Training, seed: int) -> EmbedClassifier:
    """Return a fine-tuned backbone with its own head, as fine-tuning left them."""
    adapter = adapter_dir(run, view.model, training, seed)
    encoder = build_encoder(run, view.model_copy(update={"layers": (-1,)}), adapter=adapter)
    tuned = read_finetuned(adapter)
    assert tuned.head_weight is not None and tuned.head_bias is not None
    return EmbedClassifier.from_finetuned(
        encoder, weight=tuned.head_weight, bias=tuned.head_bias, labels=tuned.label_names
    )


def build_prompt_classifier(
    run: TaskRun, seed: int, *, labels: Sequence[str] | None = None
) -> PromptClassifier:
    """Return the classifier of the arm `prompt`, ready to be fitted.

    Parameters
    ----------
    run : TaskRun
    seed : int
        Seeds the choice of examples.
    labels : sequence of str, optional
        The task's; wordings of other tasks' labels are left out where the run has several.
    """
    settings, embed = run.experiment.prompt.model_dump(), run.experiment.embed
    if labels is not None and len(run.experiment.tasks) > 1:
        settings["options"] = {key: name for key, name in settings["options"].items() if key in labels}
    return PromptClassifier(**settings, precision=embed.precision, device=embed.device, random_state=seed)


def read_at_test_length(run: TaskRun, classifier: EmbedClassifier) -> EmbedClassifier:
    """Return a fitted classifier whose views read at their `test_max_length`, where they have one."""
    views = []
    for name, encoder in classifier.views_:
        view = run.experiment.embed.views.get(name)
        if isinstance(view, TransformerView) and view.test_max_length is not None:
            encoder = clone(encoder)
            for one in encoder.encoders if isinstance(encoder, CrossFittedEncoder) else [encoder]:
                one.set_params(max_length=view.test_max_length)
        views.append((name, encoder))
    return EmbedClassifier.from_fitted(
        views, classifier.head_, classifier.calibrator_, classifier.decision_weights_, classifier.normalizes_
    )


def name_readings(run: TaskRun) -> dict[str, str]:
    """Return each transformer view's precision and backend, resolved, as in ``"bfloat16+openvino"``."""
    return {
        name: build_encoder(run, view, adapter=None).reading_
        for name, view in run.experiment.embed.views.items()
        if isinstance(view, TransformerView)
    }


def list_tuning_arguments(run: TaskRun, view: TransformerView, settings: FinetuneSettings) -> dict[str, Any]:
    """Return `fine_tune`'s arguments that the settings and the view of a backbone give, by name."""
    return {
        "pooling": view.pooling,
        "prefix": view.prefix,
        "max_length": view.max_length,
        "revision": view.revision,
        "trust_remote_code": view.trust_remote_code,
        "device": run.experiment.embed.device,
        **settings.model_dump(exclude_none=True),
    }


def build_encoder(run: TaskRun, view: TransformerView, *, adapter: Path | None) -> TransformerEncoder:
    """Return a view's encoder over the run's store; `adapter` is a folder that fine-tuning wrote.

    Where pooling is still to be chosen it reads all that may be.
    """
    settings = run.experiment.embed
    return TransformerEncoder(
        **view.model_dump(exclude={"kind", "test_max_length", "precision", "pooling"}),
        pooling=SCANNED_POOLINGS if view.pooling == "auto" else view.pooling,
        adapter=None if adapter is None else str(adapter),
        precision=view.precision or settings.precision,
        backend=settings.backend,
        device=settings.device,
        device_map=settings.device_map,
        batch_tokens=settings.batch_tokens,
        store=EmbeddingStore(None if settings.store == "auto" else settings.store),
    )
