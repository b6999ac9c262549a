import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedtune.embed.batching import plan_batches
from embedtune.embed.texts import check_texts, find_distinct
from embedtune.errors import ConfigError, DataError

lengths = st.lists(st.integers(1, 200), max_size=60)


@given(lengths, st.integers(1, 500))
def test_plan_batches_holds_every_text_once_within_the_budget(counts: list[int], budget: int) -> None:
    batches = plan_batches(counts, max_tokens=budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(counts)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(counts[row] for row in batch) <= budget


@given(lengths, st.integers(1, 500))
def test_plan_batches_orders_longest_first_and_ties_by_row(counts: list[int], budget: int) -> None:
    order = [row for batch in plan_batches(counts, max_tokens=budget) for row in batch]
    assert order == sorted(range(len(counts)), key=lambda row: (-counts[row], row))


def test_plan_batches_fills_the_budget() -> None:
    batches = plan_batches([3, 1, 3, 2], max_tokens=6)
    assert [batch.tolist() for batch in batches] == [[0, 2], [3, 1]]


def test_plan_batches_text_over_the_budget_runs_alone() -> None:
    assert [batch.tolist() for batch in plan_batches([9, 2, 2], max_tokens=4)] == [[0], [1, 2]]


def test_plan_batches_no_texts_gives_no_batches() -> None:
    assert plan_batches([], max_tokens=4) == []


def test_plan_batches_budget_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_batches([1], max_tokens=0)
    assert str(caught.value) == "a batch of 0 tokens holds no text: set batch_tokens to 1 or more."


@pytest.mark.parametrize(
    "texts",
    [
        ["a", "b"],
        ("a", "b"),
        np.array(["a", "b"]),
        np.array(["a", "b"], dtype=object),
        pd.Series(["a", "b"], index=[7, 9]),
    ],
    ids=["list", "tuple", "unicode array", "object array", "series"],
)
def test_check_texts_accepts_every_kind_of_column(texts: object) -> None:
    checked = check_texts(texts)  # type: ignore[arg-type]
    assert checked == ["a", "b"]
    assert all(type(text) is str for text in checked)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            ["a", 5],
            "text 1 is a int (5), not a string: drop the row or convert it with str().",
        ),
        (
            ["a", "b", float("nan")],
            "text 2 is a float (nan), not a string: drop the row or convert it with str().",
        ),
        (
            [None],
            "text 0 is a NoneType (None), not a string: drop the row or convert it with str().",
        ),
        ("a text", "texts is a single str, not a list: put it in a list, [text]."),
        (np.array([["a"]]), "texts has 2 dimensions, not 1: give one column of strings."),
        (3, "texts is a int, not a list of strings: give a list, array or Series."),
    ],
)
def test_check_texts_tells_which_value_is_no_string(texts: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        check_texts(texts)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_find_distinct_keeps_first_appearances_in_order() -> None:
    distinct, index = find_distinct(["b", "a", "b", "", "a"])
    assert distinct == ["b", "a", ""]
    assert index.tolist() == [0, 1, 0, 2, 1]
