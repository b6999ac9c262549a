"""Packed reading: texts end to end give what padded ones give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models
from embedtune.embed import packed_attention
from embedtune.embed.backbone import Backbone, load_backbone, release_backbones
from embedtune.embed.batching import plan_batches
from embedtune.embed.forward import TorchRunner
from embedtune.embed.packed import PackedRunner, can_pack
from embedtune.embed.runner import Runner
from embedtune.embed.tokens import Tokens, tokenize
from embedtune.errors import ResourceError
from encoder_cases import TEXTS

POOLINGS = ("mean", "weighted_mean", "cls", "last", "max")
MANY = [f"{text} {'rose ' * (number % 5)}" for number in range(7) for text in TEXTS]


def load(model: Path) -> Backbone:
    return load_backbone(model, precision="float32", device="cpu")


def read(runner: Runner, tokens: Tokens, *, max_tokens: int = 200) -> dict[tuple[int, str], np.ndarray]:
    found: dict[tuple[int, str], np.ndarray] = {}
    for rows, vectors in runner.run(tokens, plan_batches(tokens.lengths, max_tokens=max_tokens)):
        for column, values in vectors.items():
            found.setdefault(column, np.full((len(tokens.ids), values.shape[1]), np.nan))[rows] = values
    return found


@pytest.mark.parametrize("prefix", ["", "query: "])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "qwen3"])
def test_packed_equals_padded_in_every_layer_and_pooling(family: str, prefix: str, tmp_path: Path) -> None:
    backbone = load(getattr(tiny_models, f"build_tiny_{family}")(tmp_path / family))
    assert can_pack(backbone)
    columns = [(layer, pooling) for layer in range(backbone.n_layers + 1) for pooling in POOLINGS]
    tokens = tokenize(backbone.tokenizer, MANY, max_length=48, prefix=prefix)
    expected = read(TorchRunner(backbone, columns, max_length=48), tokens)
    found = read(PackedRunner(backbone, columns), tokens)
    for column in columns:
        np.testing.assert_allclose(found[column], expected[column], rtol=0, atol=2e-5, err_msg=str(column))


def test_packed_texts_do_not_see_each_other(tiny_llama: Path) -> None:
    backbone = load(tiny_llama)
    tokens = tokenize(backbone.tokenizer, MANY, max_length=48)
    together = read(PackedRunner(backbone, [(4, "mean")]), tokens, max_tokens=100_000)
    alone = read(PackedRunner(backbone, [(4, "mean")]), tokens, max_tokens=1)
    np.testing.assert_allclose(together[4, "mean"], alone[4, "mean"], rtol=0, atol=1e-5)


def test_attention_is_put_back(tiny_bert: Path) -> None:
    backbone = load(tiny_bert)
    before = backbone.model.config._attn_implementation
    tokens = tokenize(backbone.tokenizer, TEXTS, max_length=48)
    read(PackedRunner(backbone, [(1, "mean")]), tokens)
    assert backbone.model.config._attn_implementation == before


def test_local_attention_is_not_packed(tmp_path: Path) -> None:
    assert not can_pack(load(tiny_models.build_tiny_modernbert(tmp_path / "modernbert")))


def test_model_that_numbers_positions_in_its_own_way_is_not_packed(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_backbones()
    backbone = load(tiny_bert)
    embeddings = backbone.model.embeddings
    forward = embeddings.forward

    def shift(*args: object, position_ids: torch.Tensor | None = None, **settings: object) -> torch.Tensor:
        numbers = None if position_ids is None else position_ids + 3
        return forward(*args, position_ids=numbers, **settings)

    monkeypatch.setattr(embeddings, "forward", shift)
    assert not can_pack(backbone)
    release_backbones()


def test_layers_above_the_highest_are_not_run(tiny_llama: Path) -> None:
    backbone = load(tiny_llama)
    tokens = tokenize(backbone.tokenizer, TEXTS, max_length=48)
    runner = PackedRunner(backbone, [(2, "mean")])
    ran: list[int] = []
    assert backbone.stack is not None
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(backbone.stack)
    ]
    read(runner, tokens, max_tokens=10_000)
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]


def test_batch_that_memory_does_not_hold_is_halved_and_the_size_remembered(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_backbones()
    backbone = load(tiny_bert)
    tokens = tokenize(backbone.tokenizer, MANY, max_length=48)
    expected = read(PackedRunner(backbone, [(3, "mean")]), tokens)
    tried: list[int] = []
    run = PackedRunner._run

    def run_small(
        self: PackedRunner, tokens: Tokens, rows: np.ndarray
    ) -> dict[tuple[int, str], torch.Tensor]:
        tried.append(sum(len(tokens.ids[row]) for row in rows))
        if tried[-1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, tokens, rows)

    monkeypatch.setattr(PackedRunner, "_run", run_small)
    found = read(PackedRunner(backbone, [(3, "mean")]), tokens)
    np.testing.assert_allclose(found[3, "mean"], expected[3, "mean"], rtol=0, atol=1e-5)
    assert sum(size > 100 for size in tried) == 1
    monkeypatch.setattr(
        PackedRunner,
        "_run",
        lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
    )
    with pytest.raises(ResourceError, match="does not fit into the memory of cpu"):
        read(PackedRunner(backbone, [(3, "mean")]), tokens)
    release_backbones()


def test_grouped_heads_are_widened() -> None:
    key = torch.arange(2 * 2 * 3.0).reshape(2, 2, 3)
    widened = packed_attention._widen(key, torch.zeros(2, 6, 3))
    torch.testing.assert_close(widened[:, :3], key[:, :1].expand(2, 3, 3))
    torch.testing.assert_close(widened[:, 3:], key[:, 1:].expand(2, 3, 3))
