"""The capstone recipe on rows in Sujet's layout, on tiny checkpoints, and what its faults do."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from embedtune import load_bundle
from embedtune.cli import app
from embedtune.data.splits import read_splits
from embedtune.recipe import RECIPES_DIR
from test_sujet import QUESTIONS, make_prompt

LABELS = ("bearish", "bullish", "negative", "neutral", "positive")
WORDS = {
    "bearish": "sell the slide", "bullish": "buy the rally", "negative": "loss widened",
    "neutral": "board meets", "positive": "profit rose",
}  # fmt: skip


def call(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def write_sujet(folder: Path) -> Path:
    """Write a table in the data set's layout: 40 sentences a label, strays, and 60 prompts of four questions."""
    rng = random.Random(0)
    names = [
        "Aspo",
        "Basware",
        "Cargotec",
        "Digia",
        "Elisa",
        "Fortum",
        "Glaston",
        "Huhtamaki",
        "Kemira",
        "Lemminen",
    ]
    rows = [
        {
            "task_type": "sentiment_analysis",
            "user_prompt": f"{rng.choice(names)} {i}: {WORDS[label]} in {rng.choice(names)}, {rng.randrange(900)}",
            "answer": label,
        }
        for i in range(40)
        for label in LABELS
    ]
    rows += [
        {"task_type": "sentiment_analysis", "user_prompt": f"stray {i}", "answer": "unknown"}
        for i in range(3)
    ]
    for i in range(60):
        up = i % 2 == 0
        headline = (
            f"gold {'climbs' if up else 'drops'} to {1100 + 7 * i} in {rng.choice(names)} market, trader {i}"
        )
        answers = ["yes" if up == (k % 2 == 0) else "no" for k in range(len(QUESTIONS))]
        rows.append(make_prompt([(headline, q, a) for q, a in zip(QUESTIONS, answers, strict=True)]))
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path, tiny_bert: Path, tiny_roberta: Path) -> list[str]:
    """Return the command's words: the shipped recipe, but for what takes CUDA, on tiny backbones and shortened."""
    settings = yaml.safe_load((RECIPES_DIR / "capstone.yaml").read_text(encoding="utf-8"))
    if not torch.cuda.is_available():
        (llama,) = settings["finetune"]["by_backbone"].values()
        llama |= {"quantization": "none", "optimizer": "adamw", "precision": "auto"}
    path = tmp_path / "capstone.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    write_sujet(tmp_path / "data" / "sujet_finance")
    return [
        str(path),
        f"backbones=[{tiny_llama}, {tiny_bert}, {tiny_roberta}]",
        *(f"embed.views.{name}.max_length=64" for name in ("llama", "bert", "roberta")),
        "finetune.max_length=64",
        f"embed.store={tmp_path / 'store'}",
        "fit.cooccurrence.hidden=[16, 8]",
        "fit.cooccurrence.epochs=[1, 3]",
        "fit.cooccurrence.sigma=[0.1, 0.5]",
        "compare.n_resamples=100",
    ]


