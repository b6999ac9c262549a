"""What a run's fitted arms come to: results.json and the tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedtune.assemble import name_readings
from embedtune.config import TransformerView
from embedtune.confounding import STEP as SOURCES_STEP
from embedtune.embed.checkpoints import name_model
from embedtune.evaluate.arms import ARMS, compare_arms, score_arm, write_verdict
from embedtune.evaluate.selective import (
    measure_reliability,
    score_abstention,
    score_sets,
    trace_cascade,
    trace_risk,
)
from embedtune.files import write_json
from embedtune.heads.calibration import find_sets
from embedtune.plan import (
    UNKEPT,
    TaskRun,
    adapter_step,
    arm_key,
    list_faults,
    list_reads,
    list_trainings,
    list_tuned_reads,
    list_views,
    predictions_path,
    search_step,
)
from embedtune.predictions import read_predicted, read_predictions
from embedtune.report.content import RESULTS_SCHEMA
from embedtune.results import compare_with_prompting, describe_environment, sum_costs
from embedtune.runfolder import check_outputs
from embedtune.scan import read_embed_cost
from embedtune.suspects import STEP as SUSPECTS_STEP
from embedtune.tables import write_test_table, write_validation_table


def write_results(run: TaskRun) -> dict[str, Any]:
    """Score the arms on the test rows, set them against each other, and write results.json and the tables.

    Returns
    -------
    dict
        What results.json holds.

    Raises
    ------
    RunFolderError
        If an arm hasn't been fitted with the present settings.
    """
    settings = run.experiment.compare
    splits = run.splits
    arms: list[str] = list(settings.arms)
    options: dict[str, Any] = {"n_resamples": settings.n_resamples, "confidence": settings.confidence}
    test = splits.rows("test")
    y, groups = splits.codes[test], np.asarray(splits.groups)[test]
    for arm in arms:
        run.record(f"fit.{arm}", arm_key(run, arm))
    check_outputs(run.path, *(predictions_path(run, arm).relative_to(run.path).as_posix() for arm in arms))
    probabilities: dict[str, Any] = {
        arm: read_predictions(predictions_path(run, arm), splits) for arm in arms
    }
    predicted = {arm: read_predicted(predictions_path(run, arm), splits) for arm in arms}
    scores: dict[str, Any] = {
        arm: {
            **score_arm(
                y,
                probabilities[arm],
                splits.label_names,
                predicted=predicted[arm],
                groups=groups,
                **options,
            ),
            **_judge_probabilities(run, arm, y, probabilities[arm]),
            "views": run.record(f"fit.{arm}")["result"].get("views") or [],
            "cost": _cost(run, arm),
            "seeds": list(run.experiment.seeds),
            **_describe_answers(run, arm),
        }
        for arm in arms
    }
    comparisons = compare_arms(y, probabilities, predicted=predicted, groups=groups, **options)
    contenders = [arm for arm in arms if arm not in UNKEPT] or arms
    best = max(contenders, key=lambda arm: float(scores[arm]["macro_f1"]["value"]))
    views: Any = run.experiment.embed.views
    chosen = {
        name: view
        for name, view in list_views(run, "frozen")
        if isinstance(view, TransformerView) and views[name] != view
    }
    results = {
        "schema": RESULTS_SCHEMA,
        "task": run.task,
        "labels": list(splits.label_names),
        "n": {part: len(splits.rows(part)) for part in ("tune", "train", "test")},
        "arms": scores,
        "comparisons": comparisons,
        "best": best,
        "verdict": write_verdict(
            scores,
            comparisons,
            confidence=settings.confidence,
            n_test=len(test),
            faults=list_faults(run.experiment),
        ),
        "cascade": {
            "cheap": "floor",
            "dear": best,
            **trace_cascade(y, probabilities["floor"], probabilities[best]),
        }
        if "floor" in arms and best != "floor"
        else None,
        "sources": (run.folder.read_record(SOURCES_STEP) or {}).get("result"),
        "against_prompting": compare_with_prompting(scores),
        "search": _describe_searches(run),
        "suspects": (run.folder.read_record(SUSPECTS_STEP) or {}).get("result"),
        "automatic_layers": {name: list(view.layers) for name, view in chosen.items()},
        "automatic_pooling": {
            name: view.pooling for name, view in chosen.items() if views[name].pooling == "auto"
        },
        "environment": {
            **describe_environment(command=run.command, seeds=run.experiment.seeds),
            "precision": name_readings(run),
        },
    }
    cells = {arm: run.record(f"fit.{arm}")["result"].get("cells", {}) for arm in arms}
    if any(found for by_seed in cells.values() for found in by_seed.values()):
        write_validation_table(run.path / "tables" / "validation.csv", cells)
    write_test_table(run.path / "tables" / "test.csv", scores)
    write_json(run.path / "results.json", results)
    return results


def _cost(run: TaskRun, arm: str) -> dict[str, Any]:
    """Add up what an arm's steps recorded."""
    fitted = [run.record(f"fit.{arm}")["result"]]
    if arm in ("majority", "floor"):
        return sum_costs(fit=fitted)
    if arm == "prompt":
        measured = {name: fitted[0][name] for name in ("rows_per_second", "total_parameters")}
        if fitted[0]["joules"] is not None:
            measured["joules_per_1000"] = 1000 * fitted[0]["joules"] / fitted[0]["n_asked"]
        return {**sum_costs(fit=fitted), **measured}
    frozen = [read_embed_cost(run, view) for view in list_reads(run)]
    if ARMS[arm].backbones == "frozen":
        return sum_costs(fit=fitted, embed=frozen)
    steps = [
        adapter_step(view.model, training, seed)
        for view in list_tuned_reads(run, arm)
        for seed in run.experiment.seeds
        for training in list_trainings(run, arm)
    ]
    tuned = [run.record(step)["result"] for step in steps]
    if run.experiment.finetune.budget is not None:
        searches = [run.record(search_step(view.model))["result"] for view in list_tuned_reads(run, arm)]
        tuned += [{**found, "trained_parameters": 0, "total_parameters": 0} for found in searches]
    read = [run.record(step.replace("finetune.", "embed-tuned.", 1))["result"] for step in steps]
    return sum_costs(fit=fitted, embed=read, finetune=tuned, n_seeds=len(run.experiment.seeds))


