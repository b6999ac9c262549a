"""Supervised fine-tuning on answers: TRL's SFTTrainer with our batches, our checkpoints and nobody printing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from torch.utils.data import DataLoader
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from embedtune.embed.packed_attention import use_packed_attention
from embedtune.embed.quiet import hush_libraries
from embedtune.embed.tokens import pick_pad_id
from embedtune.finetune import checkpoints
from embedtune.finetune.group import find_group
from embedtune.finetune.instruction import Question
from embedtune.finetune.loop import (
    Steering,
    go_on,
    list_trained,
    load_batches,
    load_trained,
    make_arguments,
    make_logger,
    save_trained,
)
from embedtune.finetune.packing import can_train_packed, compute_packed_loss, get_decoder, pack_questions
from embedtune.finetune.rows import EpochBatches
from embedtune.finetune.settings import Settings
from embedtune.progress import track


def train_answers(
    model: Any,
    questions: Sequence[Question],
    *,
    tokenizer: Any,
    settings: Settings,
    folder: Path,
    logs_dir: Path,
    device: str,
    precision: str,
    description: str,
    packed: bool | None = None,
    callbacks: Sequence[transformers.TrainerCallback] = (),
) -> float:
    """Train in place, going on from the last complete checkpoint in `folder`; the loss is on the answers alone.

    Parameters
    ----------
    packed : bool, optional
        Lay a step's questions end to end instead of padding them: the same loss to rounding. By default on CUDA,
        where the model allows it.

    Returns
    -------
    float
        Seconds, those of interrupted calls included.
    """
    lengths = np.array([len(question.ids) for question in questions], dtype=np.int64)
    sampler = EpochBatches(lengths, batch_size=settings.batch_size, seed=settings.seed)
    n_steps = len(sampler) * settings.epochs
    if packed is None:
        packed = device.startswith("cuda") and can_train_packed(model)
    attention = use_packed_attention(get_decoder(model)) if packed else contextlib.nullcontext()
    with hush_libraries(), _hush_datasets(), attention:
        arguments = make_arguments(
            settings,
            folder,
            n_steps=n_steps,
            device=device,
            precision=precision,
            kind=SFTConfig,
            optim="paged_adamw_32bit" if settings.optimizer == "paged_adamw" else "adamw_torch_fused",
            max_length=None,
            completion_only_loss=True,
            gradient_checkpointing=settings.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
        last = find_group().ask_leader(lambda: checkpoints.find_last(folder))
        with track(description, n_steps, unit="steps") as bar:
            steering = Steering(sampler, folder, settings, evaluates=False, bar=bar, last=last)
            trainer = AnswerTrainer(
                model,
                arguments,
                questions=questions,
                tokenizer=tokenizer,
                sampler=sampler,
                packed=packed,
                callbacks=[steering, *make_logger(logs_dir), *callbacks],
            )
            go_on(trainer, steering, last)
    return steering.seconds


class AnswerTrainer(SFTTrainer):
    """An SFTTrainer that reads `Question`s in `EpochBatches` and keeps the trained parameters only.

    SFTConfig's own grouping by length draws from the global generator, so a training resumed within an epoch would
    read other batches than an undisturbed one.
    """

    def __init__(
        self,
        model: Any,
        arguments: Any,
        *,
        questions: Sequence[Question],
        tokenizer: Any,
        sampler: EpochBatches,
        packed: bool,
        callbacks: list[transformers.TrainerCallback],
    ) -> None:
        self.tuned, self.sampler, self.questions, self.packed = model, sampler, questions, packed
        super().__init__(
            model,
            arguments,
            train_dataset=_tabulate(questions),
            processing_class=tokenizer,
            # Without one, SFTTrainer gives the tokenizer, which encoders share, a pad token.
            data_collator=DataCollatorForLanguageModeling(pad_token_id=pick_pad_id(tokenizer)),
            callbacks=callbacks,
        )
        self.remove_callback(transformers.PrinterCallback)
        for parameter in list_trained(model).values():
            # SFTTrainer rounds adapters on quantized weights to bfloat16, for which the gradient scaler of float16
            # training has no kernel.
            parameter.data = parameter.data.float()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches."""
        rows: Any
        collate: Any
        rows, collate = (
            (self.questions, pack_questions) if self.packed else (self.train_dataset, self.data_collator)
        )
        return load_batches(self, rows, self.sampler, collate=partial(_collate_part, collate=collate))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return a step's loss."""
        if self.packed:
            loss = compute_packed_loss(model, inputs, n_answer_tokens=kwargs.get("num_items_in_batch"))
            return (
                loss * find_group().size
            )  # processes' gradients are averaged, and the tokens are all processes'
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained parameters into a checkpoint."""
        if self.args.should_save:
            save_trained(self.tuned, Path(output_dir or str(self.args.output_dir)))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none into checkpoints."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.tuned, Path(resume_from_checkpoint))


def _collate_part(
    questions: Sequence[Any], collate: Callable[[Sequence[Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Return this process's part of a step's questions; where it has none, one whose answer doesn't count."""
    group = find_group()
    own = questions[group.rank :: group.size]
    inputs = collate(own or questions[:1])
    if not own:
        inputs["labels"] = inputs["labels"].fill_(-100)
    return inputs


def _tabulate(questions: Sequence[Question]) -> Any:
    return datasets.Dataset.from_dict(
        {
            "input_ids": [question.ids for question in questions],
            "completion_mask": [
                [0] * question.n_prompt + [1] * (len(question.ids) - question.n_prompt)
                for question in questions
            ],
        }
    )


@contextlib.contextmanager
def _hush_datasets() -> Iterator[None]:
    showed = datasets.utils.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if showed:
            datasets.enable_progress_bars()
