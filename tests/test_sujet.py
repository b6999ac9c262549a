"""The Sujet layout, on rows made in it from gold headlines."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedtune.data.prepare import prepare_splits
from embedtune.data.sources import load_dataset
from embedtune.data.sujet import find_headline, read_sentiments, read_yes_no
from embedtune.data.tasks import GOLD_QUESTIONS, load_task
from embedtune.errors import DataError

QUESTIONS = tuple(GOLD_QUESTIONS.values())
HEADLINES = (
    "gold ends higher as the dollar slips",
    "silver flat before the jobs report",
    "gold falls 1% on rate fears",
    "copper, not gold, leads metals higher",
)


def ask(headline: str, question: str) -> str:
    return f'Headline: "{headline}" Now answer this question: {question}'


def make_prompt(asked: list[tuple[str, str, str]]) -> dict[str, str]:
    """Return a row as the data set has it: all but the last question are answered in the prompt."""
    *solved, (headline, question, answer) = asked
    pieces = [f"{ask(h, q)} {a}" for h, q, a in solved]
    return {
        "task_type": "yes_no_question",
        "user_prompt": "\n\n".join([*pieces, ask(headline, question)]),
        "answer": answer,
    }


def make_frame() -> pd.DataFrame:
    rows = [
        make_prompt([(h, q, "Yes" if (i + k) % 2 else "No") for k, q in enumerate(QUESTIONS)])
        for i, h in enumerate(HEADLINES)
    ]
    sentiments = [
        ("profit rose", "Positive"),
        ("loss widened", "negative "),
        ("hm", "unknown"),
        ("moon", "BULLISH"),
    ]
    rows += [{"task_type": "sentiment_analysis", "user_prompt": t, "answer": a} for t, a in sentiments]
    rows += [{"task_type": "ner_sentiment_analysis", "user_prompt": "x", "answer": "positive"}]
    rows += [{"task_type": "sentiment_analysis", "user_prompt": None, "answer": "positive"}]
    return pd.DataFrame(rows)


def test_explode_gives_a_row_per_answered_question() -> None:
    found = read_yes_no(make_frame(), name="sujet")
    assert len(found) == len(HEADLINES) * len(QUESTIONS)
    assert found.texts[1] == ask(HEADLINES[0], QUESTIONS[1])
    assert found.labels[:3] == ("no", "yes", "no")
    assert found.groups is not None
    assert found.groups[:5] == (HEADLINES[0],) * 4 + (HEADLINES[1],)
    assert found.row_ids == tuple(range(16))


def test_explode_leaves_out_and_counts_pieces_without_an_answer() -> None:
    row = make_prompt([(HEADLINES[0], QUESTIONS[0], "Yes")])
    row["user_prompt"] = "Read the headline.\n \n" + row["user_prompt"]
    found = read_yes_no(pd.DataFrame([row]), name="sujet")
    assert (len(found), found.n_dropped) == (1, 1)


def test_sentiments_outside_the_set_are_refused_and_counted() -> None:
    found = read_sentiments(make_frame(), name="sujet")
    assert found.texts == ("profit rose", "loss widened", "moon")
    assert found.labels == ("positive", "negative", "bullish")
    assert found.refused == (("unknown", 1),)
    assert found.n_dropped == 1
    assert found.row_ids == (4, 5, 7)


def test_refused_labels_reach_the_audit() -> None:
    rows = [
        ("sentiment_analysis", f"text {i} of its own {i * 7}", ("positive", "negative")[i % 2])
        for i in range(60)
    ]
    rows += [("sentiment_analysis", f"odd {i}", "unknown") for i in range(3)]
    frame = pd.DataFrame(rows, columns=["task_type", "user_prompt", "answer"])
    audit = prepare_splits(read_sentiments(frame, name="sujet"), seed=0)[1]
    assert audit["rows"]["refused"] == 3
    assert audit["rows"]["read"] == 63
    assert audit["refused_labels"] == {"unknown": 3}


@pytest.mark.parametrize(
    ("question", "headline"),
    [
        (ask(HEADLINES[0], QUESTIONS[0]), HEADLINES[0]),
        ("Gold rises 2%. Does the headline talk about the past?", "Gold rises 2%."),
        ("Is it up?", "Is it up?"),
    ],
)
def test_find_headline_takes_the_quote_or_what_stands_before_the_question(
    question: str, headline: str
) -> None:
    assert find_headline(question) == headline


def test_table_without_such_rows_is_refused() -> None:
    frame = make_frame()
    with pytest.raises(DataError, match="has no row with task_type 'yes_no_question'"):
        read_yes_no(frame[frame["task_type"] != "yes_no_question"], name="x.parquet")
    with pytest.raises(DataError, match="user_prompt"):
        read_yes_no(frame.drop(columns="user_prompt"), name="x.parquet")


@pytest.mark.parametrize("task", ["sujet_sentiment", "sujet_yes_no"])
def test_tasks_read_a_file_and_a_folder_in_the_hubs_layout(tmp_path: Path, task: str) -> None:
    path = tmp_path / "train.parquet"
    make_frame().to_parquet(path)
    from_file, from_folder = load_dataset(path, task=task), load_dataset(tmp_path, task=task)
    assert from_file.texts == from_folder.texts
    assert from_file.labels == from_folder.labels


@pytest.mark.realdata
def test_real_gold_headlines_survive_the_layout() -> None:
    """Asked in prompts of three and exploded again, the questions and answers are those that went in."""
    data_dir = Path(os.environ.get("EMBEDTUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (data_dir / "gold_commodity_news").is_dir():
        pytest.skip("the gold headlines aren't there: set EMBEDTUNE_DATA")
    gold = load_task("gold_yes_no", source=data_dir / "gold_commodity_news")
    assert gold.groups is not None
    rows = np.random.default_rng(0).permutation(len(gold))[:3000]
    asked = [
        (gold.groups[i], gold.texts[i].removeprefix(gold.groups[i]).strip(), gold.labels[i].title())
        for i in rows
    ]
    frame = pd.DataFrame([make_prompt(asked[i : i + 3]) for i in range(0, len(asked), 3)])
    found = read_yes_no(frame, name="sujet")
    assert found.n_dropped == 0
    assert list(found.labels) == [gold.labels[i] for i in rows]
    assert sum(group == gold.groups[i] for group, i in zip(found.groups or (), rows, strict=True)) > 2900
    splits, _ = prepare_splits(found, seed=0)
    parts: dict[str, set[str]] = {}
    for text, part in zip(splits.texts, splits.part, strict=True):
        parts.setdefault(find_headline(text), set()).add(part)
    assert all(len(found) == 1 for found in parts.values())
