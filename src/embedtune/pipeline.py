"""The stages of a run, one function each, over one task's run folder.

prepare → embed → finetune → embed-tuned → fit → compare → report → bundle. A stage is a sequence of steps; a step that
has been done with the same inputs is not done again (`runfolder`). The library below takes flat arguments and knows no
Experiment.
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedtune.assemble import (
    build_encoder,
    build_prompt_classifier,
    list_tuning_arguments,
)
from embedtune.bundle import read_manifest
from embedtune.bundle.card import write_card
from embedtune.comparison import write_results
from embedtune.config import TransformerView
from embedtune.confounding import judge_sources
from embedtune.curve import trace_curve
from embedtune.data.corrections import correct_labels
from embedtune.data.prepare import fingerprint, prepare_splits
from embedtune.data.sources import load_dataset
from embedtune.data.splits import Splits, write_splits
from embedtune.embed.backbone import describe_backbone
from embedtune.embed.precision import resolve_device
from embedtune.embed.spread import spread_texts
from embedtune.evaluate.cost import Cost, measure
from embedtune.files import explain_full_disk, hash_file, link_or_copy, replace_dir
from embedtune.finetune.search import search_settings
from embedtune.finetune.settings import check_requirements
from embedtune.finetune.train import fine_tune, resolve_training_precision
from embedtune.finetune.trunk import release_trunks
from embedtune.fitting import ask_decoder, check_wording, fit_arm, probe_layers, require_adapters
from embedtune.plan import (
    TUNED_ON,
    UNKEPT,
    TaskRun,
    Training,
    adapter_dir,
    adapter_key,
    adapter_step,
    arm_dir,
    arm_key,
    embed_step,
    list_head_parts,
    list_reads,
    list_scans,
    list_trainings,
    list_trunk_parts,
    list_tuned_models,
    list_tuned_reads,
    out_of_fold_path,
    predictions_path,
    resolve_settings,
    search_dir,
    search_key,
    search_step,
    split_folds,
)  # fmt: skip
from embedtune.predictions import write_out_of_fold, write_predictions
from embedtune.report.build import build_report
from embedtune.report.content import RESULTS_SCHEMA
from embedtune.runfolder import digest
from embedtune.scan import count_scanned, scan_views
from embedtune.suspects import list_suspects
from embedtune.tracking import send_results, watch_training

log = logging.getLogger(__name__)


def prepare(run: TaskRun) -> None:
    """Read the source, clean and split its rows into ``data/``."""
    experiment, source = run.experiment, run.source

    def load() -> Any:
        read = load_dataset(**source.model_dump(exclude={"labels"}))
        return read if source.labels is None else correct_labels(read, source.labels)

    given = (source.source, source.test_source, source.labels)
    paths = [Path(path) for path in given if path is not None]
    dataset = None if all(path.is_file() for path in paths) else load()
    stamp = [hash_file(path) for path in paths] if dataset is None else [fingerprint(dataset)]

    def compute() -> dict[str, Any]:
        rows = load() if dataset is None else dataset
        splits, audit = prepare_splits(rows, **experiment.prepare.model_dump(), seed=experiment.seeds[0])
        write_splits(splits, audit, run.path / "data")
        return {part: len(splits.rows(part)) for part in ("tune", "train", "test")}

    key = digest(stamp, source.model_dump(), experiment.prepare.model_dump(), experiment.seeds[0])
    outputs = [run.path / "data" / name for name in ("splits.parquet", "audit.json")]
    n = run.folder.run_step("prepare", key, compute, outputs=outputs)
    log.info("%s: %d tune, %d train and %d test rows", run.task, n["tune"], n["train"], n["test"])


def embed(run: TaskRun) -> None:
    """Read every text with every frozen backbone into the store."""
    splits = run.splits
    scan_views(run)
    for view in list_reads(run):
        n_before = count_scanned(run, view)
        if view.test_max_length is None:
            _extract(run, embed_step(view), view, splits.texts, adapter=None, n_before=n_before)
            continue
        seen, unseen = splits.rows("tune", "train"), splits.rows("test")
        texts = [splits.texts[i] for i in seen]
        _extract(run, embed_step(view), view, texts, adapter=None, n_before=n_before)
        cut = view.model_copy(update={"max_length": view.test_max_length})
        _extract(run, f"{embed_step(view)}-test", cut, [splits.texts[i] for i in unseen], adapter=None)


def finetune(run: TaskRun) -> None:
    """Fine-tune each chosen backbone on the rows each tuned arm gives it."""
    splits = run.splits
    folds = functools.cache(lambda seed: split_folds(run, splits, seed))
    _drop_old_folds(run)
    for view in list_tuned_reads(run):
        shared = list_trunk_parts(run, view.model)
        trunk_texts = [splits.texts[i] for i in splits.rows(*shared)] if shared else None
        if run.experiment.finetune.budget is not None:
            _search_settings(run, splits, view, trunk_texts)
        settings = resolve_settings(run, view)
        jobs = [
            _TuningJob(
                step=adapter_step(view.model, training, seed),
                key=adapter_key(run, view, training, seed),
                arguments={
                    **_list_rows(splits, _choose_rows(splits, training, folds, seed)),
                    **list_tuning_arguments(run, view, settings),
                    "model": view.model,
                    "output_dir": adapter_dir(run, view.model, training, seed),
                    "seed": seed,
                    "trunk_texts": trunk_texts,
                    "replace": True,
                },
                **(
                    {"watch": functools.partial(watch_training, run, view, training, seed)}
                    if run.engine.is_here
                    else {}
                ),
            )
            for seed in run.experiment.seeds
            for training in list_trainings(run, model=view.model)
        ]
        open_jobs = [
            job for job in jobs if run.folder.read_result(job.step, job.key, outputs=job.outputs) is None
        ]
        with explain_full_disk(run.path):
            results = run.engine.launch(_tune, open_jobs, folder=run.folder.scratch)
            for number, result in results:
                job = open_jobs[number]
                run.folder.run_step(job.step, job.key, functools.partial(dict, result), outputs=job.outputs)
        release_trunks()


class _TuningJob(NamedTuple):
    """A fine-tuning as a step of the run, `fine_tune`'s arguments, and what gives the Trainer callbacks that follow it.

    Elsewhere nothing follows it: trackers are sent what it logged at the end.
    """

    step: str
    key: str
    arguments: dict[str, Any]
    watch: Callable[[], AbstractContextManager[Any]] = functools.partial(nullcontext, ())

    @property
    def outputs(self) -> list[Path]:
        adapter = self.arguments["output_dir"]
        return [adapter, adapter / "finetune.json"]


def _choose_rows(
    splits: Splits, training: Training, folds: Callable[[int], Any], seed: int
) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = (
        splits.rows(*training.parts) if training.fold is None else folds(seed)[training.fold][0]
    )
    return rows


def _list_rows(splits: Splits, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Return `fine_tune`'s arguments that rows give, by name."""
    return {
        "texts": [splits.texts[i] for i in rows],
        "labels": splits.codes[rows],
        "label_names": splits.label_names,
        "groups": np.asarray(splits.groups)[rows],
    }


