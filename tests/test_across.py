"""Several runs beside each other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from embedtune.across import compare_runs
from embedtune.cli import app
from embedtune.data.splits import read_splits
from embedtune.errors import RunFolderError
from embedtune.evaluate.significance import compare_pair
from embedtune.predictions import read_predictions
from report_runs import SHARES, write_run


def test_runs_on_the_same_rows_are_tested_in_pairs(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good" / "run")
    poor = write_run(
        tmp_path / "poor" / "run", shares={arm: min(share, 0.8) for arm, share in SHARES.items()}
    )
    other = write_run(tmp_path / "other" / "run", seed=5)
    found = compare_runs([good, poor, other])
    assert [run["name"] for run in found["runs"]] == ["good/run", "poor/run", "other/run"]
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["verdict"]) == ("poor/run", "good/run", "worse")
    splits = read_splits(good / "data")
    test = splits.rows("test")

    def read(run: Path, arm: str) -> np.ndarray:
        return read_predictions(run / "predictions" / f"{arm}.parquet", read_splits(run / "data"))

    best = {run["name"]: run["arm"] for run in found["runs"]}
    expected = compare_pair(
        splits.codes[test],
        read(poor, best["poor/run"]),
        read(good, best["good/run"]),
        groups=np.arange(len(test)),
    )
    assert pair["difference"] == pytest.approx(expected.difference)
    assert pair["p_holm"] == pytest.approx(expected.p)


def test_report_of_several_runs_opens_with_their_table(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, task="same <task>", seed=seed) for name, seed in (("a", 0), ("b&c", 1))
    ]
    shutil.copytree(runs[0], tmp_path / "again")
    out = tmp_path / "out" / "all.html"
    words = [str(runs[0]), str(runs[1]), str(tmp_path / "again"), "-o", str(out)]
    result = CliRunner().invoke(app, ["report", *words])
    assert result.exit_code == 0, result.output
    page = out.read_text()
    assert "Runs beside each other" in page
    assert "b&amp;c" in page
    assert "<td><bdi>a</bdi></td><td>+0.0 (+0.0 to +0.0)</td>" in page
    assert "not distinguishable" in page


def test_run_given_twice_unfinished_or_with_settings_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with pytest.raises(RunFolderError, match="is given twice"):
        compare_runs([run, tmp_path / "x" / ".." / "a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match=r"has no results\.json"):
        compare_runs([run, tmp_path / "empty"])
    result = CliRunner().invoke(app, ["report", str(run), str(tmp_path / "empty"), "seeds=[1]"])
    assert result.exit_code == 2
    assert "can't be set for several runs" in result.output
