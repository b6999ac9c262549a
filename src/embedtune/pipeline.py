"""The stages of a run, one function each, over one task's run folder.

prepare → embed → finetune → embed-tuned → fit → compare → report → bundle. A stage is a sequence of steps; a step that
has been done with the same inputs is not done again (`runfolder`). Nothing but this module and `cli` reads Experiment.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedtune.assemble import (
    build_classifier,
    build_encoder,
    build_prompt_classifier,
    read_at_test_length,
)
from embedtune.config import TransformerView
from embedtune.data.prepare import fingerprint, prepare_splits
from embedtune.data.sources import load_dataset
from embedtune.data.splits import Splits, write_splits
from embedtune.embed.backbone import describe_backbone
from embedtune.embed.checkpoints import hash_file, name_model
from embedtune.evaluate.arms import ARMS, compare_arms, score_arm, write_verdict
from embedtune.evaluate.cost import measure
from embedtune.files import link_or_copy, replace_dir, write_json
from embedtune.finetune.train import fine_tune
from embedtune.heads.probe import probe_blocks
from embedtune.plan import (
    ARM_ROWS,
    TUNED_ON,
    UNKEPT,
    TaskRun,
    adapter_dir,
    adapter_key,
    adapter_step,
    arm_dir,
    arm_key,
    embed_step,
    list_reads,
    list_tuned_parts,
    list_tuned_reads,
    predictions_path,
)  # fmt: skip
from embedtune.predictions import read_predictions, write_predictions
from embedtune.report.build import build_report
from embedtune.results import describe_environment, sum_costs
from embedtune.runfolder import digest

log = logging.getLogger(__name__)


def prepare(run: TaskRun) -> None:
    """Read the source, clean and split its rows into ``data/``."""
    experiment, source = run.experiment, run.source

    def load() -> Any:
        return load_dataset(**source.model_dump())

    paths = [Path(path) for path in (source.source, source.test_source) if path is not None]
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
    for view in list_reads(run):
        if view.test_max_length is None:
            _extract(run, embed_step(view), view, splits.texts, adapter=None)
            continue
        seen, unseen = splits.rows("tune", "train"), splits.rows("test")
        _extract(run, embed_step(view), view, [splits.texts[i] for i in seen], adapter=None)
        cut = view.model_copy(update={"max_length": view.test_max_length})
        _extract(run, f"{embed_step(view)}-test", cut, [splits.texts[i] for i in unseen], adapter=None)


def finetune(run: TaskRun) -> None:
    """Fine-tune each chosen backbone on the rows each tuned arm gives it."""
    splits = run.splits
    names = splits.label_names
    y = _encode(splits)
    for view in list_tuned_reads(run):
        for seed in run.experiment.seeds:
            for parts in list_tuned_parts(run):
                rows = splits.rows(*parts)
                adapter = adapter_dir(run, view.model, parts, seed)

                def compute(
                    view: TransformerView = view,
                    seed: int = seed,
                    rows: NDArray[Any] = rows,
                    adapter: Path = adapter,
                ) -> dict[str, Any]:
                    with measure() as cost:
                        tuned = fine_tune(
                            view.model,
                            [splits.texts[i] for i in rows],
                            labels=y[rows],
                            label_names=names,
                            groups=np.asarray(splits.groups)[rows],
                            output_dir=adapter,
                            max_length=view.max_length,
                            pooling=view.pooling,
                            prefix=view.prefix,
                            revision=view.revision,
                            trust_remote_code=view.trust_remote_code,
                            seed=seed,
                            device=run.experiment.embed.device,
                            replace=True,
                            **run.experiment.finetune.of(view.model).model_dump(),
                        )
                    return {
                        "seconds": tuned.seconds,
                        "peak_memory_bytes": cost.peak_memory_bytes,
                        "trained_parameters": tuned.n_trained_parameters,
                        "total_parameters": tuned.n_parameters,
                        "validation_macro_f1": tuned.macro_f1,
                    }

                step = adapter_step(view.model, parts, seed)
                run.folder.run_step(
                    step, adapter_key(run, view, parts, seed), compute, outputs=[adapter / "finetune.json"]
                )


def embed_tuned(run: TaskRun) -> None:
    """Read the texts again with the fine-tuned backbones, as far as the arms need them."""
    splits = run.splits
    for view in list_tuned_reads(run):
        for seed in run.experiment.seeds:
            for parts in list_tuned_parts(run):
                run.record(adapter_step(view.model, parts, seed), adapter_key(run, view, parts, seed))
                own_head = parts == TUNED_ON["end-to-end"]
                needed = splits.rows("test") if own_head else splits.rows("train", "test")
                read = view.model_copy(update={"layers": (-1,)}) if own_head else view
                adapter = adapter_dir(run, view.model, parts, seed)
                step = f"embed-tuned.{adapter_step(view.model, parts, seed).removeprefix('finetune.')}"
                _extract(run, step, read, [splits.texts[i] for i in needed], adapter=adapter)


def fit(run: TaskRun) -> None:
    """Train every arm's head and save what it says of the test rows; probe the layers."""
    splits = run.splits
    for arm in run.experiment.compare.arms:

        def compute(arm: str = arm) -> dict[str, Any]:
            _require_adapters(run, arm)
            by_seed: dict[int, NDArray[np.float64]] = {}
            facts: dict[str, Any] = {}
            with measure() as cost:
                if arm == "prompt":
                    by_seed, facts = _ask(run, splits)
                else:
                    by_seed = {seed: _fit_arm(run, splits, arm, seed) for seed in run.experiment.seeds}
            write_predictions(predictions_path(run, arm), splits, by_seed)
            return {"seconds": cost.seconds, "peak_memory_bytes": cost.peak_memory_bytes, **facts}

        log.info("%s: fitting %s", run.task, arm)
        run.folder.run_step(f"fit.{arm}", arm_key(run, arm), compute, outputs=[predictions_path(run, arm)])
    if run.experiment.compare.probe_layers:
        _probe(run, splits)


