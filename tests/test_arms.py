"""Which arms are compared, and the sentence that comes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from embedtune.evaluate.arms import ARMS, PAIRS, compare_arms, score_arm, write_verdict
from embedtune.evaluate.metrics import compute_metrics
from embedtune.evaluate.significance import holm, mcnemar_p


def draw_arm(y, share_right, *, n_seeds=2, seed=0, n_labels=3):
    """Return probabilities whose predictions are right on about this share of rows."""
    generator = np.random.default_rng(seed)
    probabilities = np.full((n_seeds, len(y), n_labels), 0.1)
    for one in probabilities:
        wrong = (y + generator.integers(1, n_labels, len(y))) % n_labels
        predicted = np.where(generator.random(len(y)) < share_right, y, wrong)
        one[np.arange(len(y)), predicted] = 1 - 0.1 * (n_labels - 1)
    return probabilities


Y = np.random.default_rng(9).integers(0, 3, 600)


def test_arms_are_listed_from_least_to_most_trained():
    assert list(ARMS) == ["majority", "floor", "frozen", "frozen+", "tuned", "tuned+", "end-to-end", "prompt"]
    assert {arm.backbones for arm in ARMS.values()} == {"none", "frozen", "tuned", "prompted"}
    assert all(name in ARMS for pair in PAIRS for name in pair)


def test_compare_arms_all_arms_gives_two_rows_a_pair():
    rows = compare_arms(Y, {name: draw_arm(Y, 0.8, seed=i) for i, name in enumerate(ARMS)}, n_resamples=50)
    assert [(row["a"], row["b"], row["metric"]) for row in rows] == [
        (a, b, metric) for a, b in PAIRS for metric in ("accuracy", "macro_f1")
    ]


def test_compare_arms_missing_arms_are_left_out():
    rows = compare_arms(
        Y, {"majority": draw_arm(Y, 0.3), "frozen+": draw_arm(Y, 0.7), "floor": draw_arm(Y, 0.5)}
    )
    assert {(row["a"], row["b"]) for row in rows} == {("frozen+", "floor")}
    assert compare_arms(Y, {"frozen": draw_arm(Y, 0.7)}) == []


def test_compare_arms_accuracy_p_is_mcnemar_on_the_first_seed_and_holm_covers_all_rows():
    tuned, frozen = draw_arm(Y, 0.80, seed=1), draw_arm(Y, 0.75, seed=2)
    rows = compare_arms(Y, {"tuned": tuned, "frozen": frozen, "frozen+": frozen})
    expected = mcnemar_p(Y, tuned[0].argmax(axis=1), frozen[0].argmax(axis=1))
    assert (rows[0]["p"], rows[0]["test"]) == (pytest.approx(expected), "McNemar")
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))
    difference = np.mean(
        [compute_metrics(Y, tuned[s])["accuracy"] - compute_metrics(Y, frozen[s])["accuracy"] for s in (0, 1)]
    )
    assert rows[0]["difference"] == pytest.approx(difference)


def test_compare_arms_grouped_rows_use_the_bootstrap_for_accuracy():
    arms = {"tuned": draw_arm(Y, 0.9), "frozen": draw_arm(Y, 0.5)}
    row = compare_arms(Y, arms, groups=np.arange(600) // 4)[0]
    assert row["test"] == "paired bootstrap"
    assert row["p"] == pytest.approx(2 / 1001)
    assert compare_arms(Y, arms, groups=np.arange(600))[0]["test"] == "McNemar"


@pytest.mark.parametrize(
    ("share_a", "share_b", "verdict"),
    [(0.9, 0.6, "better"), (0.6, 0.9, "worse"), (0.8, 0.8, "not distinguishable")],
)
def test_compare_arms_verdict_speaks_of_the_first_arm(share_a, share_b, verdict):
    arms = {"tuned": draw_arm(Y, share_a, seed=3), "frozen": draw_arm(Y, share_b, seed=4)}
    assert {row["verdict"] for row in compare_arms(Y, arms)} == {verdict}


def test_compare_arms_rows_survive_strict_json():
    rows = compare_arms(Y, {"tuned": draw_arm(Y, 0.9), "frozen": draw_arm(Y, 0.9)}, n_resamples=20)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_compare_arms_few_resamples_can_still_find_a_clear_difference():
    arms = {name: draw_arm(Y, 0.5 + 0.08 * i, seed=i) for i, name in enumerate(ARMS)}
    rows = compare_arms(Y, arms, n_resamples=10)
    assert {r["verdict"] for r in rows if (r["a"], r["b"]) == ("end-to-end", "floor")} == {"better"}


def test_score_arm_per_class_mean_is_macro_f1_and_confusion_is_the_first_seed():
    probabilities = draw_arm(Y, 0.7, n_seeds=3)
    scores = score_arm(Y, probabilities, ["a", "b", "c"], n_resamples=20)
    assert np.mean([one["f1"] for one in scores["per_class"].values()]) == pytest.approx(
        scores["macro_f1"]["value"]
    )
    assert np.sum(scores["confusion"]) == 600
    hits = (probabilities[0].argmax(axis=1) == Y).sum()
    assert np.trace(scores["confusion"]) == hits
    json.dumps(scores, allow_nan=False)


def make_row(a, b, difference, low, high, verdict, metric="macro_f1"):
    return {
        "a": a,
        "b": b,
        "metric": metric,
        "difference": difference,
        "low": low,
        "high": high,
        "verdict": verdict,
    }


def make_arm(value, seconds=None):
    return {"macro_f1": {"value": value}, "cost": {"finetune_seconds": seconds}}


def test_write_verdict_better_names_points_interval_and_seconds():
    arms = {"frozen+": make_arm(0.8), "tuned": make_arm(0.82, 50), "end-to-end": make_arm(0.86, 312)}
    rows = [
        make_row("tuned", "frozen", 0.05, 0.01, 0.09, "better"),
        make_row("tuned", "frozen+", 0.02, -0.01, 0.05, "not distinguishable"),
        make_row("end-to-end", "frozen+", 0.01, -0.9, 0.9, "worse", metric="accuracy"),
        make_row("end-to-end", "frozen+", 0.06, 0.034, 0.0861, "better"),
    ]
    assert write_verdict(arms, rows) == (
        "Worth it: end-to-end scores 6.0 points of macro-F1 above frozen+ (95 % interval +3.4 to +8.6), "
        "for 5 minutes of fine-tuning."
    )


def test_write_verdict_unclear_difference_says_so():
    arms = {"frozen+": make_arm(0.8), "tuned": make_arm(0.79)}
    rows = [make_row("tuned", "frozen+", -0.0071, -0.02, 0.00001, "not distinguishable")]
    assert "(90 % interval −2.0 to 0.0)" in write_verdict(arms, rows, confidence=0.9)
    assert write_verdict(arms, rows) == (
        "Not distinguishable: tuned scores 0.7 points of macro-F1 below frozen+ (95 % interval −2.0 to 0.0)."
    )


def test_write_verdict_without_the_control_warns():
    arms = {"frozen": make_arm(0.9), "tuned": make_arm(0.8, 42)}
    assert write_verdict(arms, [make_row("tuned", "frozen", -0.1, -0.2, -0.05, "worse")]) == (
        "Worse: tuned scores 10.0 points of macro-F1 below frozen (95 % interval −20.0 to −5.0), "
        "for 42 seconds of fine-tuning; it also had more labels, and frozen+, which would tell, was not run."
    )


def test_write_verdict_without_arms_gives_no_verdict():
    assert write_verdict({"frozen": make_arm(0.9)}, []) == (
        "No verdict on fine-tuning: no fine-tuned arm was run."
    )
    assert write_verdict({"tuned": make_arm(0.9)}, []) == (
        "No verdict on fine-tuning: no frozen arm was run to set it against."
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_equal_arms_are_hardly_ever_told_apart(grouped):
    random = np.random.default_rng(0)
    groups = np.arange(300) // 3 if grouped else None
    n_apart = 0
    for repeat in range(100):
        y = random.integers(0, 3, size=300)
        # both right on four rows in five, each on rows of its own beside shared ones; groups share their fate
        shared = random.random(300) if groups is None else random.random(100)[groups]
        arms = {}
        for name in ("tuned", "frozen+", "frozen"):
            right = 0.5 * shared + 0.5 * random.random(300) < 0.68
            guess = np.where(right, y, (y + random.integers(1, 3, size=300)) % 3)
            arms[name] = 0.7 * np.eye(3)[guess] + 0.1
        rows = compare_arms(y, arms, groups=groups, seed=repeat)
        n_apart += any(row["verdict"] != "not distinguishable" for row in rows)
    assert n_apart <= 9  # 5 are expected at most; 10 or more have a chance of 3 %


def test_verdict_says_what_could_not_be_seen():
    y = np.arange(600) % 2
    arms = {"tuned": draw_arm(y, 0.8, seed=1), "frozen+": draw_arm(y, 0.8, seed=2)}
    rows = compare_arms(y, arms)
    scores = {name: score_arm(y, found, ["a", "b", "c"], n_resamples=100) for name, found in arms.items()}
    said = write_verdict(scores, rows, n_test=600)
    (row,) = [row for row in rows if row["metric"] == "macro_f1"]
    assert said.endswith(
        f"Differences under {100 * row['detectable']:.1f} points could hardly be seen with 600 test rows."
    )
    assert 1 < 100 * row["detectable"] < 10
