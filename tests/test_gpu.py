"""A decoder of LLaMA-2-7B's shape read and trained on one GPU, measured; a tiny one takes the same way on a CPU.

Weights are random: what is measured is memory and time, and that every part works at this size. Set
EMBEDTUNE_GPU_JSON to a path to keep the figures.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers

from embedtune.config import build_experiment
from embedtune.embed import backbone
from embedtune.embed.encoder import TransformerEncoder
from embedtune.finetune.train import fine_tune
from embedtune.recipe import read_recipe
from finetune_child import WORDS, make_rows
from test_decoders import cosines, quantized


class Shape(NamedTuple):
    hidden: int
    n_layers: int
    intermediate: int
    n_heads: int
    vocabulary: int


class Scale(NamedTuple):
    """How much is done on which device."""

    shape: Shape
    device: str
    n_texts: int
    n_steps: int


TINY = Scale(Shape(64, 6, 128, 4, 512), "cpu", 30, 3)
SEVEN_BILLION = Scale(Shape(4096, 32, 11008, 32, 32000), "cuda", 3000, 20)

SCALES = [
    pytest.param(TINY, id="tiny-on-cpu"),
    pytest.param(
        SEVEN_BILLION,
        id="7B-on-cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available(),
                reason="needs a CUDA device of 24 GB or more, and 14 GB of disk",
            ),
        ],
    ),
]

Report = Callable[[str, Any], None]


@pytest.fixture
def report(record_property: Report, request: pytest.FixtureRequest) -> Any:
    """Record figures with the test, and in the JSON file that EMBEDTUNE_GPU_JSON names."""
    figures: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        figures[name] = value
        record_property(name, value)

    yield add
    if named := os.environ.get("EMBEDTUNE_GPU_JSON"):
        path = Path(named)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        kept[request.node.callspec.id] = {"device": device, "torch": torch.__version__, **figures}
        path.write_text(json.dumps(kept, indent=1, sort_keys=True), encoding="utf-8")


def build_random_llama(shape: Shape, folder: Path, *, tokenizer_dir: Path, device: str) -> Path:
    """Write a random LLaMA in bfloat16, made on the device, with the tiny LLaMA's tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.n_layers,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.n_heads,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for path in tokenizer_dir.glob("*token*.json"):
        shutil.copy(path, folder)
    return folder


def forget(device: str) -> None:
    """Let go of loaded backbones and start to measure memory anew."""
    backbone._loaded.clear()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def read_peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


@quantized
@pytest.mark.parametrize("scale", SCALES)
def test_llama_is_read_and_trained_in_four_bits(
    scale: Scale, tiny_llama: Path, tmp_path: Path, report: Report
) -> None:
    device = scale.device
    folder = build_random_llama(scale.shape, tmp_path / "llama", tokenizer_dir=tiny_llama, device=device)
    texts = make_rows(scale.n_texts)[0]
    forget(device)

    def read(precision: str, **settings: Any) -> np.ndarray:
        encoder = TransformerEncoder(folder, layers="last5", precision=precision, device=device, **settings)
        encoder.transform(texts[:1])  # loads it
        found = encoder.transform(texts)
        report(f"{precision}_texts_per_second", len(texts) / encoder.last_seconds_)
        return found

    vectors, peaks = {}, {}
    for precision in ("bfloat16", "nf4"):
        vectors[precision] = read(precision)
        peaks[precision] = read_peak(device)
        report(f"{precision}_peak_bytes", peaks[precision])
        forget(device)
        assert vectors[precision].shape == (scale.n_texts, 5 * scale.shape.hidden)
        assert np.isfinite(vectors[precision]).all()
    assert cosines(vectors["bfloat16"], vectors["nf4"]).min() > 0.8
    assert not np.array_equal(vectors["bfloat16"], vectors["nf4"])

    recipe = build_experiment(read_recipe("capstone").resolve(), where="recipe capstone")
    settings = recipe.finetune.of("meta-llama/Llama-2-7b-chat-hf").model_dump(exclude_none=True)
    rows, labels = make_rows(scale.n_steps * settings["batch_size"])
    on_cpu = {"optimizer": "adamw", "precision": "float32"} if device == "cpu" else {}
    started = time.perf_counter()
    tuned = fine_tune(
        folder,
        rows,
        labels=labels,
        label_names=list(WORDS),
        output_dir=tmp_path / "adapter",
        device=device,
        **{**settings, **on_cpu},
    )
    report("qlora_seconds_with_loading", time.perf_counter() - started)
    report("qlora_rows_per_second", len(rows) / tuned.seconds)
    report("qlora_trained_parameters", tuned.n_trained_parameters)
    peaks["qlora"] = read_peak(device)
    report("qlora_peak_bytes", peaks["qlora"])
    forget(device)

    adapted = read("nf4", adapter=tuned.path)
    assert np.isfinite(adapted).all()
    assert np.abs(adapted - vectors["nf4"]).max() > 0
    if device == "cuda":
        weights = 2 * tuned.n_parameters
        assert peaks["bfloat16"] > weights * 0.95
        assert peaks["nf4"] < 0.6 * peaks["bfloat16"]
        assert peaks["qlora"] < 16e9
    forget(device)
