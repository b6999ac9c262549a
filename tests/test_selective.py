"""Sets, reliability, risk and abstention, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from embedtune.evaluate.selective import measure_reliability, score_abstention, score_sets, trace_risk

Y = np.array([0, 0, 1, 1])
#: Right at .9, wrong at .8, right at .7, wrong at .6.
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])


def test_sets_are_counted() -> None:
    sets = np.array([[[1, 0], [0, 1], [1, 1], [1, 1]], [[1, 0], [1, 1], [0, 1], [1, 0]]], dtype=bool)
    assert score_sets(Y, sets, coverage=0.9) == {
        "coverage": 0.9,
        "covered": 6 / 8,
        "mean_size": 11 / 8,
        "single": 5 / 8,
    }


def test_reliability_has_bins_of_as_many_predictions() -> None:
    low, high = measure_reliability(Y, PROBABILITIES, n_bins=2)
    assert low == {"confidence": pytest.approx(0.65), "accuracy": 0.5, "n": 2}
    assert high == {"confidence": pytest.approx(0.85), "accuracy": 0.5, "n": 2}
    seeds = measure_reliability(Y, np.stack([PROBABILITIES, PROBABILITIES]), n_bins=1)
    assert seeds == [{"confidence": pytest.approx(0.75), "accuracy": 0.5, "n": 8}]


def test_risk_is_the_error_among_the_most_confident() -> None:
    found = trace_risk(Y, PROBABILITIES, n_points=4)
    assert found["coverage"] == [0.25, 0.5, 0.75, 1.0]
    assert found["error"] == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert found["area"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_rows_of_equal_confidence_are_decided_together() -> None:
    equal = np.tile([0.7, 0.3], (4, 1))
    assert trace_risk(Y, equal, n_points=4)["error"] == pytest.approx([0.5] * 4)


def test_abstaining_costs_its_share() -> None:
    found = score_abstention(Y, PROBABILITIES, cost=0.25)
    assert found["threshold"] == 0.75
    assert found["abstained"] == 0.5
    assert found["error"] == 0.5
    assert found["mean_cost"] == pytest.approx((0 + 1 + 0.25 + 0.25) / 4)
    assert found["mean_cost_deciding_all"] == 0.5
    assert score_abstention(Y, PROBABILITIES, cost=0.05)["error"] is None


def test_abstention_saves_most_at_the_threshold_that_the_cost_names() -> None:
    random = np.random.default_rng(0)
    positive = random.random(50_000)
    y = (random.random(50_000) < positive).astype(int)
    probabilities = np.column_stack([1 - positive, positive])
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    at = {
        threshold: (0.2 * (confidence < threshold) + ((confidence >= threshold) & ~right)).mean()
        for threshold in np.linspace(0.5, 1, 26)
    }
    best = min(at, key=at.__getitem__)
    found = score_abstention(y, probabilities, cost=0.2)
    assert found["threshold"] == pytest.approx(best, abs=0.04)
    assert found["mean_cost"] < found["mean_cost_deciding_all"]
