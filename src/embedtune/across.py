"""Several runs beside each other: their best arms, tested in pairs where they have the same test rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedtune.data.splits import Splits, read_splits
from embedtune.errors import RunFolderError
from embedtune.evaluate.significance import (
    LEVEL,
    Resamples,
    compare_resamples,
    holm,
    resample_metrics,
)
from embedtune.predictions import read_predicted, read_predictions
from embedtune.report.build import build_report
from embedtune.report.content import read_run

METRIC = "macro_f1"


class _Run(NamedTuple):
    name: str
    path: Path
    results: dict[str, Any]
    splits: Splits


def report_runs(run_dirs: Sequence[Path], report_path: Path) -> Path:
    """Write one report of several runs, which opens with a table of their best arms.

    Raises
    ------
    RunFolderError
        If a folder is given twice, or holds no finished run.
    """
    return build_report(run_dirs, report_path, across=compare_runs(run_dirs))


def compare_runs(run_dirs: Sequence[Path]) -> dict[str, Any]:
    """Set the best arms of runs beside each other.

    Runs with the same test rows are tested against the first of them: paired bootstrap over those rows, corrected by
    Holm over all pairs.

    Returns
    -------
    dict
        ``runs``: per run ``name``, ``task``, ``arm``, ``n_test``, ``macro_f1`` (value, low, high) and ``cost``.
        ``pairs``: ``a``, ``b``, ``difference``, ``low``, ``high``, ``p_holm`` and ``verdict``.

    Raises
    ------
    RunFolderError
        If no folder is given, one is given twice, or holds no finished run.
    """
    if not run_dirs:
        raise RunFolderError("no run folder given: name at least one for the report.")
    runs = [
        _Run(name, path, read_run(path).results, _read_splits(path))
        for name, path in zip(_name_runs(run_dirs), run_dirs, strict=True)
    ]
    pairs: list[dict[str, Any]] = []
    first: dict[Any, tuple[_Run, Resamples]] = {}
    for run in runs:
        scored = _score(run)
        base = first.setdefault(_key(run.splits), (run, scored))
        if base[0] is not run:
            found = compare_resamples(scored, base[1], metric=METRIC)
            pairs.append({"a": run.name, "b": base[0].name, **found._asdict()})
    for pair, p in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        side = "better" if pair["difference"] > 0 else "worse"
        pair |= {"p_holm": p, "verdict": side if p < LEVEL else "not distinguishable"}
    return {"runs": [_describe(run) for run in runs], "pairs": pairs}


def _describe(run: _Run) -> dict[str, Any]:
    arm = run.results["best"]
    found = run.results["arms"][arm]
    return {
        "name": run.name,
        "task": run.results["task"],
        "arm": arm,
        "n_test": run.results["n"]["test"],
        "macro_f1": found[METRIC],
        "cost": found["cost"],
    }


def _score(run: _Run) -> Resamples:
    path = run.path / "predictions" / f"{run.results['best']}.parquet"
    test = run.splits.rows("test")
    return resample_metrics(
        run.splits.codes[test],
        read_predictions(path, run.splits),
        predicted=read_predicted(path, run.splits),
        groups=np.asarray(run.splits.groups)[test],
    )


def _key(splits: Splits) -> Any:
    """Return what two runs share whose scores can be tested in pairs."""
    test = splits.rows("test")
    return tuple(splits.label_names), tuple((splits.texts[row], splits.labels[row]) for row in test)


def _read_splits(path: Path) -> Splits:
    return read_splits(path / "data")


def _name_runs(run_dirs: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the folders' paths that tell them apart."""
    paths = [path.resolve() for path in run_dirs]
    if doubled := next((path for path in paths if paths.count(path) > 1), None):
        raise RunFolderError(f"{doubled} is given twice: name each run folder once.")
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different ends")
