"""Whether a source gives labels away: the three statistics, and the run that reports them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedtune import load_dataset
from embedtune.confounding import compare_with_majority, guess_labels, merge_rare
from embedtune.data.corrections import correct_labels
from embedtune.data.splits import read_splits
from embedtune.errors import DataError
from run_cases import write_recipe, write_rows
from test_run import call

OPENINGS = {"wire": "HELSINKI (wire) -", "blog": "hey folks,"}


def test_rare_sources_are_put_together() -> None:
    sources = np.array(["a"] * 5 + ["b"] * 4 + ["c", "d", "d"], dtype=object)
    assert merge_rare(sources, n_kept=2).tolist() == ["a"] * 5 + ["b"] * 4 + ["(others)"] * 3


def test_guesses_are_the_sources_most_frequent_labels_elsewhere() -> None:
    sources, y = np.repeat([0, 1], 50), np.repeat([1, 0], 50)
    assert guess_labels(sources, y).tolist() == y.tolist()
    alone = np.arange(100)  # no source says anything of another row: the most frequent label is left
    y = np.array([0] * 70 + [1] * 30)
    assert guess_labels(alone, y).tolist() == [0] * 100


def test_guessing_tells_only_what_is_certain() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=2000)
    tells = [compare_with_majority(y, rng.integers(2, size=2000))["tells"] for _ in range(50)]
    assert not any(tells)
    found = compare_with_majority(y, np.where(rng.random(2000) < 0.3, y, rng.integers(2, size=2000)))
    assert found["tells"]
    assert found["accuracy"] == pytest.approx(0.65, abs=0.04)


def write_sourced(path: Path, *, confounded: bool) -> Path:
    """The usual rows, each with a source that its first words show: by its label, or by chance."""
    rng = np.random.default_rng(0)
    with write_rows(path.with_suffix(".rows.csv")).open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    for row in rows:
        likely = row["label"] == names[0]
        row["publisher"] = "wire" if (likely if confounded else rng.random() < 0.5) else "blog"
        row["text"] = f"{OPENINGS[row['publisher']]} {row['text']}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("confounded", [True, False])
def test_run_tells_whether_sources_give_labels_away(
    tiny_bert: Path, tmp_path: Path, confounded: bool
) -> None:
    data = write_sourced(tmp_path / "moves.csv", confounded=confounded)
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=data, store=tmp_path / "store")
    settings = ["tasks.moves.source_column=publisher", "compare.arms=[floor]"]
    result = call("run", recipe, "--out", tmp_path / "run", *settings)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "run" / "results.json").read_text())["sources"]
    assert set(found["sources"]) == {"wire", "blog"}
    assert found["source_from_text"]["tells"]
    assert found["confounded"] is confounded
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Where rows are from" in page
    assert ("Test on a source that no training row is from" in page) is confounded
    splits = read_splits(tmp_path / "run" / "data")
    assert splits.sources is not None
    assert pq.read_table(tmp_path / "run" / "data" / "splits.parquet")["source"].to_pylist() == list(
        splits.sources
    )


def test_run_without_sources_says_nothing_of_them(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "moves.csv")
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=data, store=tmp_path / "store")
    assert call("run", recipe, "--out", tmp_path / "run", "compare.arms=[floor]").exit_code == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["sources"] is None
    assert "Where rows are from" not in (tmp_path / "run" / "report.html").read_text()


def test_source_column_is_read_and_a_missing_one_refused(tmp_path: Path) -> None:
    data = write_sourced(tmp_path / "moves.csv", confounded=True)
    dataset = load_dataset(data, source_column="publisher")
    assert dataset.sources is not None
    assert set(dataset.sources) == {"wire", "blog"}
    with pytest.raises(DataError, match=r"has no column 'publishr' \(did you mean 'publisher'\?\)"):
        load_dataset(data, source_column="publishr")
    with pytest.raises(DataError, match="knows its own columns: leave out"):
        load_dataset("sentiment", source_column="publisher")


def test_sources_go_with_their_rows(tmp_path: Path) -> None:
    dataset = load_dataset(write_sourced(tmp_path / "moves.csv", confounded=True), source_column="publisher")
    (tmp_path / "corrected.csv").write_text("row,corrected\n0,-\n", encoding="utf-8")
    corrected = correct_labels(dataset, tmp_path / "corrected.csv")
    assert dataset.sources is not None
    assert corrected.sources == dataset.sources[1:]
    assert dataset.take([2, 0]).sources == (dataset.sources[2], dataset.sources[0])
