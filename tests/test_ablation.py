"""The llmembed recipe and its ablation, with tiny checkpoints in place of the big ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from embedtune import load_bundle
from embedtune.cli import app
from embedtune.recipe import read_recipe
from run_cases import write_rows


def call(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def tiny_settings(tiny_llama: Path, tiny_bert: Path, tiny_roberta: Path, tmp_path: Path) -> list[str]:
    views = {"llama": tiny_llama, "bert": tiny_bert, "roberta": tiny_roberta}
    models = [f"embed.views.{name}.model={folder}" for name, folder in views.items()]
    lengths = [f"embed.views.{name}.max_length=64" for name in views]
    head = [
        "fit.cooccurrence.epochs=4",
        "fit.cooccurrence.hidden=[16, 8]",
        "fit.cooccurrence.learning_rate=0.01",
    ]
    return [*models, *lengths, *head, f"embed.store={tmp_path / 'store'}", "compare.n_resamples=100"]


@pytest.mark.parametrize("compat", ["corrected", "published"])
def test_llmembed_runs_whole(tmp_path: Path, tiny_settings: list[str], compat: str) -> None:
    rows, out = write_rows(tmp_path / "moves.csv"), tmp_path / "run"
    result = call("run", "llmembed", "--data", rows, "--out", out, f"compat={compat}", *tiny_settings)
    assert result.exit_code == 0, result.output
    head = load_bundle(out / "arms" / "frozen+").head_
    assert head.shape_ == (5, 32, 2, 32)
    assert head.softmax_output == (compat == "published")
    assert head.weights_["fc1.weight"].shape[1] == 49 + 32 + (0 if compat == "published" else 64)


def test_ablate_runs_every_quirk_and_draws_the_table(tmp_path: Path, tiny_settings: list[str]) -> None:
    rows, out = write_rows(tmp_path / "moves.csv"), tmp_path / "ablation"
    result = call("ablate", "llmembed", "--data", rows, "--out", out, *tiny_settings)
    assert result.exit_code == 0, result.output
    quirks = set(read_recipe("llmembed").quirks)
    assert "length_by_split: makes no difference here" in result.stderr
    figures = json.loads((out / "ablation.json").read_text())
    assert set(figures["variants"]) == {"corrected", "published", *quirks} - {"length_by_split"}
    assert {row["b"] for row in figures["comparisons"]} == {"corrected"}
    for name in figures["variants"]:
        assert name in result.stdout
        found = json.loads((out / name / "results.json").read_text())["arms"]["frozen+"]["macro_f1"]["value"]
        assert found == pytest.approx(figures["variants"][name]["macro_f1"]["value"])


def test_ablate_runs_variants_of_the_users_own(tmp_path: Path, tiny_settings: list[str]) -> None:
    rows, out = write_rows(tmp_path / "moves.csv"), tmp_path / "ablation"
    own = ["--variant", "ridge: fit.head=ridge", "--variant", "short: embed.views.llama.max_length=8"]
    result = call("ablate", "llmembed", "--data", rows, "--out", out, *own, *tiny_settings)
    assert result.exit_code == 0, result.output
    figures = json.loads((out / "ablation.json").read_text())
    assert {"ridge", "short"} < set(figures["variants"])
    assert "fit.head=ridge" in result.stdout
    assert type(load_bundle(out / "ridge" / "arms" / "frozen+").head_).__name__ == "RidgeHead"


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("ridge", "variant 'ridge' isn't written as NAME: KEY=VALUE …, for example 'stack: fit.head=stack'."),
        ("published: a=1", "variant 'published' is there already: give yours another name."),
    ],
)
def test_ablate_refuses_a_variant_it_cannot_read(tmp_path: Path, variant: str, message: str) -> None:
    result = call("ablate", "llmembed", "--out", tmp_path / "a", "--variant", variant)
    assert result.exit_code == 2
    assert message in result.stderr


def test_quirk_of_one_task_reads_its_test_rows_at_another_length(
    tmp_path: Path, tiny_settings: list[str]
) -> None:
    rows = write_rows(tmp_path / "mr.csv")
    results = {}
    for length in (6, 64):
        out = tmp_path / str(length)
        settings = [
            *tiny_settings,
            "embed.views.llama.pooling=mean_padded",
            f"embed.views.llama.test_max_length={length}",
        ]
        assert call("run", "llmembed", "--data", rows, "--out", out, *settings).exit_code == 0
        results[length] = (out / "predictions" / "frozen+.parquet").read_bytes()
    assert results[6] != results[64]


def test_ablate_refuses_a_recipe_without_quirks_and_an_arm_that_is_not_run(tmp_path: Path) -> None:
    result = call("ablate", "demo", "--out", tmp_path / "a")
    assert result.exit_code == 2
    assert "recipe demo has no quirks to switch on: give variants of yours with --variant." in result.stderr
    result = call("ablate", "llmembed", "--arm", "tuned", "--out", tmp_path / "a")
    assert result.exit_code == 2
    assert "arm 'tuned' isn't run by llmembed: give --arm majority or floor or frozen+." in result.stderr