def compare(run: TaskRun) -> None:
    """Score the arms, set them against each other, and write results.json."""
    settings = run.experiment.compare
    splits = run.splits
    arms: list[str] = list(settings.arms)
    options: dict[str, Any] = {"n_resamples": settings.n_resamples, "confidence": settings.confidence}

    def compute() -> dict[str, Any]:
        test = splits.rows("test")
        y, groups = _encode(splits)[test], np.asarray(splits.groups)[test]
        for arm in arms:
            run.record(f"fit.{arm}", arm_key(run, arm))
        probabilities: dict[str, Any] = {
            arm: read_predictions(predictions_path(run, arm), splits) for arm in arms
        }
        scores: dict[str, Any] = {
            arm: {
                **score_arm(y, probabilities[arm], splits.label_names, groups=groups, **options),
                "cost": _cost(run, arm),
                "seeds": list(run.experiment.seeds),
                **_describe_answers(run, arm),
            }
            for arm in arms
        }
        comparisons = compare_arms(y, probabilities, groups=groups, **options)
        contenders = [arm for arm in arms if arm not in UNKEPT] or arms
        results = {
            "schema": 1,
            "task": run.task,
            "labels": list(splits.label_names),
            "n": {part: len(splits.rows(part)) for part in ("tune", "train", "test")},
            "arms": scores,
            "comparisons": comparisons,
            "best": max(contenders, key=lambda arm: float(scores[arm]["macro_f1"]["value"])),
            "verdict": write_verdict(scores, comparisons, confidence=settings.confidence),
            "environment": describe_environment(command=run.command, seeds=run.experiment.seeds),
        }
        write_json(run.path / "results.json", results)
        return {"best": results["best"]}

    key = digest([arm_key(run, arm) for arm in arms], settings.model_dump())
    run.folder.run_step("compare", key, compute, outputs=[run.path / "results.json"])


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
        return {"arm": best}

    run.folder.run_step("bundle", digest(best, arm_key(run, best)), compute, outputs=[target / "bundle.json"])


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
    for name in chosen:
        log.info("%s: %s", run.task, name)
        STAGES[name](run)