@pytest.mark.slow
def test_capstone_runs_both_tasks_whole(
    tmp_path: Path,
    recipe: list[str],
    tiny_llama: Path,
    tiny_bert: Path,
    tiny_roberta: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBEDTUNE_DATA", str(tmp_path / "data"))
    out = tmp_path / "run"
    result = call("run", *recipe, "--out", out)
    assert result.exit_code == 0, result.output
    assert set(json.loads((out / "sentiment" / "data" / "audit.json").read_text())["refused_labels"]) == {
        "unknown"
    }
    for task, labels in (("sentiment", list(LABELS)), ("yes_no", ["no", "yes"])):
        folder = out / task
        results = json.loads((folder / "results.json").read_text())
        assert results["labels"] == labels
        assert list(results["arms"]) == ["majority", "floor", "frozen", "frozen+", "tuned"]
        assert {path.name for path in (folder / "adapters").iterdir()} == {
            model.name for model in (tiny_llama, tiny_bert, tiny_roberta)
        }
        facts = json.loads(
            (folder / "adapters" / tiny_llama.name / "tune-seed0" / "finetune.json").read_text()
        )
        assert [facts[name] for name in ("objective", "method", "lora_rank")] == ["instruction", "lora", 64]
        cells = read_table(folder / "tables" / "validation.csv")
        rates = {"0.001", "0.002" if task == "sentiment" else "0.0002", "0.0001"}
        for arm in ("frozen", "frozen+", "tuned"):
            own = [cell for cell in cells if cell["arm"] == arm]
            assert len(own) == 2 * 3 * 2
            assert {cell["learning_rate"] for cell in own} == rates
            (chosen,) = [cell for cell in own if cell["chosen"] == "True"]
            assert float(chosen["log_loss"]) == min(float(cell["log_loss"]) for cell in own)
            head = load_bundle(folder / "arms" / arm).head_
            assert [head.epochs_, head.learning_rate_, head.sigma_] == [
                float(chosen[name]) for name in ("epochs", "learning_rate", "sigma")
            ]
        test = {row["arm"]: row for row in read_table(folder / "tables" / "test.csv")}
        for arm, scores in results["arms"].items():
            assert float(test[arm]["macro_f1"]) == scores["macro_f1"]["value"]
            assert float(test[arm]["macro_f1_low"]) == scores["macro_f1"]["low"]
    splits = read_splits(out / "yes_no" / "data")
    headlines = [{splits.groups[i] for i in splits.rows(part)} for part in ("tune", "train", "test")]
    assert not (headlines[0] & headlines[1] or headlines[1] & headlines[2] or headlines[0] & headlines[2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device can do what is refused here")
def test_what_takes_cuda_is_refused_before_anything_long_starts(tmp_path: Path, tiny_llama: Path) -> None:
    write_sujet(tmp_path / "sujet")
    out = tmp_path / "run"
    words = [
        "run",
        "capstone",
        f"backbones=[{tiny_llama}]",
        "--data",
        tmp_path / "sujet",
        "--task",
        "sujet_sentiment",
    ]
    result = call(*words, "embed.views.llama.max_length=64", "--out", out)
    assert result.exit_code == 2
    assert "optimizer 'paged_adamw' moves its state between a CUDA device and the CPU" in result.stderr
    assert not (out / "data").exists()


def test_one_task_of_a_recipe_is_named_by_task(tmp_path: Path, recipe: list[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("EMBEDTUNE_DATA", str(tmp_path / "data"))
    out = tmp_path / "run"
    result = call("run", *recipe, "--task", "yes_no", "--until", "prepare", "--out", out)
    assert result.exit_code == 0, result.output
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["name"] == "capstone-yes_no"
    assert settings["tasks"]["yes_no"]["source"] == "sujet_yes_no"
    assert settings["prepare"]["max_rows"] == 35000
    assert settings["fit"]["cooccurrence"]["learning_rate"] == [0.001, 0.0001, 0.0002]
    assert len(read_splits(out / "data")) == 240


WORDS_OF_NO_MEANING = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu omicron pi rho sigma tau"
)


def write_noise(path: Path) -> Path:
    """Write texts whose labels are drawn by lot: what scores above a half on new rows is a fault."""
    rng = random.Random(1)
    names = WORDS_OF_NO_MEANING.split()
    rows = [f"{' '.join(rng.sample(names, 6))} {i},{rng.choice(['up', 'down'])}" for i in range(400)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_heads_trained_on_the_test_rows_score_high_on_noise_and_the_verdict_says_why(
    tmp_path: Path, tiny_bert: Path
) -> None:
    settings = [
        f"backbones=[{tiny_bert}]",
        f"embed.store={tmp_path / 'store'}",
        "compare.arms=[majority, frozen]",
        "embed.views.minilm.max_length=64",
        "embed.views.minilm.layers=last3",
        "prepare.near_duplicate=1",
        "fit.head=cooccurrence",
        "fit.cooccurrence.hidden=[64, 32]",
        "fit.cooccurrence.dropout=0",
        "fit.cooccurrence.validation_fraction=0",
        "fit.cooccurrence.sigma=0.3",
        "fit.cooccurrence.epochs=60",
        "fit.cooccurrence.learning_rate=0.01",
        "embed.views.lexical={kind: lexical, n_components: 32}",
        "embed.views.static={kind: lexical, n_components: 32}",
        "compare.probe_layers=false",
        "compare.n_resamples=100",
    ]
    found = {}
    for rows in ("own", "test"):
        out = tmp_path / rows
        result = call(
            "run",
            "--data",
            write_noise(tmp_path / "noise.csv"),
            "--out",
            out,
            *settings,
            f"fit.train_rows={rows}",
        )
        assert result.exit_code == 0, result.output
        found[rows] = json.loads((out / "results.json").read_text())
    assert found["own"]["arms"]["frozen"]["accuracy"]["value"] < 0.65
    assert found["test"]["arms"]["frozen"]["accuracy"]["value"] > 0.9
    assert found["test"]["verdict"].startswith("Not an answer: heads were trained on the test rows. ")
    assert not found["own"]["verdict"].startswith("Not an answer")


def test_choosing_on_the_test_rows_is_refused_for_heads_that_cross_validate(tmp_path: Path) -> None:
    result = call("run", "demo", "fit.choose_rows=test", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert (
        "fit.choose_rows is 'test', which head 'ridge' can't do: set fit.head to cooccurrence"
        in result.stderr
    )
