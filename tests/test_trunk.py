"""The trunk: training on kept states of the frozen layers is training through them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny_models
from embedtune.finetune import trunk
from embedtune.finetune.train import fine_tune

TEXTS = [f"{text} {number}" for number in range(6) for text in tiny_models.CORPUS]
LABELS = ["up" if number % 3 else "down" for number in range(len(TEXTS))]
SETTINGS: dict[str, Any] = {
    "label_names": ("up", "down"),
    "method": "upper",
    "epochs": 2,
    "batch_size": 8,
    "max_length": 32,
    "device": "cpu",
    "precision": "float32",
}


@pytest.fixture(autouse=True)
def no_trunks() -> None:
    trunk.release_trunks()


def tune(model: Path, folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    fine_tune(model, TEXTS, labels=LABELS, output_dir=folder, **{**SETTINGS, **settings})
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "qwen3", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_training_on_the_trunk_is_training_through_it(
    family: str, pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = getattr(tiny_models, f"build_tiny_{family}")(tmp_path / family)
    settings = {"n_upper_layers": 2, "pooling": pooling, "dropout": 0.0}
    found = tune(model, tmp_path / "trunk", **settings)
    monkeypatch.setattr(trunk, "MOST_BYTES", 0)
    expected = tune(model, tmp_path / "through", **settings)
    before = load_file(model / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=2e-5)
    assert any(not torch.equal(values, before[name]) for name, values in found.items() if name in before), (
        "nothing was trained"
    )


def test_trunk_is_read_once_for_all_seeds_and_settings(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = trunk._read

    def record(*args: Any, **settings: Any) -> trunk.Trunk:
        reads.append(settings["n_lower"])
        return read(*args, **settings)

    monkeypatch.setattr(trunk, "_read", record)
    for number, settings in enumerate(
        [{"seed": 0}, {"seed": 1}, {"learning_rate": 1e-3}, {"n_upper_layers": 1}, {"seed": 2}]
    ):
        tune(tiny_bert, tmp_path / str(number), **{"n_upper_layers": 2, **settings})
    assert reads == [1, 2]


def test_trunk_lacks_padding_and_pads_with_zeros() -> None:
    states = torch.arange(10.0).reshape(5, 2)
    kept = trunk.Trunk(states, np.array([0, 2, 5]))
    padded = kept.pad([1, 0], n_tokens=4)
    assert padded.shape == (2, 4, 2)
    torch.testing.assert_close(padded[0, :3], states[2:5])
    torch.testing.assert_close(padded[1, :2], states[:2])
    assert not padded[0, 3].any()
    assert not padded[1, 2:].any()


def test_seconds_of_the_trunk_are_told_once(tiny_bert: Path, tmp_path: Path) -> None:
    told = []
    for seed in (0, 1):
        tune(tiny_bert, tmp_path / str(seed), seed=seed)
        told.append(json.loads((tmp_path / str(seed) / "finetune.json").read_text()))
    assert told[0]["trunk_seconds"] > told[1]["trunk_seconds"]
    assert told[0]["seconds"] > told[0]["trunk_seconds"]


def test_padding_that_is_read_is_run_anew(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk, "_read", lambda *args, **settings: pytest.fail("a trunk has no padding"))
    tune(tiny_bert, tmp_path / "padded", n_upper_layers=1, pooling="mean_padded")