def _check_views(run: TaskRun) -> None:
    """Refuse a backbone, layer or length that can't be used before anything long starts."""
    for view in run.experiment.embed.views.values():
        if isinstance(view, TransformerView):
            build_encoder(run, view, adapter=None).layers_  # noqa: B018 reading it checks every setting


def _check_prompt(run: TaskRun) -> None:
    """Refuse a model or server that can't be asked, unless it has been."""
    asked, prepared = run.folder.read_record("fit.prompt"), run.folder.read_record("prepare")
    if asked is None or prepared is None or asked["key"] != arm_key(run, "prompt"):
        build_prompt_classifier(run, run.experiment.seeds[0]).check()


def _require_adapters(run: TaskRun, arm: str) -> None:
    """Make sure the arm's backbones were fine-tuned with the present settings."""
    for view in list_tuned_reads(run) if arm in TUNED_ON else []:
        for seed in run.experiment.seeds:
            run.record(
                adapter_step(view.model, TUNED_ON[arm], seed), adapter_key(run, view, TUNED_ON[arm], seed)
            )


def _fit_arm(run: TaskRun, splits: Splits, arm: str, seed: int) -> NDArray[np.float64]:
    """Train one arm with one seed; return its probabilities on the test rows, shape (n_test, n_labels)."""
    rows = splits.rows(*ARM_ROWS[arm])
    test = splits.rows("test")
    if arm == "majority":
        shares = np.bincount(_encode(splits)[rows], minlength=len(splits.label_names)) / len(rows)
        return np.tile(shares, (len(test), 1))
    classifier = build_classifier(run, arm, seed)
    if arm != "end-to-end":
        texts, labels = [splits.texts[i] for i in rows], [splits.labels[i] for i in rows]
        classifier.fit(texts, labels, groups=[splits.groups[i] for i in rows])
    reader = read_at_test_length(run, classifier)
    probabilities = reader.predict_proba([splits.texts[i] for i in test])
    if seed == run.experiment.seeds[0]:
        classifier.save(arm_dir(run, arm), notes={"task": run.task, "arm": arm, "seed": seed})
    return probabilities


def _ask(run: TaskRun, splits: Splits) -> tuple[dict[int, NDArray[np.float64]], dict[str, Any]]:
    """Ask about the test rows with each seed's examples, once for all seeds where none are shown.

    Returns
    -------
    by_seed : dict of int to ndarray of shape (n_test, n_labels)
    facts : dict
        ``rows_per_second``, ``total_parameters`` (None for a server), ``asked`` (the model) and ``unmatched_answers``.
    """
    rows, test = splits.rows(*ARM_ROWS["prompt"]), splits.rows("test")
    texts, labels = [splits.texts[i] for i in rows], [splits.labels[i] for i in rows]
    seeds = run.experiment.seeds if run.experiment.prompt.n_examples else run.experiment.seeds[:1]
    by_seed: dict[int, NDArray[np.float64]] = {}
    asked = []
    for seed in seeds:
        classifier = build_prompt_classifier(run, seed, labels=splits.label_names).fit(texts, labels)
        by_seed[seed] = classifier.predict_proba([splits.texts[i] for i in test])
        asked.append(classifier)
    n_unmatched = sum(one.last_n_unmatched_ for one in asked)
    n_asked, seconds = sum(one.last_n_asked_ for one in asked), sum(one.last_seconds_ for one in asked)
    if n_unmatched:
        log.warning(
            "%s: %d of %d answers to the prompt named no label; their rows count as undecided",
            run.task, n_unmatched, n_asked,
        )  # fmt: skip
    facts = {
        "rows_per_second": n_asked / seconds if seconds else None,
        "total_parameters": asked[0].n_parameters_,
        "asked": asked[0].asked_,
        "unmatched_answers": n_unmatched,
    }
    return {seed: by_seed.get(seed, by_seed[seeds[0]]) for seed in run.experiment.seeds}, facts