def _tune(job: _TuningJob) -> dict[str, Any]:
    """Fine-tune once, wherever the engine does, and return what is recorded of it."""
    with job.watch() as callbacks, measure() as cost:
        tuned = fine_tune(**job.arguments, callbacks=callbacks)
    return {
        "seconds": tuned.seconds,
        "trunk_seconds": tuned.trunk_seconds,
        **cost.as_record(),
        "trained_parameters": tuned.n_trained_parameters,
        "total_parameters": tuned.n_parameters,
        "validation_macro_f1": tuned.macro_f1,
    }


def _search_settings(
    run: TaskRun, splits: Splits, view: TransformerView, trunk_texts: list[str] | None
) -> None:
    """Seek a backbone's fine-tuning settings inside the tune rows, and record them."""
    folder, key = search_dir(run, view.model), search_key(run, view)
    rows: Any = splits.rows("tune")
    budget = run.experiment.finetune.budget
    assert budget is not None

    def compute() -> dict[str, Any]:
        for old in folder.glob("*"):
            if old.name != key:
                shutil.rmtree(old)
        with measure() as cost:
            found = search_settings(
                view.model,
                **_list_rows(splits, rows),
                output_dir=folder / key,
                budget=budget,
                seed=run.experiment.seeds[0],
                trunk_texts=trunk_texts,
                **list_tuning_arguments(run, view, run.experiment.finetune.of(view.model)),
            )
        return {**found._asdict(), **cost.as_record()}

    result = run.folder.run_step(search_step(view.model), key, compute)
    log.info("%s: settings found for %s: %s", run.task, view.model, result["settings"])


