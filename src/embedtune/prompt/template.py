"""The prompt a decoder is asked with, and instruction-tuned on: the task, its options, examples, the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from embedtune.errors import BackboneError, ConfigError

#: Turns of a conversation as chat templates take them: ``{"role": "user" or "assistant", "content": …}``.
Messages: TypeAlias = list[dict[str, str]]

#: `{options}` becomes the labels.
INSTRUCTION = "Classify the text. Answer with one of: {options}."


def write_messages(
    text: str,
    label_names: Sequence[str],
    *,
    instruction: str = INSTRUCTION,
    examples: Sequence[tuple[str, str]] = (),
) -> Messages:
    """Return the conversation that ends with the question about `text`.

    What is the same for all texts, the instruction with its options and then the examples, comes first, so that it can
    be computed once.

    Parameters
    ----------
    text : str
    label_names : sequence of str
        The options, named in this order.
    instruction : str
        Holds ``{options}``.
    examples : sequence of (text, label)
        Solved questions, each a turn of its own.

    Raises
    ------
    ConfigError
        If the instruction doesn't name the options.
    """
    if "{options}" not in instruction:
        raise ConfigError(
            f"the instruction {instruction!r} doesn't say what may be answered: put {{options}} where the labels go."
        )
    task = instruction.replace("{options}", ", ".join(label_names))
    questions = [f"Text: {one}" for one in (*(text for text, _ in examples), text)]
    questions[0] = f"{task}\n\n{questions[0]}"
    messages: Messages = []
    for question, (_, label) in zip(questions, examples, strict=False):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": label}]
    return [*messages, {"role": "user", "content": questions[-1]}]


def render_prompt(tokenizer: Any, messages: Messages) -> str:
    """Return the conversation as the model's own chat template writes it, up to where its answer begins.

    A tokenizer without a template gets plain lines that end in "Answer:".

    Raises
    ------
    BackboneError
        If the template fails, or asks for what its sandbox forbids.
    """
    if getattr(tokenizer, "chat_template", None):
        return _render(tokenizer, messages)
    lines = [
        f"{turn['content']}\nAnswer:" if turn["role"] == "user" else f" {turn['content']}\n\n"
        for turn in messages
    ]
    return "".join(lines)


def _render(tokenizer: Any, messages: Messages) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except MemoryError:
        raise
    except Exception as error:  # a template is a program, and fails as it likes
        raise BackboneError(
            f"the chat template of '{tokenizer.name_or_path}' can't be rendered "
            f"({type(error).__name__}: {str(error)[:200]}): mend it, or choose another model."
        ) from error


def render_answer(tokenizer: Any, label: str) -> str:
    """Return what follows `render_prompt` when the answer is `label`."""
    return label if getattr(tokenizer, "chat_template", None) else f" {label}"


def cut_text(tokenizer: Any, text: str, *, max_tokens: int) -> str:
    """Return the text without what lies behind its first `max_tokens` tokens, so that no prompt loses its end."""
    offsets = tokenizer(
        text,
        add_special_tokens=False,
        truncation=True,
        max_length=max_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )["offset_mapping"]
    return text[: offsets[-1][1]] if len(offsets) == max_tokens else text