def _probe(run: TaskRun, splits: Splits) -> None:
    """Write probes.json: how well each layer separates the labels, cross-validated inside the train rows."""
    rows = splits.rows("train")
    texts = [splits.texts[i] for i in rows]
    y, groups = _encode(splits)[rows], np.asarray(splits.groups)[rows]
    seed = run.experiment.seeds[0]
    tuned = (
        {view.model for view in list_tuned_reads(run)} if "tuned" in run.experiment.compare.arms else set()
    )

    def compute() -> dict[str, Any]:
        curves = []
        for view in list_reads(run):
            for state in ("frozen", "tuned") if view.model in tuned else ("frozen",):
                adapter = None if state == "frozen" else adapter_dir(run, view.model, TUNED_ON["tuned"], seed)
                encoder = build_encoder(run, view, adapter=adapter)
                X = encoder.transform(texts)
                scores = probe_blocks(X, y, widths=encoder.widths_, groups=groups, random_state=seed)
                name = name_model(view.model)
                curves.append(
                    {"view": name, "adapter": state, "layers": list(encoder.layers_), "scores": scores}
                )
        write_json(run.path / "probes.json", {"metric": "macro_f1", "curves": curves})
        return {}

    keys = [
        adapter_key(run, view, TUNED_ON["tuned"], seed)
        for view in list_tuned_reads(run)
        if view.model in tuned
    ]
    key = digest(run.record("prepare")["key"], [view.model_dump() for view in list_reads(run)], keys)
    run.folder.run_step("fit.probe", key, compute, outputs=[run.path / "probes.json"])


def _extract(
    run: TaskRun,
    step: str,
    view: TransformerView,
    texts: list[str] | tuple[str, ...],
    *,
    adapter: Path | None,
) -> None:
    """Make sure the store holds what `view` reads from the texts; record how long it took."""

    def compute() -> dict[str, Any]:
        encoder = build_encoder(run, view, adapter=adapter)
        with measure() as cost:
            encoder.transform(texts)
        whole = encoder.last_n_computed_ == len(set(texts))
        return {
            "seconds": encoder.last_seconds_ if whole else None,
            "rows_per_second": encoder.last_n_computed_ / encoder.last_seconds_
            if encoder.last_n_computed_
            else None,
            "peak_memory_bytes": cost.peak_memory_bytes,
            "total_parameters": encoder.n_parameters_,
        }

    backbone = describe_backbone(
        view.model, adapter=adapter, revision=view.revision, trust_remote_code=view.trust_remote_code
    )
    settings = run.experiment.embed.model_dump(exclude={"views"})
    hashes = [backbone.weights_hash, backbone.config_hash, backbone.tokenizer_hash, backbone.adapter_hash]
    key = digest(run.record("prepare")["key"], view.model_dump(), hashes, settings)
    run.folder.run_step(step, key, compute)


def _cost(run: TaskRun, arm: str) -> dict[str, Any]:
    """Add up what an arm's steps recorded."""
    fitted = [run.record(f"fit.{arm}")["result"]]
    if arm in ("majority", "floor"):
        return sum_costs(fit=fitted)
    if arm == "prompt":
        measured = {name: fitted[0][name] for name in ("rows_per_second", "total_parameters")}
        return {**sum_costs(fit=fitted), **measured}
    frozen = [run.record(embed_step(view))["result"] for view in list_reads(run)]
    if ARMS[arm].backbones == "frozen":
        return sum_costs(fit=fitted, embed=frozen)
    rows = TUNED_ON[arm]
    steps = [
        adapter_step(view.model, rows, seed)
        for view in list_tuned_reads(run)
        for seed in run.experiment.seeds
    ]
    tuned = [run.record(step)["result"] for step in steps]
    read = [run.record(step.replace("finetune.", "embed-tuned.", 1))["result"] for step in steps]
    return sum_costs(fit=fitted, embed=read, finetune=tuned)


def _describe_answers(run: TaskRun, arm: str) -> dict[str, Any]:
    """Return which model answered, and how often in vain; nothing for an arm that asks none."""
    fitted = run.record(f"fit.{arm}")["result"]
    return {name: fitted[name] for name in ("asked", "unmatched_answers") if name in fitted}


def _encode(splits: Splits) -> NDArray[np.int64]:
    """Return labels as numbers into the sorted label names."""
    return np.searchsorted(
        np.asarray(splits.label_names, dtype=object), np.asarray(splits.labels, dtype=object)
    ).astype(np.int64)
