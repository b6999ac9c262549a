"""Extraction and LoRA with a decoder of LLaMA-2-7B's shape on a CUDA device; the time doesn't see its random weights.

    embedtune bench gpu -o gpu.json

All contestants share one model in one process: two of them would not fit beside each other. On a machine without a CUDA
device only ``--smoke`` runs, a tiny shape on the CPU.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedtune.bench.contest import Times
from embedtune.bench.cpu import find_lowest_cosine
from embedtune.bench.lora import measure_lora
from embedtune.bench.machine import describe_machine
from embedtune.bench.suite import Options, Report, Row
from embedtune.bench.texts import draw_lengths
from embedtune.bench.work import count_extraction
from embedtune.embed.backbone import Backbone, Description
from embedtune.embed.batching import plan_batches
from embedtune.embed.encoder import BATCH_TOKENS
from embedtune.embed.forward import TorchRunner
from embedtune.embed.packed import PackedRunner, can_pack
from embedtune.embed.runner import Runner
from embedtune.embed.tokens import Tokens, pad_tokens
from embedtune.errors import ResourceError
from embedtune.progress import track

LLAMA_2_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
SMALL: dict[str, Any] = {
    **LLAMA_2_7B,
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
#: As the capstone reads LLaMA-2.
CAPSTONE_LENGTH = 128
N_TEXTS = 4096
#: Texts that the capstone's loop reads: one by one it takes long.
N_CAPSTONE = 256


def run(options: Options) -> Report:
    """Measure extraction, and LoRA fine-tuning where TRL is installed.

    Raises
    ------
    ResourceError
        If there is no CUDA device, except for a smoke run.
    """
    if not torch.cuda.is_available() and not options.smoke:
        raise ResourceError(
            "bench gpu needs a CUDA device, and torch sees none: run it on a machine with one, or give --smoke."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = describe_machine(device=device)
    shape = SMALL if options.smoke else LLAMA_2_7B
    rows, details = _measure_extraction(shape, machine, options, device=device)
    if importlib.util.find_spec("trl") is None:
        rows.append(Row("LoRA fine-tuning", "TRL's SFTTrainer", None, aim=2, note="trl isn't installed here"))
        return Report(rows, machine, {"extraction": details})
    if device == "cuda":
        torch.cuda.empty_cache()
    lora_rows, lora_details = measure_lora(shape, options, device=device)
    return Report([*rows, *lora_rows], machine, {"extraction": details, "lora": lora_details})


def _measure_extraction(
    shape: dict[str, Any], machine: dict[str, Any], options: Options, *, device: str
) -> tuple[list[Row], dict[str, Any]]:
    backbone = _build_backbone(shape, device)
    if not can_pack(backbone):
        raise ResourceError(
            "packed and padded reading differ on this device: set nothing, report it as a bug."
        )
    tokens = draw_tokens(24 if options.smoke else N_TEXTS, vocabulary=backbone.description.config.vocab_size)
    n_capstone = 4 if options.smoke else N_CAPSTONE
    few = Tokens(tokens.ids[:n_capstone], None)
    column = (backbone.n_layers, "mean")
    contestants: dict[str, Callable[[], NDArray[np.float32]]] = {
        "packed": lambda: _read(PackedRunner(backbone, [column]), tokens, device),
        "padded, by length": lambda: _read(TorchRunner(backbone, [column], max_length=512), tokens, device),
        "transformers": lambda: _read_plainly(backbone, tokens, batch_size=32),
        "capstone": lambda: _read_as_capstone(backbone, few),
    }
    found = _take_turns(contestants, rounds=1 if options.smoke else options.rounds, device=device)
    capstone = Times([seconds * len(tokens.ids) / n_capstone for seconds in found["capstone"].seconds])
    packed = found["packed"]
    cosine = find_lowest_cosine(packed.arrays["vectors"], found["padded, by length"].arrays["vectors"])
    note = f"lowest cosine between packed and padded {cosine:.5f}"
    what = "extraction, LLaMA-2-7B's shape, bfloat16"
    rate = 1e9 * machine["gflops"]["bfloat16" if device == "cuda" else "float32"]
    work = count_extraction(tokens.lengths, backbone.description.config)
    shares = [round(100 * work / seconds / rate, 1) for seconds in packed.seconds]
    rows = [
        Row.of(
            what,
            "the capstone's loop (batch 1, padded to 128)",
            capstone.over(packed),
            aim=30,
            note=f"the loop read {n_capstone} of {len(tokens.ids)} texts",
        ),
        Row.of(what, "transformers, batches of 32", found["transformers"].over(packed), aim=1.8, note=note),
        Row.of(what, "ours, padded, by length", found["padded, by length"].over(packed)),
        Row(
            "extraction's matrix products",
            "measured rate",
            float(np.median(shares)),
            min(shares),
            max(shares),
            unit="%",
            aim=60,
        ),
    ]
    details = {
        "shape": shape,
        "n_texts": len(tokens.ids),
        "tokens": int(tokens.lengths.sum()),
        "tflop": round(work / 1e12, 2),
        "times": {name: times.describe() for name, times in found.items()},
    }
    return rows, details


def draw_tokens(n_texts: int, *, vocabulary: int, seed: int = 0) -> Tokens:
    """Return random ids of texts whose lengths are distributed as PhraseBank's."""
    random = np.random.default_rng(seed)
    lengths = draw_lengths(n_texts, seed=seed)
    return Tokens([random.integers(3, vocabulary, size=length).tolist() for length in lengths], None)


