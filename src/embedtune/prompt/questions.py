"""Prompts and answers as tokens, cut where both the prompt and every answer agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from embedtune.errors import BackboneError, ConfigError

#: Prompts tokenized in one call; with many answers, more would hold gigabytes of token ids.
_N_AT_ONCE = 128


class Question(NamedTuple):
    """One prompt and the answers that may follow it.

    Attributes
    ----------
    context : list of int
        Tokens that the prompt has in common with prompt and answer written in one go, whichever the answer. All of the
        prompt, unless the tokenizer joins its end and an answer's beginning.
    answers : tuple of tuple of int
        What follows the context, one or more tokens per answer.
    """

    context: list[int]
    answers: tuple[tuple[int, ...], ...]


def encode_questions(tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> list[Question]:
    """Tokenize every prompt with every answer.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast
    prompts : sequence of str
        As `render_prompt` returns them.
    answers : sequence of str
        As `render_answer` returns them.

    Raises
    ------
    BackboneError
        If a prompt is nothing to the model.
    ConfigError
        If two answers are the same to the model, or one is nothing.
    """
    opening = find_opening(tokenizer)
    questions = []
    for start in range(0, len(prompts), _N_AT_ONCE):
        texts = [
            prompt + answer for prompt in prompts[start : start + _N_AT_ONCE] for answer in ("", *answers)
        ]
        encoded = tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )
        rows = [opening + ids for ids in encoded["input_ids"]]
        step = len(answers) + 1
        questions += [_cut(rows[i], rows[i + 1 : i + step]) for i in range(0, len(rows), step)]
    for question in questions:
        if not question.context:
            raise BackboneError(
                f"the chat template of '{tokenizer.name_or_path}' writes nothing before the answer: mend it, or choose "
                "another model."
            )
        _check_answers(question, answers)
    return questions


def find_opening(tokenizer: Any) -> list[int]:
    """Return what the tokenizer puts before a text by itself, such as ``<s>``; nothing where a chat template does."""
    if getattr(tokenizer, "chat_template", None):
        return []
    whole, bare = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (True, False))
    starts = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
    return whole[: starts[0]] if starts else []


def count_common(rows: Sequence[list[int]]) -> int:
    """Return how many tokens all rows begin with."""
    first, last = min(rows), max(rows)  # in lexicographic order nothing lies outside these two
    n = min(len(first), len(last))
    return next((i for i in range(n) if first[i] != last[i]), n)


def _cut(prompt: list[int], whole: list[list[int]]) -> Question:
    n = count_common([prompt, *whole])
    return Question(prompt[:n], tuple(tuple(ids[n:]) for ids in whole))


def _check_answers(question: Question, answers: Sequence[str]) -> None:
    seen: dict[tuple[int, ...], str] = {}
    for answer, ids in zip(answers, question.answers, strict=True):
        if not ids:
            raise ConfigError(f"the answer {answer!r} has no tokens: give its label a wording in options.")
        if ids in seen:
            raise ConfigError(
                f"the answers {seen[ids]!r} and {answer!r} are the same to the model: "
                "give their labels different wordings in options."
            )
        seen[ids] = answer
