"""A run repeated on several splits of the same rows: whether its answer hangs on which rows were tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedtune.config import Experiment
from embedtune.errors import ConfigError, RunFolderError
from embedtune.evaluate.arms import say_verdict, write_verdict
from embedtune.evaluate.significance import compare_splits, holm
from embedtune.files import write_json
from embedtune.runfolder import read_output

#: Seeds of one split lie this far from the next one's.
_STRIDE = 1000


def list_repeats(experiment: Experiment, n_splits: int) -> list[Experiment]:
    """Return the experiment once per split, each with seeds of its own.

    Raises
    ------
    ConfigError
        If there are several tasks, the data brings its own test rows, or `n_splits` is below two.
    """
    if n_splits < 2:
        raise ConfigError(f"--repeat {n_splits}: give two splits or more.")
    if len(experiment.tasks) > 1:
        raise ConfigError(
            f"--repeat takes one task, and {experiment.name} has several: choose one with --task."
        )
    (source,) = experiment.tasks.values()
    if source.test_source is not None or source.hub_test_split is not None:
        raise ConfigError(
            "--repeat splits the rows anew each time, and these test rows are given: leave one out."
        )
    return [
        experiment.model_copy(update={"seeds": tuple(seed + _STRIDE * k for seed in experiment.seeds)})
        for k in range(n_splits)
    ]


def check_repeatable(run_dir: Path) -> None:
    """Refuse data that bring their own test rows, once one split is prepared.

    Raises
    ------
    RunFolderError
    """
    audit = read_output(run_dir / "data" / "audit.json")
    if audit["own_test_rows"]:
        raise RunFolderError(
            f"{run_dir}: the data has test rows of its own (a split, or a time column), which no split changes: run "
            "without --repeat."
        )


def compare_repeats(run_dirs: Sequence[Path], *, output: Path, confidence: float = 0.95) -> dict[str, Any]:
    """Set the arms against each other over all splits, and write what was found as JSON.

    Returns
    -------
    dict
        ``n_splits``; ``arms``, each with ``accuracy`` and ``macro_f1`` as ``{"value", "sd", "by_split"}``;
        ``comparisons``, as results.json's, by the corrected resampled t-test; ``verdict``.
    """
    results = [read_output(path / "results.json") for path in run_dirs]
    n_test = float(np.mean([one["n"]["test"] for one in results]))
    n_train = float(np.mean([one["n"]["tune"] + one["n"]["train"] for one in results]))
    arms = {
        name: {
            metric: _describe([one["arms"][name][metric]["value"] for one in results]) for metric in _METRICS
        }
        for name in results[0]["arms"]
    }
    rows: list[dict[str, Any]] = []
    for row in results[0]["comparisons"]:
        a, b, metric = row["a"], row["b"], row["metric"]
        differences = np.subtract(arms[a][metric]["by_split"], arms[b][metric]["by_split"])
        found = compare_splits(differences, n_train=n_train, n_test=n_test, confidence=confidence)
        rows.append({"a": a, "b": b, "metric": metric, **found._asdict(), "test": "corrected resampled t"})
    for row, p_holm in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row |= {"p_holm": p_holm, "verdict": say_verdict(row["difference"], p_holm)}
    repeats = {
        "schema": 1,
        "task": results[0]["task"],
        "n_splits": len(results),
        "arms": arms,
        "comparisons": rows,
        "verdict": write_verdict(arms, rows, confidence=confidence),
    }
    write_json(output, repeats)
    return repeats


_METRICS = ("accuracy", "macro_f1")


def _describe(values: Sequence[float]) -> dict[str, Any]:
    return {"value": float(np.mean(values)), "sd": float(np.std(values, ddof=1)), "by_split": list(values)}
