"""The layout of Sujet-Finance-Instruct-177k: prompts and answers of several kinds of task in one table.

The capstone reads two kinds of it. What it does with a yes/no prompt, which holds several answered questions and
an open one, is done here with three differences: pieces that repeat are merged later, with their conflicts counted;
questions on one headline are a group; and labels outside the kind's own are left out and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from embedtune.data.columns import find_column, read_label, read_texts
from embedtune.data.dataset import TextDataset
from embedtune.errors import DataError

SENTIMENTS = ("bearish", "bullish", "negative", "neutral", "positive")

_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_ANSWERED = re.compile(r"(?P<question>.*\S)\s+(?P<answer>yes|no)\.?", re.IGNORECASE | re.DOTALL)
_QUOTED = re.compile(r'"([^"]*\w\s+\w[^"]*)"')
_LAST_QUESTION = re.compile(r"[^.?!:\n]*\?\s*$")


class _Prompts(NamedTuple):
    prompts: list[str]
    answers: list[str]
    rows: list[int]
    n_empty: int


def read_sentiments(frame: pd.DataFrame, *, name: str) -> TextDataset:
    """Read the rows of kind ``sentiment_analysis``: the prompt is the text, the answer the label.

    Raises
    ------
    DataError
        If a column isn't there, or no such row.
    """
    found = _select(frame, "sentiment_analysis", name=name)
    kept = [i for i, answer in enumerate(found.answers) if answer in SENTIMENTS]
    others = Counter(answer for answer in found.answers if answer not in SENTIMENTS)
    return TextDataset(
        texts=tuple(found.prompts[i] for i in kept),
        labels=tuple(found.answers[i] for i in kept),
        name=name,
        n_dropped=found.n_empty,
        row_ids=tuple(found.rows[i] for i in kept),
        refused=tuple(others.most_common()),
    )


def read_yes_no(frame: pd.DataFrame, *, name: str) -> TextDataset:
    """Read the rows of kind ``yes_no_question``, a row per answered question.

    The answer is put behind its prompt, which is then cut at blank lines; every piece that ends in yes or no is a text
    and its label. Row ids count pieces.

    Raises
    ------
    DataError
        If a column isn't there, or no such row.
    """
    found = _select(frame, "yes_no_question", name=name)
    pieces = [
        piece
        for prompt, answer in zip(found.prompts, found.answers, strict=True)
        for piece in _BLANK_LINES.split(f"{prompt} {answer}".strip())
    ]
    matches = [(number, _ANSWERED.fullmatch(piece.strip())) for number, piece in enumerate(pieces)]
    answered = [(number, match["question"], match["answer"].lower()) for number, match in matches if match]
    headlines = tuple(find_headline(question) for _, question, _ in answered)
    return TextDataset(
        texts=tuple(question for _, question, _ in answered),
        labels=tuple(answer for _, _, answer in answered),
        groups=headlines,
        name=name,
        n_dropped=len(pieces) - len(answered),
        row_ids=tuple(number for number, _, _ in answered),
        compared=headlines,
    )


def find_headline(question: str) -> str:
    """Return what a question is about: the quoted words, else what stands before the last question, else all of it."""
    if quoted := _QUOTED.search(question):
        return quoted[1].strip()
    return _LAST_QUESTION.sub("", question).strip() or question


def _select(frame: pd.DataFrame, kind: str, *, name: str) -> _Prompts:
    columns = [
        find_column(frame, column, (), kind=column, name=name)
        for column in ("task_type", "user_prompt", "answer")
    ]
    is_kind = (frame[columns[0]].astype("string").str.strip().str.lower() == kind).fillna(False)
    chosen = frame[is_kind.to_numpy(dtype=bool)]
    if not len(chosen):
        raise DataError(f"{name} has no row with task_type '{kind}': is it Sujet-Finance-Instruct-177k?")
    prompts: Sequence[str] = read_texts(chosen[columns[1]].tolist(), name=name, column=columns[1])
    answers = [
        read_label(value, row=i, name=name, column=columns[2]).strip().lower()
        for i, value in enumerate(chosen[columns[2]])
    ]
    rows = [int(i) for i in is_kind.to_numpy(dtype=bool).nonzero()[0]]
    full = [i for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)) if prompt and answer]
    return _Prompts(
        [prompts[i] for i in full], [answers[i] for i in full], [rows[i] for i in full], len(rows) - len(full)
    )
