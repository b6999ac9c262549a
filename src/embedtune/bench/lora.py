"""LoRA fine-tuning of a decoder on answers, ours beside TRL's SFTTrainer: the second half of `embedtune bench gpu`.

Both train one model in turns, at the settings that the recipe ``capstone`` has for LLaMA-2.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from embedtune.bench.contest import Times
from embedtune.bench.suite import Options, Row
from embedtune.bench.texts import draw_lengths
from embedtune.embed.backbone import describe_backbone
from embedtune.embed.quantization import import_peft
from embedtune.embed.quiet import hush_libraries
from embedtune.finetune.instruction import Question
from embedtune.finetune.model import load_for_training, put_lora
from embedtune.finetune.settings import Settings
from embedtune.finetune.train import fine_tune
from embedtune.progress import track
from embedtune.recipe import read_recipe

MODEL = "meta-llama/Llama-2-7b-chat-hf"
#: Tokens of the instruction and its options around a text, and of an answer with the end of text.
N_ASKED, N_ANSWER = 64, 3
N_STEPS = 64


class _Job(NamedTuple):
    """What both train."""

    model: Any
    questions: list[Question]
    tokenizer: Any
    settings: Settings
    precision: str
    device: str


def measure_lora(shape: dict[str, Any], options: Options, *, device: str) -> tuple[list[Row], dict[str, Any]]:
    """Return the ratio's row and what else is worth keeping.

    Where bitsandbytes is missing, and on a CPU, the frozen weights are not quantized, for both.
    """
    settings, precision = _read_settings(device)
    n_steps = 2 if options.smoke else N_STEPS
    questions = _draw_questions(n_steps * settings.batch_size, vocabulary=shape["vocab_size"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "decoder"
        _write_decoder(shape, folder, device=device)
        description = describe_backbone(folder)
        model, _ = load_for_training(
            description,
            settings,
            dtype=getattr(torch, precision),
            device=device,
            trust_remote_code=False,
            causal=True,
        )
        model = put_lora(model, description, settings).to(device)
        job = _Job(model, questions, description.tokenizer, settings, precision, device)
        contestants: dict[str, Callable[[int], float]] = {
            "embedtune": lambda turn: _train(job, Path(temporary) / f"ours-{turn}"),
            "SFTTrainer": lambda turn: _train_with_trl(job, Path(temporary) / f"trl-{turn}"),
        }
        rounds = 1 if options.smoke else options.rounds
        found = {name: Times() for name in contestants}
        with track("LoRA", len(contestants) * (rounds + 1), unit="runs") as bar:
            for turn in range(-1, rounds):
                for name, train in contestants.items():
                    if device == "cuda":
                        torch.cuda.synchronize()
                        torch.cuda.reset_peak_memory_stats()
                    seconds = train(turn)
                    if turn >= 0:
                        found[name].seconds.append(seconds)
                        if device == "cuda":
                            peak = torch.cuda.max_memory_allocated()
                            found[name].peak_bytes = max(found[name].peak_bytes, peak)
                    bar.advance()
    n_tokens = sum(len(question.ids) for question in questions)
    rate = n_tokens / found["embedtune"].median
    note = f"{rate:.0f} tokens of text per second, {settings.quantization} weights, {precision}"
    row = Row.of(
        "LoRA fine-tuning at the capstone's settings",
        "TRL's SFTTrainer",
        found["SFTTrainer"].over(found["embedtune"]),
        aim=2,
        note=note,
    )
    details = {
        "settings": settings.as_dict(),
        "n_questions": len(questions),
        "tokens": n_tokens,
        "times": {name: times.describe() for name, times in found.items()},
    }
    return [row], details


def _read_settings(device: str) -> tuple[Settings, str]:
    told = read_recipe("capstone").settings["finetune"]["by_backbone"][MODEL]
    precision = told["precision"] if device == "cuda" else "float32"
    defaults = {name: one.default for name, one in inspect.signature(fine_tune).parameters.items()}
    known = {"label_names": ("no", "yes"), "head_learning_rate": told["learning_rate"]}
    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: (defaults | told | known)[name] for name in names})
    if device != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        settings = dataclasses.replace(settings, quantization="none", optimizer="adamw")
    return settings, precision


def _draw_questions(n: int, *, vocabulary: int) -> list[Question]:
    random = np.random.default_rng(0)
    lengths = draw_lengths(n, seed=0) + N_ASKED
    return [
        Question(random.integers(3, vocabulary, size=length + N_ANSWER).tolist(), int(length))
        for length in lengths
    ]


def _write_decoder(shape: dict[str, Any], folder: Path, *, device: str) -> None:
    """Write a decoder with random weights, and a tokenizer that nothing is tokenized with."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    finally:
        torch.set_default_dtype(dtype)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)


def _train(job: _Job, folder: Path) -> float:
    import_peft()  # before trl does, whose import would warn
    from embedtune.finetune.sft import train_answers

    return train_answers(
        job.model,
        job.questions,
        tokenizer=job.tokenizer,
        settings=job.settings,
        folder=folder / "checkpoints",
        logs_dir=folder / "logs",
        device=job.device,
        precision=job.precision,
        description="embedtune",
        packed=None if job.device == "cuda" else True,
    )


def _train_with_trl(job: _Job, folder: Path) -> float:
    """Train as one writes it with TRL alone: padded batches, grouped by length as the capstone asks."""
    import datasets
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = {
        "input_ids": [question.ids for question in job.questions],
        "completion_mask": [
            [0] * question.n_prompt + [1] * (len(question.ids) - question.n_prompt)
            for question in job.questions
        ],
        "length": [len(question.ids) for question in job.questions],
    }
    with hush_libraries():
        arguments = SFTConfig(
            output_dir=str(folder),
            num_train_epochs=job.settings.epochs,
            per_device_train_batch_size=job.settings.batch_size,
            learning_rate=job.settings.learning_rate,
            lr_scheduler_type=job.settings.scheduler,
            weight_decay=job.settings.weight_decay,
            max_grad_norm=job.settings.max_grad_norm,
            optim="paged_adamw_32bit" if job.settings.optimizer == "paged_adamw" else "adamw_torch_fused",
            train_sampling_strategy="group_by_length",
            gradient_checkpointing=job.settings.gradient_checkpointing,
            bf16=job.precision == "bfloat16",
            fp16=job.precision == "float16",
            max_length=None,
            completion_only_loss=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=job.device == "cpu",
        )
        trainer = SFTTrainer(
            job.model,
            arguments,
            train_dataset=datasets.Dataset.from_dict(rows),
            processing_class=job.tokenizer,
        )
        for parameter in job.model.parameters():
            if parameter.requires_grad:  # as ours keeps them
                parameter.data = parameter.data.float()
        started = time.perf_counter()
        trainer.train()
        if job.device == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - started