def _drop_old_folds(run: TaskRun) -> None:
    """Delete adapters of folds that there are no longer: whole weights take room."""
    for folder in (run.path / "adapters").glob("*/*-fold*-seed*"):
        fold = int(folder.name.rpartition("-fold")[2].partition("-seed")[0])
        if fold >= run.experiment.finetune.n_folds:
            shutil.rmtree(folder)


def embed_tuned(run: TaskRun) -> None:
    """Read the texts again with the fine-tuned backbones, as far as the arms need them."""
    splits = run.splits
    folds = functools.cache(lambda seed: split_folds(run, splits, seed))
    for view in list_tuned_reads(run):
        for seed in run.experiment.seeds:
            for training in list_trainings(run, model=view.model):
                step = adapter_step(view.model, training, seed)
                run.record(step, adapter_key(run, view, training, seed))
                own_head = training == Training(TUNED_ON["end-to-end"])
                needed = splits.rows("test") if own_head else splits.rows("train", "test")
                if training.fold is not None:
                    needed = np.union1d(folds(seed)[training.fold][1], splits.rows("test"))
                read = view.model_copy(update={"layers": (-1,)}) if own_head else view
                adapter = adapter_dir(run, view.model, training, seed)
                step = step.replace("finetune.", "embed-tuned.", 1)
                _extract(run, step, read, [splits.texts[i] for i in needed], adapter=adapter)


def fit(run: TaskRun) -> None:
    """Train every arm's head and save what it says of the test rows; probe the layers."""
    splits = run.splits
    for arm in run.experiment.compare.arms:

        def compute(arm: str = arm) -> dict[str, Any]:
            require_adapters(run, arm)
            by_seed: dict[int, NDArray[np.float64]] = {}
            facts: dict[str, Any] = {}
            with measure() as cost:
                if arm == "prompt":
                    by_seed, facts = ask_decoder(run, splits)
                    predicted = {seed: one.argmax(axis=1) for seed, one in by_seed.items()}
                else:
                    fitted = {seed: fit_arm(run, splits, arm, seed) for seed in run.experiment.seeds}
                    by_seed = {seed: one.probabilities for seed, one in fitted.items()}
                    predicted = {seed: one.predicted for seed, one in fitted.items()}
                    first = fitted[run.experiment.seeds[0]]
                    facts = {
                        "cells": {str(seed): one.cells for seed, one in fitted.items()},
                        "calibration": [one.calibration for one in fitted.values()],
                        "views": first.views,
                    }
            write_predictions(predictions_path(run, arm), splits, by_seed, predicted)
            out_of_fold_path(run, arm).unlink(missing_ok=True)
            if arm != "prompt" and first.out_of_fold is not None:
                rows = splits.rows(*list_head_parts(run.experiment, arm))
                write_out_of_fold(out_of_fold_path(run, arm), splits, rows, first.out_of_fold)
            return {"seconds": cost.seconds, **cost.as_record(), **facts}

        log.info("%s: fitting %s", run.task, arm)
        outputs = [predictions_path(run, arm)]
        if arm not in UNKEPT:
            outputs.append(arm_dir(run, arm) / "bundle.json")
        run.folder.run_step(f"fit.{arm}", arm_key(run, arm), compute, outputs=outputs)
    if run.experiment.compare.probe_layers or list_scans(run):
        probe_layers(run, splits)
    list_suspects(run, splits)
    judge_sources(run, splits)
    if run.experiment.compare.label_counts:
        trace_curve(run, splits)


def compare(run: TaskRun) -> None:
    """Score the arms, set them against each other, and write results.json."""
    arms = run.experiment.compare.arms
    key = digest([arm_key(run, arm) for arm in arms], run.experiment.compare.model_dump(), RESULTS_SCHEMA)
    outputs = [run.path / "results.json", run.path / "tables" / "test.csv"]
    run.folder.run_step("compare", key, lambda: {"best": write_results(run)["best"]}, outputs=outputs)


def report(run: TaskRun) -> None:
    """Write report.html from what the run folder holds."""
    path = run.path / "report.html"

    def compute() -> dict[str, Any]:
        build_report([run.path], path)
        return {}

    run.folder.run_step("report", digest(run.record("compare")["key"]), compute, outputs=[path])


