"""The recipe `finance`, whole, with tiny checkpoints of its three architectures in the place of its models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml

from embedtune import load_bundle
from embedtune.classifier import TOGETHER
from embedtune.config import build_experiment
from embedtune.data.splits import read_splits
from embedtune.embed.crossfitted import CrossFittedEncoder
from embedtune.recipe import read_recipe
from encoder_cases import TEXTS, encode
from test_run import call, list_times
from tiny_models import build_tiny_bert, build_tiny_modernbert, build_tiny_qwen3

ARMS = ["majority", "floor", "frozen", "frozen+", "tuned", "tuned+", "end-to-end"]
TRANSFORMERS = ("qwen", "modernbert", "bge")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "qwen": build_tiny_qwen3(folder / "qwen"),
        "modernbert": build_tiny_modernbert(folder / "modernbert"),
        "bge": build_tiny_bert(folder / "bge", n_layers=5),
    }


@pytest.fixture(scope="module")
def settings(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the recipe's settings with tiny models, few rows and one epoch; everything else as shipped."""
    shipped = read_recipe("finance").settings
    names = {shipped["embed"]["views"][view]["model"]: str(models[view]) for view in TRANSFORMERS}
    by_backbone = {
        names[name]: {**own, "epochs": 1} for name, own in shipped["finetune"]["by_backbone"].items()
    }
    return [
        *(f"embed.views.{view}.model={models[view]}" for view in TRANSFORMERS),
        *(f"embed.views.{view}.max_length=96" for view in TRANSFORMERS),
        f"embed.store={tmp_path_factory.mktemp('store')}",
        f"finetune.by_backbone={yaml.safe_dump(by_backbone, default_flow_style=True, width=10**6).strip()}",
        "finetune.epochs=1",
        "finetune.n_folds=2",
        "prepare.max_rows=150",
        "compare.n_resamples=100",
        "seeds=[0]",
    ]


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finance"
    result = call("run", "finance", "--out", out, *settings)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.slow
def test_both_tasks_end_with_every_arm_and_a_verdict(finished: Path) -> None:
    for task in ("sentiment", "yes_no"):
        results = json.loads((finished / task / "results.json").read_text())
        assert list(results["arms"]) == ARMS
        assert list(results["automatic_layers"]) == list(TRANSFORMERS)
        assert {row["a"] for row in results["comparisons"]} == {"tuned", "tuned+", "end-to-end", "frozen+"}
        assert not results["verdict"].startswith("No verdict")
    assert (finished / "report.html").exists()


@pytest.mark.slow
def test_stack_reads_each_view_as_one_and_a_backbone_by_its_last_layer_and_by_all(finished: Path) -> None:
    results = json.loads((finished / "sentiment" / "results.json").read_text())
    seen = {step["view"]: step["taken"] for step in results["arms"]["tuned+"]["views"]}
    assert seen.pop(TOGETHER) in (True, False)
    assert {view.partition(", ")[0] for view in seen} == {*TRANSFORMERS, "static", "lexical"}
    assert len(seen) == 3 * 3 + 1 + 2  # of a backbone the last layer, all read, and its own heads
    classifier = load_bundle(finished / "sentiment" / "arms" / "tuned+")
    taken = {view.partition(", ")[0] for view, is_taken in seen.items() if is_taken}
    assert {name for name, _ in classifier.views_} == taken
    for name, encoder in classifier.views_:
        if name in TRANSFORMERS:
            assert isinstance(encoder, CrossFittedEncoder)
            assert encoder.layers_[0] == max(encoder.layers_)
            assert encoder.heads is not None


@pytest.mark.slow
def test_tuned_plus_bundle_predicts_what_the_run_predicted(finished: Path) -> None:
    import pyarrow.parquet as pq

    folder = finished / "yes_no"
    splits = read_splits(folder / "data")
    found = load_bundle(folder / "arms" / "tuned+").predict_proba(
        [splits.texts[i] for i in splits.rows("test")]
    )
    table = pq.read_table(folder / "predictions" / "tuned+.parquet")
    np.testing.assert_allclose(found[:, 0], table[f"p:{splits.label_names[0]}"].to_numpy(), atol=1e-2)


@pytest.mark.slow
def test_decoder_is_tuned_with_adapters_and_the_small_ones_whole(
    finished: Path, models: dict[str, Path]
) -> None:
    for view, file in (("qwen", "adapter_model.safetensors"), ("modernbert", "model.safetensors")):
        folders = list((finished / "sentiment" / "adapters" / models[view].name).iterdir())
        assert sorted(folder.name for folder in folders) == [
            "tune+train-fold0-seed0",
            "tune+train-fold1-seed0",
            "tune+train-seed0",
            "tune-seed0",
        ]
        assert all((folder / file).exists() for folder in folders)


@pytest.mark.slow
def test_second_call_trains_and_reads_nothing(settings: list[str], finished: Path) -> None:
    before = list_times(finished / "sentiment")
    assert call("run", "finance", "--out", finished, *settings).exit_code == 0
    assert list_times(finished / "sentiment") == before


def test_recipe_pools_each_model_as_its_card_says() -> None:
    views = build_experiment(read_recipe("finance").resolve(), where="finance").embed.views
    said: dict[str, Any] = {
        view.model: (view.pooling, view.prefix) for view in views.values() if view.kind == "transformer"
    }
    assert said == {
        "Qwen/Qwen3-Embedding-0.6B": ("last", "Instruct: Classify the financial text\nQuery:"),
        "answerdotai/ModernBERT-base": ("mean", ""),
        "BAAI/bge-small-en-v1.5": ("cls", ""),
    }


@pytest.mark.parametrize(("view", "pooling"), [("qwen", "last"), ("modernbert", "mean")])
def test_every_layer_equals_a_plain_loop(models: dict[str, Path], view: str, pooling: str) -> None:
    found = encode(models[view], layers="all", pooling=pooling, max_length=64).reshape(len(TEXTS), 7, 32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(models[view])
    model = transformers.AutoModel.from_pretrained(models[view]).eval()
    for row, text in zip(found, TEXTS, strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
        with torch.inference_mode():
            hidden = model(**inputs, output_hidden_states=True).hidden_states
        for layer in range(7):
            expected = hidden[layer][0, -1] if pooling == "last" else hidden[layer][0].mean(dim=0)
            np.testing.assert_allclose(row[layer], expected.numpy(), rtol=0, atol=1e-4)
