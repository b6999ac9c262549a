"""The whole flow through the command line, on a tiny backbone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embedtune import load_bundle
from embedtune.cli import app
from embedtune.data.splits import read_splits
from run_cases import read_figures, write_recipe, write_rows

ARMS = ["majority", "floor", "frozen", "frozen+", "tuned", "end-to-end"]


@pytest.fixture(scope="module")
def recipe(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = write_rows(folder / "moves.csv")
    return write_recipe(folder / "tiny.yaml", model=tiny_bert, data=rows, store=folder / "store")


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    result = call("run", recipe, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def call(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def list_times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / ".state").glob("*.json")}


def test_run_writes_the_whole_folder(finished: Path) -> None:
    names = {path.name for path in finished.iterdir() if not path.name.startswith(".")}
    assert names == {
        "config.yaml", "data", "adapters", "predictions", "arms", "probes.json", "results.json", "report.html",
        "bundle", "tables", "log.txt", "suspects.csv",
    }  # fmt: skip


def test_results_have_the_documented_schema(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert (results["schema"], results["task"], results["labels"]) == (1, "moves", ["down", "up"])
    assert list(results["arms"]) == ARMS
    for arm in results["arms"].values():
        assert arm["accuracy"]["low"] <= arm["accuracy"]["value"] <= arm["accuracy"]["high"]
        assert set(arm["per_class"]) == {"down", "up"}
        assert arm["cost"]["joules"] is None or arm["cost"]["joules"] > 0
    assert {row["metric"] for row in results["comparisons"]} == {"accuracy", "macro_f1"}
    assert results["best"] in ARMS


def test_predictions_give_the_figures_again(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    for arm in ARMS:
        table = pq.read_table(finished / "predictions" / f"{arm}.parquet").to_pylist()
        assert len(table) == results["n"]["test"]
        right = [row["label"] == max(("down", "up"), key=lambda name: row[f"p:{name}"]) for row in table]
        assert sum(right) / len(right) == pytest.approx(results["arms"][arm]["accuracy"]["value"])


def test_bundle_is_the_best_arm_and_predicts_what_it_predicted(finished: Path) -> None:
    best = json.loads((finished / "results.json").read_text())["best"]
    splits = read_splits(finished / "data")
    probabilities = load_bundle(finished / "bundle").predict_proba(
        [splits.texts[i] for i in splits.rows("test")]
    )
    table = pq.read_table(finished / "predictions" / f"{best}.parquet").to_pylist()
    for row, (down, _) in zip(table, probabilities, strict=True):
        assert row["p:down"] == pytest.approx(down, abs=5e-3)


def test_second_run_does_nothing_again(recipe: Path, finished: Path) -> None:
    before = list_times(finished)
    result = call("run", recipe, "--out", finished)
    assert result.exit_code == 0
    assert list_times(finished) == before


def test_changed_head_redoes_heads_only(recipe: Path, finished: Path, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = list_times(out)
    assert call("run", recipe, "--out", out, "fit.head=ridge").exit_code == 0
    changed = {name for name, at in list_times(out).items() if before.get(name) != at}
    fits = {f"fit.{arm}.json" for arm in ARMS if arm not in ("majority", "end-to-end")}
    assert fits <= changed <= fits | {"fit.suspects.json", "compare.json", "report.json", "bundle.json"}


@pytest.mark.parametrize(
    "setting",
    ["finetune.epochs=2", "prepare.tune_fraction=0.4", "seeds=[1]", "embed.views.bert.max_length=24"],
)
def test_changed_setting_takes_the_place_of_the_old_one(
    recipe: Path, finished: Path, tmp_path: Path, setting: str
) -> None:
    """The folder ends with the figures of a run that had the setting from the start."""
    import shutil

    out = tmp_path / "run"
    shutil.copytree(finished, out)
    assert call("run", recipe, "--out", out, setting).exit_code == 0
    assert call("run", recipe, "--out", tmp_path / "fresh", setting).exit_code == 0
    assert read_figures(out) == read_figures(tmp_path / "fresh")
    assert read_figures(out) != read_figures(finished)


def test_from_stage_redoes_it_and_what_follows(recipe: Path, finished: Path, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = list_times(out)
    assert call("run", recipe, "--out", out, "--from", "compare", "--until", "compare").exit_code == 0
    assert {name for name, at in list_times(out).items() if before.get(name) != at} == {"compare.json"}
    assert read_figures(out) == read_figures(finished)


def test_stages_one_by_one_give_the_same_figures(recipe: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("run", recipe, "--out", out, "--until", "prepare").exit_code == 0
    for stage in ("embed", "finetune", "embed-tuned", "fit", "compare", "report", "bundle"):
        result = call(stage, out)
        assert result.exit_code == 0, result.output
    assert read_figures(out) == read_figures(finished)


def test_stage_without_its_predecessor_says_which(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("run", recipe, "--out", out, "--until", "prepare").exit_code == 0
    result = call("compare", out)
    assert result.exit_code == 2
    assert "has no finished 'fit' stage for these settings: run `embedtune fit" in result.output


def test_without_tuned_arms_nothing_is_fine_tuned(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = call("run", recipe, "--out", out, "compare.arms=[floor,frozen,frozen+]")
    assert result.exit_code == 0, result.output
    assert not (out / "adapters").exists()
    assert json.loads((out / "results.json").read_text())["verdict"].startswith("No verdict on fine-tuning")


def test_bundle_has_a_card_with_the_runs_figures(finished: Path) -> None:
    card = (finished / "bundle" / "README.md").read_text()
    results = json.loads((finished / "results.json").read_text())
    score = results["arms"][results["best"]]["macro_f1"]
    assert f"| macro-F1 | {score['value']:.3f} | {score['low']:.3f} to {score['high']:.3f} |" in card
    assert results["verdict"].split(":")[0] in card
    assert "fingerprint `" in card
    assert "licence: " in card or results["best"] == "floor"


def test_predict_labels_a_file(finished: Path, tmp_path: Path) -> None:
    rows = tmp_path / "new.csv"
    rows.write_text("id,text\n1,sales rose in the north\n2,\n3,profit fell at the mill\n", encoding="utf-8")
    output = tmp_path / "out.csv"
    result = call("predict", finished / "bundle", rows, "-o", output)
    assert result.exit_code == 0, result.output
    lines = output.read_text().splitlines()
    assert lines[0] == "id,text,prediction,p:down,p:up"
    assert [(line.split(",")[0], line.split(",")[2] in ("down", "up")) for line in lines[1:]] == [
        ("1", True),
        ("3", True),
    ]
    (rejected,) = (tmp_path / "out.csv.rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["row"] == 2
    assert call("predict", finished / "bundle", rows, "-o", output).exit_code == 2


def start(recipe: Path, out: Path, store: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "embedtune",
        "run",
        str(recipe),
        "--out",
        str(out),
        "-q",
        f"embed.store={store}",
    ]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_run_killed_at_random_moments_ends_with_the_same_figures(recipe: Path, tmp_path: Path) -> None:
    assert start(recipe, tmp_path / "whole", tmp_path / "store-whole").wait() == 0
    steps = len(list_times(tmp_path / "whole"))
    moments = random.Random(0)
    for share in (0.1, 0.4, 0.7):
        process = start(recipe, tmp_path / "killed", tmp_path / "store-killed")
        # By progress, not by the clock: beside other work a run may take several times as long.
        while process.poll() is None and len(list_times(tmp_path / "killed")) < share * steps:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(recipe, tmp_path / "killed", tmp_path / "store-killed").wait() == 0
    assert read_figures(tmp_path / "killed") == read_figures(tmp_path / "whole")