def _describe_searches(run: TaskRun) -> dict[str, Any]:
    """Return what the search of each backbone's fine-tuning settings found; empty without a budget."""
    if run.experiment.finetune.budget is None:
        return {}
    shown = ("settings", "macro_f1", "given_macro_f1", "seconds")
    found = {view.model: run.record(search_step(view.model))["result"] for view in list_tuned_reads(run)}
    return {
        name_model(model): {**{name: one[name] for name in shown}, "n_trials": len(one["trials"])}
        for model, one in found.items()
    }


def _judge_probabilities(
    run: TaskRun, arm: str, y: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> dict[str, Any]:
    """Return what an arm's probabilities are worth on the test rows; without sets where nothing was calibrated."""
    settings = run.experiment
    calibration = run.record(f"fit.{arm}")["result"].get("calibration") or [None]
    found: dict[str, Any] = {
        "reliability": measure_reliability(y, probabilities),
        "risk_coverage": trace_risk(y, probabilities),
        "abstention": score_abstention(y, probabilities, cost=settings.compare.abstain_cost),
        "calibration": calibration[0],
        "sets": None,
    }
    if None not in calibration:
        sets = [
            find_sets(one, seed["threshold"]) for one, seed in zip(probabilities, calibration, strict=True)
        ]
        found["sets"] = score_sets(y, np.stack(sets), coverage=settings.fit.coverage)
    return found


def _describe_answers(run: TaskRun, arm: str) -> dict[str, Any]:
    """Return which model answered, and how often in vain; nothing for an arm that asks none."""
    fitted = run.record(f"fit.{arm}")["result"]
    return {name: fitted[name] for name in ("asked", "unmatched_answers") if name in fitted}
