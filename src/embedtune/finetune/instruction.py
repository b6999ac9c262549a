"""Instruction tuning: a decoder learns to answer the prompt arm's question with the label.

What is left fits the decoder without its language-model head, so that `TransformerEncoder` reads with it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.auto import modeling_auto

from embedtune.embed.backbone import Description
from embedtune.embed.quantization import import_peft
from embedtune.embed.quiet import hush_libraries
from embedtune.errors import BackboneError, ConfigError
from embedtune.finetune.folder import CHECKPOINTS, LOGS, publish
from embedtune.finetune.group import find_group
from embedtune.finetune.model import count_parameters, load_for_training, put_lora
from embedtune.finetune.settings import Settings
from embedtune.prompt.template import cut_text, render_answer, render_prompt, write_messages

if TYPE_CHECKING:
    from transformers import TrainerCallback


class Question(NamedTuple):
    """A prompt with its answer, as token ids; the first `n_prompt` of them are the prompt's."""

    ids: list[int]
    n_prompt: int


def tune_by_instruction(
    description: Description,
    settings: Settings,
    texts: Sequence[str],
    y: NDArray[np.int64],
    *,
    folder: Path,
    facts: dict[str, Any],
    trust_remote_code: bool,
    callbacks: Sequence[TrainerCallback],
) -> None:
    """Train, going on from the last checkpoint in `folder`, and publish the result there with `facts`.

    Raises
    ------
    BackboneError
        If the model isn't a decoder.
    ConfigError
        If the instruction names no options, or a prompt is longer than what the model can read.
    """
    check_decoder(description)
    labels = [settings.label_names[number] for number in y]
    questions = write_questions(description.tokenizer, texts, labels, settings=settings)
    _check_lengths(questions, description)

    import_peft()  # before trl does, whose import would warn
    from embedtune.finetune.sft import train_answers  # trl takes six seconds to import

    settings = settings.for_rows(len(texts))
    device, precision = facts["device"], facts["precision"]
    half = settings.quantization != "none" or (
        settings.method == "lora" and device.startswith("cuda") and precision != "float32"
    )
    model, _ = load_for_training(
        description,
        settings,
        dtype=getattr(torch, precision) if half else torch.float32,
        device=device,
        trust_remote_code=trust_remote_code,
        causal=True,
    )
    if settings.method == "lora":
        model = put_lora(model, description, settings)
    seconds = train_answers(
        model,
        questions,
        tokenizer=description.tokenizer,
        settings=settings,
        folder=folder / CHECKPOINTS,
        logs_dir=folder / LOGS,
        device=device,
        precision=precision,
        description=f"instruction-tune {description.model_id}",
        callbacks=callbacks,
    )
    n_trained, n_parameters = count_parameters(model)
    found: dict[str, Any] = {
        "n_trained_parameters": n_trained,
        "n_parameters": n_parameters,
        "best_epoch": settings.epochs,
        "epochs": settings.epochs,
        "macro_f1": None,
        "history": [],
        "seconds": round(seconds, 3),
        "n_training": len(texts),
        "n_validation": 0,
    }
    find_group().ask_leader(
        lambda: publish(folder, lambda temporary: save_tuned(model, temporary), {**facts, **found})
    )


def check_decoder(description: Description) -> None:
    """Refuse a model that doesn't write from left to right.

    Raises
    ------
    BackboneError
    """
    kind = description.config.model_type
    # BERT and its like have a causal class too, which nobody trained.
    writes = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not writes or kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise BackboneError(
            f"'{description.model_id}' ({kind}) is no decoder, so it can't answer an instruction: "
            "set objective to classification, or give a decoder (LLaMA, Qwen ...)."
        )


def write_questions(
    tokenizer: Any, texts: Sequence[str], labels: Sequence[str], *, settings: Settings
) -> list[Question]:
    """Turn texts and labels into prompts with their answers, the model's end-of-text token behind each.

    A text is cut to its first `max_length` tokens before the prompt is put around it, so no prompt loses its end.

    Raises
    ------
    ConfigError
        If the instruction names no options.
    """
    prompts = [
        render_prompt(
            tokenizer,
            write_messages(
                cut_text(tokenizer, text, max_tokens=settings.max_length),
                settings.label_names,
                instruction=settings.instruction,
            ),
        )
        for text in texts
    ]
    answered = [
        prompt + render_answer(tokenizer, label) for prompt, label in zip(prompts, labels, strict=True)
    ]
    # A chat template writes the special tokens itself.
    options = {
        "add_special_tokens": not getattr(tokenizer, "chat_template", None),
        "return_attention_mask": False,
    }
    return [
        _join(prompt, whole, end=tokenizer.eos_token_id)
        for prompt, whole in zip(
            tokenizer(prompts, **options)["input_ids"],
            tokenizer(answered, **options)["input_ids"],
            strict=True,
        )
    ]


def save_tuned(model: Any, folder: Path) -> None:
    """Write a decoder's adapter so that it fits the model without its head, or its whole weights with it."""
    if not hasattr(model, "peft_config"):
        with hush_libraries():
            model.save_pretrained(folder)
        return
    from safetensors.torch import save_file

    decoder = model.get_base_model()
    inner = next(name for name, module in decoder.named_modules() if module is decoder.base_model)
    start = "base_model.model."
    weights = {
        start + name.removeprefix(f"{start}{inner}."): weight.detach().cpu().contiguous()
        for name, weight in import_peft()
        .get_peft_model_state_dict(model, save_embedding_layers=False)
        .items()
    }
    settings = copy.copy(model.peft_config["default"])
    settings.target_modules = {name.removeprefix(f"{inner}.") for name in settings.target_modules}
    settings.inference_mode = True
    settings.save_pretrained(folder)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _join(prompt: list[int], whole: list[int], *, end: int | None) -> Question:
    """Find where the answer begins: tokens may differ where prompt and answer meet."""
    pairs = zip(prompt, whole, strict=False)
    n_prompt = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(whole)))
    if end is not None and whole[-1] != end:
        whole = [*whole, end]
    return Question(whole, n_prompt)


def _check_lengths(questions: Sequence[Question], description: Description) -> None:
    longest, limit = max(len(question.ids) for question in questions), description.max_positions
    if limit is not None and longest > limit:
        raise ConfigError(
            f"a prompt has {longest} tokens and '{description.model_id}' reads {limit}: set max_length, which counts "
            f"the text's own tokens, lower by {longest - limit} or more."
        )
