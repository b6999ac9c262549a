"""Packed instruction tuning: questions end to end train what padded ones train."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from embedtune.config import FinetuneSettings
from embedtune.embed.packed_attention import use_packed_attention
from embedtune.finetune import sft
from embedtune.finetune.instruction import Question
from embedtune.finetune.lora import add_lora
from embedtune.finetune.packing import can_train_packed, compute_packed_loss, pack_questions
from embedtune.finetune.settings import Settings
from finetune_child import WORDS
from tiny_models import build_tiny_llama, build_tiny_qwen3

QUESTIONS = [
    Question([1, *range(5, 5 + length), 2], length - length // 3) for length in (3, 17, 8, 8, 30, 5, 12, 9)
]


def load(folder: Path) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = add_lora(model, model_id="tiny", rank=4, alpha=8, dropout=0.0, targets="all-linear")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # which start at zero
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def train(model: Any, folder: Path, *, packed: bool, **changes: Any) -> dict[str, torch.Tensor]:
    told = FinetuneSettings(
        objective="instruction",
        method="lora",
        batch_size=4,
        epochs=2,
        learning_rate=1e-2,
        dropout=0.0,
        max_length=64,
        **changes,
    ).model_dump(exclude={"precision"})
    settings = Settings(label_names=tuple(WORDS), pooling="mean", prefix="", seed=0, **told)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    output = folder.parent / f"packed-{packed}"
    sft.train_answers(
        model,
        QUESTIONS,
        tokenizer=tokenizer,
        settings=settings,
        folder=output / "checkpoints",
        logs_dir=output / "logs",
        device="cpu",
        precision="float32",
        description="train",
        packed=packed,
    )
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_packed_training_ends_with_the_padded_ones_weights(
    tmp_path: Path, gradient_checkpointing: bool
) -> None:
    model = load(build_tiny_llama(tmp_path / "llama", hidden=64))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    padded, packed = (
        train(
            copy.deepcopy(model),
            tmp_path / "llama",
            packed=packed,
            gradient_checkpointing=gradient_checkpointing,
        )
        for packed in (False, True)
    )
    moved = max(float((padded[name] - before[name]).abs().max()) for name in before)
    assert moved > 1e-2
    for name, expected in padded.items():
        torch.testing.assert_close(packed[name], expected, rtol=0, atol=1e-3 * moved, msg=name)


@pytest.mark.parametrize("build", [build_tiny_llama, build_tiny_qwen3])
def test_packed_loss_and_gradients_are_those_of_questions_read_alone(tmp_path: Path, build: Any) -> None:
    model = load(build(tmp_path / "model"))
    trained = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(())
    for question in QUESTIONS:
        ids = torch.tensor([question.ids])
        labels = ids.clone()
        labels[:, : question.n_prompt] = -100
        n_answer = len(question.ids) - question.n_prompt
        total = total + model(input_ids=ids, labels=labels).loss * n_answer
    expected = torch.autograd.grad(total, trained)
    with use_packed_attention(model.get_base_model()):
        loss = compute_packed_loss(model, pack_questions(QUESTIONS), n_answer_tokens=1)
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=0)
    for found, wanted in zip(torch.autograd.grad(loss, trained), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_models_that_packing_would_train_otherwise_are_padded(tmp_path: Path) -> None:
    folder = build_tiny_llama(tmp_path / "llama")
    model = load(folder)
    assert can_train_packed(model)
    config = transformers.MistralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
    )
    assert not can_train_packed(transformers.MistralForCausalLM(config))
    model.get_base_model().config.attention_dropout = 0.1
    assert not can_train_packed(model)