def _build_backbone(shape: dict[str, Any], device: str) -> Backbone:
    """Make a model with random weights, on the device from the start."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(**shape, use_cache=False)
    precision = "bfloat16" if device == "cuda" else "float32"
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, precision))
    try:
        with torch.device(device):
            model: Any = LlamaModel(config)
    finally:
        torch.set_default_dtype(dtype)
    model.eval().requires_grad_(False)
    description = Description(
        model_id="random weights",
        source="",
        revision=None,
        weights_hash="",
        config_hash="",
        tokenizer_hash="",
        adapter=None,
        adapter_hash="",
        n_layers=config.num_hidden_layers,
        width=config.hidden_size,
        max_positions=config.max_position_embeddings,
        config=config,
        tokenizer=SimpleNamespace(pad_token_id=0, unk_token_id=0),
    )
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Backbone(description, model, model.layers, False, n_parameters, precision, device)


def _take_turns(
    contestants: dict[str, Callable[[], NDArray[np.float32]]], *, rounds: int, device: str
) -> dict[str, Times]:
    found = {name: Times() for name in contestants}
    with track("contest", len(contestants) * (rounds + 1), unit="runs") as bar:
        for turn in range(-1, rounds):
            for name, read in contestants.items():
                if device == "cuda":
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                started = time.perf_counter()
                vectors = read()
                seconds = time.perf_counter() - started
                if turn >= 0:
                    times = found[name]
                    times.seconds.append(seconds)
                    times.arrays["vectors"] = vectors
                    if device == "cuda":
                        times.peak_bytes = max(times.peak_bytes, torch.cuda.max_memory_allocated())
                bar.advance()
    return found


def _read(runner: Runner, tokens: Tokens, device: str) -> NDArray[np.float32]:
    vectors: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(tokens.ids)
    for rows, found in runner.run(tokens, plan_batches(tokens.lengths, max_tokens=BATCH_TOKENS[device])):
        (values,) = found.values()
        for row, vector in zip(rows, values, strict=True):
            vectors[row] = vector
    return np.stack(vectors)


@torch.inference_mode()
def _read_plainly(backbone: Backbone, tokens: Tokens, *, batch_size: int) -> NDArray[np.float32]:
    """Read in the texts' order, padded to the longest of each batch, as one writes it with transformers alone."""
    pooled = []
    for start in range(0, len(tokens.ids), batch_size):
        ids, mask = _pad(tokens, range(start, min(start + batch_size, len(tokens.ids))), backbone.device)
        hidden = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(hidden.dtype)
        pooled.append(((hidden * weights).sum(dim=1) / weights.sum(dim=1)).float().cpu())
    return torch.cat(pooled).numpy()


@torch.inference_mode()
def _read_as_capstone(backbone: Backbone, tokens: Tokens) -> NDArray[np.float32]:
    """Read one text at a time, padded, and bring every layer to the host."""
    pooled = []
    for row in range(len(tokens.ids)):
        ids, mask = _pad(tokens, [row], backbone.device, n_tokens=CAPSTONE_LENGTH)
        states = backbone.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        kept = [state.float().cpu() for state in states]
        pooled.append(torch.stack(kept[-5:], dim=1).mean(dim=2)[:, -1])
    return torch.cat(pooled).numpy()


def _pad(
    tokens: Tokens, rows: Sequence[int], device: str, *, n_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    cut = Tokens([tokens.ids[row][:n_tokens] for row in rows], None)
    batch = pad_tokens(cut, np.arange(len(rows)), pad_id=0, n_tokens=n_tokens)
    return torch.from_numpy(batch.ids).to(device), torch.from_numpy(batch.mask).to(device)