def bundle(run: TaskRun) -> None:
    """Copy the best arm's classifier to ``bundle/``."""
    best = run.record("compare")["result"]["best"]
    target = run.path / "bundle"
    if best in UNKEPT:
        shutil.rmtree(target, ignore_errors=True)
        log.info("%s: no bundle, as the arm '%s' leaves no classifier to keep", run.task, best)
        return

    def compute() -> dict[str, Any]:
        with replace_dir(target) as scratch:
            shutil.copytree(arm_dir(run, best), scratch, copy_function=link_or_copy, dirs_exist_ok=True)
            results = json.loads((run.path / "results.json").read_text(encoding="utf-8"))
            write_card(scratch, read_manifest(scratch), results)
        return {"arm": best}

    key = digest(best, arm_key(run, best), run.record("compare")["key"])
    run.folder.run_step("bundle", key, compute, outputs=[target / "bundle.json"])


#: In the order they run.
STAGES: dict[str, Callable[[TaskRun], None]] = {
    "prepare": prepare,
    "embed": embed,
    "finetune": finetune,
    "embed-tuned": embed_tuned,
    "fit": fit,
    "compare": compare,
    "report": report,
    "bundle": bundle,
}


def run_stages(run: TaskRun, *, first: str = "prepare", last: str = "bundle", redo: bool = False) -> None:
    """Run the stages from `first` to `last`; with `redo`, again even where they were done."""
    names = list(STAGES)
    chosen = names[names.index(first) : names.index(last) + 1]
    if redo:
        for name in chosen:
            run.folder.forget(name)
    if set(chosen) - {"prepare", "compare", "report", "bundle"}:
        _check_views(run)
    if "fit" in chosen and "prompt" in run.experiment.compare.arms:
        _check_prompt(run)
    run.trackers  # noqa: B018 a package that isn't there is told before anything long starts
    for name in chosen:
        log.info("%s: %s", run.task, name)
        STAGES[name](run)
        if name == "prepare" and "prompt" in run.experiment.compare.arms:
            check_wording(run)
    if {"compare", "report"} & set(chosen):
        send_results(run)


def _check_views(run: TaskRun) -> None:
    """Refuse a backbone, layer, length or way to fine-tune that can't be used before anything long starts."""
    for view in run.experiment.embed.views.values():
        if isinstance(view, TransformerView):
            known = view.model_copy(update={"layers": "all"}) if view.layers == "auto" else view
            build_encoder(run, known, adapter=None).layers_  # noqa: B018 reading it checks every setting
    device = resolve_device(run.experiment.embed.device)
    for model in list_tuned_models(run):
        settings = run.experiment.finetune.of(model)
        names = ("objective", "method", "quantization", "optimizer")
        check_requirements(**{name: getattr(settings, name) for name in names}, device=device)
        resolve_training_precision(settings.precision, device)


def _check_prompt(run: TaskRun) -> None:
    """Refuse a model or server that can't be asked, unless it has been."""
    asked, prepared = run.folder.read_record("fit.prompt"), run.folder.read_record("prepare")
    if asked is None or prepared is None or asked["key"] != arm_key(run, "prompt"):
        build_prompt_classifier(run, run.experiment.seeds[0]).check()


def _extract(
    run: TaskRun,
    step: str,
    view: TransformerView,
    texts: list[str] | tuple[str, ...],
    *,
    adapter: Path | None,
    n_before: int = 0,
) -> None:
    """Make sure the store holds what `view` reads from the texts, `n_before` already; record how long it took."""

    def compute() -> dict[str, Any]:
        encoder = build_encoder(run, view, adapter=adapter)
        with measure() as cost:
            stored = spread_texts(encoder, texts, run.engine)
        whole = stored.n_computed == len(set(texts)) - n_before
        return {
            "seconds": stored.seconds if whole else None,
            "rows_per_second": stored.n_computed / stored.seconds if stored.n_computed else None,
            "n_computed": stored.n_computed,
            **(cost if run.engine.is_here else Cost()).as_record(),
            **({} if whole else {"joules": None}),
            "total_parameters": stored.n_parameters,
        }

    backbone = describe_backbone(
        view.model, adapter=adapter, revision=view.revision, trust_remote_code=view.trust_remote_code
    )
    settings = run.experiment.embed.model_dump(exclude={"views"})
    hashes = [backbone.weights_hash, backbone.config_hash, backbone.tokenizer_hash, backbone.adapter_hash]
    key = digest(run.record("prepare")["key"], view.model_dump(), hashes, settings)
    run.folder.run_step(step, key, compute)
