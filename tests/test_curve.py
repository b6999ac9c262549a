"""The learning curve of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from embedtune.cli import app
from run_cases import write_recipe, write_rows


def call(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.slow
def test_curve_has_both_arms_at_every_count_the_rows_allow(tiny_bert: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "moves.csv")
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=rows, store=tmp_path / "store")
    out = tmp_path / "run"
    words = ["run", recipe, "compare.arms=[frozen+, end-to-end]", "seeds=[0, 1]", "--out", out]
    result = call(*words, "compare.label_counts=[2, 30, 5000]")
    assert result.exit_code == 0, result.output
    found = json.loads((out / "curve.json").read_text())
    assert (found["counts"], found["left_out"]) == ([2, 30], [5000])
    assert list(found["arms"]) == ["frozen+", "end-to-end", "contrastive"]
    for scores in found["arms"].values():
        few, many = scores
        assert len(few) == len(many) == 2
        assert sum(many) > sum(few)
    page = (out / "report.html").read_text()
    assert "With fewer labels" in page
    assert "30 labels" in page
    before = (out / "curve.json").stat().st_mtime_ns
    assert call(*words, "compare.label_counts=[2, 30, 5000]").exit_code == 0
    assert (out / "curve.json").stat().st_mtime_ns == before


def test_no_curve_unless_asked_for(tiny_bert: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "moves.csv")
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=rows, store=tmp_path / "store")
    assert call("run", recipe, "compare.arms=[floor]", "--out", tmp_path / "run").exit_code == 0
    assert not (tmp_path / "run" / "curve.json").exists()
    refused = call("run", recipe, "compare.label_counts=[0]", "--out", tmp_path / "other")
    assert refused.exit_code == 2


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedtune.curve.MIN_STEPS", 30)
