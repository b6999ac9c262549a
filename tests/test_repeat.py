"""A run on several splits, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embedtune.cli import app
from embedtune.config import build_experiment
from embedtune.errors import ConfigError
from embedtune.repeat import list_repeats
from run_cases import write_recipe, write_rows

VIEWS = {"embed": {"views": {"lexical": {"kind": "lexical"}}}}
ARMS = "compare.arms=[majority, floor, frozen+]"


def call(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def recipe(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = write_rows(folder / "moves.csv")
    return write_recipe(folder / "tiny.yaml", model=tiny_bert, data=rows, store=folder / "store")


def test_repeated_run_compares_over_all_splits(recipe: Path, tmp_path: Path) -> None:
    result = call("run", recipe, ARMS, "--repeat", 3, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "repeats.json").read_text())
    each = [json.loads((tmp_path / f"split{k}" / "results.json").read_text()) for k in range(3)]
    scores = [one["arms"]["floor"]["macro_f1"]["value"] for one in each]
    assert found["arms"]["floor"]["macro_f1"]["by_split"] == scores
    assert found["arms"]["floor"]["macro_f1"]["sd"] == pytest.approx(np.std(scores, ddof=1))
    parts = [(tmp_path / f"split{k}" / "data" / "splits.parquet").read_bytes() for k in range(3)]
    assert len(set(parts)) == 3
    (row,) = [row for row in found["comparisons"] if row["metric"] == "macro_f1"]
    assert (row["a"], row["b"], row["test"]) == ("frozen+", "floor", "corrected resampled t")
    assert row["low"] <= row["difference"] <= row["high"]
    assert "3 splits" in result.output


def test_repeating_what_cannot_be_split_is_refused(recipe: Path, tmp_path: Path) -> None:
    result = call("run", recipe, "--repeat", 1, "--out", tmp_path)
    assert result.exit_code == 2
    assert "--repeat 1: give two splits or more." in " ".join(result.output.split())
    several = build_experiment(
        {"name": "two", "tasks": {"a": {"source": "sentiment"}, "b": {"source": "sentiment"}}, **VIEWS},
        where="here",
    )
    with pytest.raises(ConfigError, match="takes one task"):
        list_repeats(several, 3)
    tested = build_experiment(
        {"name": "own", "tasks": {"a": {"source": "a.csv", "test_source": "b.csv"}}, **VIEWS}, where="here"
    )
    with pytest.raises(ConfigError, match="these test rows are given"):
        list_repeats(tested, 3)


def test_test_rows_of_the_datas_own_are_refused_before_anything_is_trained(
    recipe: Path, tmp_path: Path
) -> None:
    rows = (recipe.parent / "moves.csv").read_text().splitlines()
    dated = tmp_path / "dated.csv"
    dated.write_text("\n".join([f"{rows[0]},day", *(f"{row},{i}" for i, row in enumerate(rows[1:]))]) + "\n")
    words = ["--data", dated, "--time-column", "day", "--repeat", 2, "--out", tmp_path / "run"]
    result = call("run", recipe, ARMS, *words)
    assert result.exit_code == 2
    assert "which no split changes" in " ".join(result.output.split())
    assert not (tmp_path / "run" / "split0" / "predictions").exists()
