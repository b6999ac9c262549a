"""What a report says to do next."""

from __future__ import annotations

from typing import Any

import pytest

from embedtune.report.advice import advise


def make_results(
    found: str, *, detectable: float | None = 0.02, floor: str = "better", **changes: Any
) -> dict[str, Any]:
    rows = [
        {"a": "tuned", "b": "frozen+", "metric": "macro_f1", "verdict": "worse", "detectable": 0.03},
        {
            "a": "end-to-end",
            "b": "frozen+",
            "metric": "macro_f1",
            "verdict": found,
            "detectable": detectable,
        },
        {"a": "end-to-end", "b": "frozen+", "metric": "accuracy", "verdict": "worse", "detectable": 0.5},
        {"a": "frozen+", "b": "floor", "metric": "macro_f1", "verdict": floor, "detectable": 0.02},
    ]
    scores = {"tuned": 0.8, "end-to-end": 0.9, "frozen+": 0.85, "floor": 0.7}
    arms = {name: {"macro_f1": {"value": value}} for name, value in scores.items()}
    return {"verdict": "…", "arms": arms, "comparisons": rows, "n": {"test": 450}, **changes}


def test_best_fine_tuned_arm_is_spoken_of() -> None:
    assert advise(make_results("better")) == ["Use end-to-end: fine-tuning pays on this task."]


def test_what_cannot_be_seen_is_told_in_rows() -> None:
    (said,) = advise(make_results("not distinguishable"))
    assert said.startswith("Keep the frozen backbones")
    assert said.endswith("about 1,800 test rows would be needed.")  # twice as fine takes four times 450
    (said,) = advise(make_results("not distinguishable", detectable=0.009))
    assert "rows" not in said


@pytest.mark.parametrize("detectable", [0.02, None])
def test_worse_means_keep(detectable: float | None) -> None:
    (said,) = advise(make_results("worse", detectable=detectable))
    assert said == "Keep the frozen backbones, which cost less and serve several tasks at once."


def test_floor_that_is_as_good_and_labels_that_are_wrong_are_named() -> None:
    said = advise(make_results("worse", floor="not distinguishable", suspects={"n": {"label": 1200}}))
    assert "can't tell the frozen backbones from words alone" in said[1]
    assert "1,200 labels contradict a classifier" in said[2]


@pytest.mark.parametrize(("seeds", "told"), [([0], True), ([0, 1], False)])
def test_one_seed_is_told_to_be_one(seeds: list[int], told: bool) -> None:
    results = make_results("better")
    for arm in results["arms"].values():
        arm["seeds"] = seeds
    assert any(said.startswith("One seed was run") for said in advise(results)) is told


def test_scores_that_are_no_answer_give_no_advice() -> None:
    assert advise(make_results("better", verdict="Not an answer: heads were trained on the test rows.")) == []
