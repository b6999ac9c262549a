"""Rows that look wrong: found where they were planted, written, corrected and fed back."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embedtune.cli import app
from embedtune.data.corrections import correct_labels, write_suspects
from embedtune.data.dataset import TextDataset
from embedtune.errors import DataError
from embedtune.evaluate import suspects
from embedtune.evaluate.suspects import find_disagreements, find_label_errors, find_outliers, rank_labels
from run_cases import write_recipe, write_rows


def draw_opinions(n: int = 1000, *, flipped: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels of which the first `flipped` are wrong, opinions that know better, and which are wrong."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, size=n)
    logits = random.normal(size=(n, 3))
    logits[np.arange(n), truth] += 4
    y = truth.copy()
    y[:flipped] = (truth[:flipped] + 1) % 3
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return y, probabilities, y != truth


def test_planted_label_errors_are_found() -> None:
    y, probabilities, wrong = draw_opinions(flipped=100)
    found = find_label_errors(y, probabilities)
    places = [one.place for one in found]
    assert wrong[places].mean() > 0.9
    assert wrong[places].sum() > 80
    assert wrong[places[:50]].all()  # the likeliest come first
    best = probabilities.argmax(axis=1)
    assert all(one.suggested == best[one.place] for one in found)
    assert len(find_label_errors(*draw_opinions()[:2])) < 20


def test_labels_are_ranked_by_their_margin() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    y = np.array([0, 1, 2])
    np.testing.assert_allclose(
        rank_labels(y, probabilities), [(0.7 - 0.2 + 1) / 2, (0.2 - 0.7 + 1) / 2, 0.65]
    )


def test_near_duplicates_that_disagree_are_told_their_likeliest_label() -> None:
    y = np.array([0, 1, 1, 0])
    probabilities = np.array([[0.1, 0.9], [0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    found = find_disagreements(y, probabilities, [[0, 1], [2], [3, 3], []])
    assert [(one.place, one.suggested) for one in found] == [(0, 1), (1, 1)]
    assert found[0].score == pytest.approx(0.1)


def test_outliers_are_the_rows_far_from_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(400, 16)) * 0.1 + np.eye(16)[0]).astype(np.float32)
    vectors[[7, 200, 399]] = [-np.eye(16)[0], np.eye(16)[3], -np.eye(16)[5]]
    found = find_outliers(vectors)
    assert {one.place for one in found} == {7, 200, 399}
    assert find_outliers(np.ones((50, 4), np.float32)) == []
    assert find_outliers(vectors[:5]) == []
    assert find_outliers(np.empty((0, 0), np.float32)) == []
    monkeypatch.setattr(suspects, "MAX_ROWS", 399)
    assert find_outliers(vectors) == []


# Corrections

DATA = TextDataset(
    texts=("a", "b", "c", "d"),
    labels=("up", "down", "up", "flat"),
    row_ids=(0, 2, 3, 9),
    groups=("1", "1", "2", "3"),
)


def write_csv(path: Path, *rows: tuple[Any, str], columns: str = "row,corrected") -> Path:
    path.write_text("\n".join([columns, *(f"{row},{label}" for row, label in rows)]) + "\n", encoding="utf-8")
    return path


def test_corrected_labels_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    found = correct_labels(
        DATA, write_csv(tmp_path / "c.csv", (2, "up"), (3, "-"), (9, ""), ("0.0", " down "))
    )
    assert found.texts == ("a", "b", "d")
    assert found.labels == ("down", "up", "flat")
    assert found.row_ids == (0, 2, 9)
    assert found.groups == ("1", "1", "3")
    assert found.n_dropped == 1


def test_spreadsheets_semicolons_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("text;row;corrected\nb, c;2;up\n", encoding="utf-8-sig")
    assert correct_labels(DATA, path).labels[1] == "up"


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([(2, "up")], "row,fixed", "c.csv has no column 'corrected': give the suspects.csv of a run"),
        (
            [(2, "up"), (1, "up")],
            "row,corrected",
            "c.csv, line 3: the data has no row 1: give the file of a run",
        ),
        ([(2, "dwn")], "row,corrected", "'dwn' is none of the data's labels (did you mean 'down'?)"),
        ([(2, "up"), (2, "flat")], "row,corrected", "row 2 is corrected to 'flat' here and to 'up' above"),
        ([("x", "up")], "row,corrected", "row is 'x': give a row's number in the source"),
    ],
)
def test_bad_corrections_are_refused(tmp_path: Path, rows: list[Any], columns: str, message: str) -> None:
    with pytest.raises(DataError) as refused:
        correct_labels(DATA, write_csv(tmp_path / "c.csv", *rows, columns=columns))
    assert message in str(refused.value)


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "suspects.csv"
    write_suspects(path, [{"row": 1, "text": '=cmd|"/c calc"!A1', "label": "@x", "suggested": "-y"}])
    (row,) = read_suspects(path)
    assert (row["text"], row["label"], row["suggested"]) == ('\'=cmd|"/c calc"!A1', "'@x", "'-y")
    signed = TextDataset(texts=("a", "b"), labels=("@x", "-y"))
    path.write_text("row,corrected\n0,'-y\n", encoding="utf-8")
    assert correct_labels(signed, path).labels == ("-y", "-y")


def test_corrections_are_kept_when_the_file_is_written_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "suspects.csv"
    write_suspects(path, [{"row": 1, "text": "a"}])
    write_suspects(path, [{"row": 2, "text": "b"}])
    assert [each.name for each in tmp_path.iterdir()] == ["suspects.csv"]
    path.write_text("row,corrected\n2,up\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        write_suspects(path, [{"row": 3, "text": "c"}])
    assert (tmp_path / "suspects.corrected.csv").read_text() == "row,corrected\n2,up\n"
    assert "suspects.corrected.csv, to be fed back with --labels" in caplog.text


# Through the command line


def call(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def read_suspects(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_run_lists_planted_errors_and_takes_the_corrections(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "moves.csv")
    lines = data.read_text().splitlines()
    swapped = {10: "down", 30: "down", 50: "down", 130: "up", 170: "up"}
    truth = {}
    for line, wrong in swapped.items():
        text, truth[line - 1] = lines[line].rsplit(",", 1)
        assert truth[line - 1] != wrong
        lines[line] = f"{text},{wrong}"
    data.write_text("\n".join(lines) + "\n")
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=data, store=tmp_path / "store")
    out = tmp_path / "run"
    arms = "compare.arms=[majority, floor, frozen+]"
    result = call("run", recipe, arms, "--out", out)
    assert result.exit_code == 0, result.output

    found = read_suspects(out / "suspects.csv")
    flagged = {int(row["row"]) for row in found if row["reason"] == "label"}
    assert len(flagged & set(truth)) >= 4
    assert len(flagged) < 30
    results = json.loads((out / "results.json").read_text())
    assert results["suspects"]["arm"] in ("floor", "frozen+")
    assert results["suspects"]["n"]["label"] == len(flagged)
    assert "Labels that contradict a classifier" in (out / "report.html").read_text()

    for row in found:
        row["corrected"] = truth.get(int(row["row"]), "")
    filled = out / "suspects.csv"
    with filled.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    refused = call("run", recipe, arms, "--out", out, "--labels", filled)
    assert refused.exit_code == 2
    assert "which this run writes anew" in " ".join(refused.output.split())
    corrected = filled.rename(tmp_path / "corrected.csv")
    again = call("run", recipe, arms, "--out", out, "--labels", corrected)
    assert again.exit_code == 0, again.output
    left = {int(row["row"]) for row in read_suspects(out / "suspects.csv")}
    assert not left & flagged & set(truth)


def test_without_out_of_fold_rows_no_suspects_are_reported(tiny_bert: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "moves.csv")
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=rows, store=tmp_path / "store")
    words = ["run", recipe, "compare.arms=[floor, frozen+]", "--out", tmp_path / "run"]
    assert call(*words).exit_code == 0
    results = tmp_path / "run" / "results.json"
    assert json.loads(results.read_text())["suspects"] is not None
    assert call(*words, "fit.calibration=none").exit_code == 0
    assert json.loads(results.read_text())["suspects"] is None
    assert json.loads(results.read_text())["arms"]["frozen+"]["sets"] is None
