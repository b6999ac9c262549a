"""Memory that runs out: batches and steps are halved, or a line says what to set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedtune.cli.terminal import report_errors
from embedtune.embed.backbone import release_backbones
from embedtune.embed.encoder import TransformerEncoder
from embedtune.errors import ResourceError
from embedtune.finetune.model import PooledClassifier
from embedtune.finetune.train import fine_tune
from embedtune.memory import is_out_of_memory

TEXTS = [
    f"sales {move} in {place}" for move in ("rose", "fell") for place in ("may", "june", "the north", "1999")
]
LABELS = ["up"] * 4 + ["down"] * 4
BEYOND = 1 << 50


def tune(model: Path, folder: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "labels": ["up", *LABELS[1:]],
        "label_names": ["down", "up"],
        "output_dir": folder,
        "epochs": 2,
        "batch_size": 7,
        "max_length": 16,
        "learning_rate": 1e-3,
        "method": "full",
        "pooling": "last",
        "dropout": 0.0,
        "precision": "float32",
        "device": "cpu",
    }
    return fine_tune(model, TEXTS, **{**options, **changes})


def hold(monkeypatch: pytest.MonkeyPatch, most_texts: int) -> list[int]:
    """Have memory hold so many texts while training, and return the numbers that are tried."""
    pool, tried = PooledClassifier.pool, []

    def pool_few(self: PooledClassifier, input_ids: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        if self.training:
            tried.append(len(input_ids))
            if len(input_ids) > most_texts:
                torch.empty(BEYOND)  # raises what a machine without memory raises
        return pool(self, input_ids, *rest, **named)

    monkeypatch.setattr(PooledClassifier, "pool", pool_few)
    return tried


@pytest.mark.parametrize("ask", [lambda: torch.empty(BEYOND), lambda: np.empty(BEYOND)])
def test_want_of_memory_is_known_whichever_library_meets_it(ask: Any) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(ImportError("libopenvino.so.2641: failed to map segment from shared object"))
    assert not is_out_of_memory(ImportError("No module named 'openvino'"))
    assert not is_out_of_memory(RuntimeError("the sizes of the tensors must match"))


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_step_that_memory_does_not_hold_is_taken_in_parts_and_the_size_remembered(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_weight: str | None
) -> None:
    whole = tune(tiny_llama, tmp_path / "whole", class_weight=class_weight)
    tried = hold(monkeypatch, 3)
    parts = tune(tiny_llama, tmp_path / "parts", class_weight=class_weight)
    np.testing.assert_allclose(parts.head_weight, whole.head_weight, rtol=0, atol=1e-5)
    assert tried[0] == 7
    assert max(tried[1:]) == 3


@pytest.mark.parametrize(("most_texts", "changes"), [(0, {}), (3, {"objective": "contrastive"})])
def test_step_that_cannot_be_parted_is_told(
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most_texts: int,
    changes: dict[str, Any],
) -> None:
    hold(monkeypatch, most_texts)
    with pytest.raises(
        ResourceError, match=r"^a step of 7 texts does not fit into the memory of cpu: set finetune"
    ):
        tune(tiny_llama, tmp_path / "out", **changes)


def test_batch_that_this_machine_does_not_hold_is_halved(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_backbones()
    encoder = TransformerEncoder(tiny_bert, precision="float32", max_length=16, batch_tokens=64)
    expected = encoder.transform(TEXTS)
    from embedtune.embed import forward

    run = forward._run

    def run_few(backbone: Any, batch: Any, **settings: Any) -> Any:
        if len(batch.ids) > 2:
            torch.empty(BEYOND)
        return run(backbone, batch, **settings)

    monkeypatch.setattr(forward, "_run", run_few)
    np.testing.assert_allclose(encoder.transform(TEXTS), expected, rtol=0, atol=1e-5)
    release_backbones()


def test_command_tells_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    with pytest.raises(typer.Exit) as caught, report_errors(debug=False):
        np.empty(BEYOND)
    assert caught.value.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "error: memory ran out: close other programs, or set batch_tokens, finetune.batch_size"
    )
    assert said.count("\n") == 1
