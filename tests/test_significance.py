"""Bootstrap, McNemar and Holm, against slow and obvious versions of themselves."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from embedtune.errors import ConfigError, DataError
from embedtune.evaluate.metrics import METRICS, compute_metrics
from embedtune.evaluate.significance import (
    bootstrap_intervals,
    compare_pair,
    compare_splits,
    holm,
    mcnemar_p,
    resample_metrics,
)


def draw_seeds(n, n_labels, n_seeds, *, seed=0, sharpness=1.5):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, n_labels, n)
    logits = generator.normal(size=(n_seeds, n, n_labels))
    logits[:, np.arange(n), y] += sharpness
    exp = np.exp(logits)
    return y, exp / exp.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("n_labels", [2, 6])
def test_resample_metrics_equals_scoring_each_drawn_sample(n_labels):
    y, seeds = draw_seeds(60, n_labels, 3)
    scores = resample_metrics(y, seeds, n_resamples=20, seed=7)
    rows = np.random.default_rng(7).integers(0, 60, size=(20, 60))
    for name in METRICS:
        slow = [np.mean([compute_metrics(y[r], one[r])[name] for one in seeds]) for r in rows]
        assert scores.resampled[name] == pytest.approx(slow)
        assert scores.mean(name) == pytest.approx(np.mean([compute_metrics(y, one)[name] for one in seeds]))


def test_resample_metrics_groups_are_drawn_whole():
    y, seeds = draw_seeds(30, 3, 2)
    groups = np.array([f"g{i % 8}" for i in range(30)])
    scores = resample_metrics(y, seeds, groups=groups, n_resamples=15, seed=3)
    names = np.unique(groups)
    for i, drawn in enumerate(np.random.default_rng(3).integers(0, 8, size=(15, 8))):
        rows = np.concatenate([np.flatnonzero(groups == names[g]) for g in drawn])
        slow = np.mean([compute_metrics(y[rows], one[rows])["macro_f1"] for one in seeds])
        assert scores.resampled["macro_f1"][i] == pytest.approx(slow)


def test_resample_metrics_chunks_cover_every_resample(monkeypatch):
    y, seeds = draw_seeds(50, 3, 1)
    whole = resample_metrics(y, seeds, n_resamples=11, seed=1)
    monkeypatch.setattr("embedtune.evaluate.significance._WEIGHTS_AT_ONCE", 200)
    parts = resample_metrics(y, seeds, n_resamples=11, seed=1)
    assert parts.resampled["mcc"].shape == (11,)
    assert parts.resampled["mcc"][:4] == pytest.approx(whole.resampled["mcc"][:4])


def test_bootstrap_intervals_hold_value_and_shrink_with_rows():
    widths = []
    for n in (100, 1600):
        y, seeds = draw_seeds(n, 3, 2)
        intervals = bootstrap_intervals(y, seeds)
        assert set(intervals) == set(METRICS)
        interval = intervals["macro_f1"]
        assert interval["low"] < interval["value"] < interval["high"]
        widths.append(interval["high"] - interval["low"])
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)


def test_bootstrap_intervals_accuracy_is_close_to_the_normal_interval():
    y, seeds = draw_seeds(2000, 2, 1)
    accuracy = bootstrap_intervals(y, seeds, n_resamples=4000)["accuracy"]
    half = 1.96 * np.sqrt(accuracy["value"] * (1 - accuracy["value"]) / 2000)
    assert accuracy["high"] - accuracy["low"] == pytest.approx(2 * half, rel=0.05)


def test_bootstrap_intervals_label_missing_from_test_rows_is_finite():
    y, seeds = draw_seeds(40, 3, 2)
    wider = np.concatenate([seeds * 0.99, np.full((2, 40, 1), 0.01)], axis=-1)
    values = [v for interval in bootstrap_intervals(y, wider).values() for v in interval.values()]
    assert np.isfinite(values).all()


def test_bootstrap_intervals_duplicated_rows_in_groups_are_no_new_evidence():
    y, seeds = draw_seeds(200, 3, 1)
    twice = np.concatenate([seeds, seeds], axis=1)
    once = bootstrap_intervals(y, seeds)["accuracy"]
    grouped = bootstrap_intervals(np.tile(y, 2), twice, groups=np.tile(np.arange(200), 2))["accuracy"]
    assert grouped == pytest.approx(once)


def test_compare_pair_same_predictions_is_no_difference():
    y, seeds = draw_seeds(100, 3, 2)
    assert compare_pair(y, seeds, seeds) == (0, 0, 0, 1, 0)


def test_compare_pair_clear_difference_is_significant_and_antisymmetric():
    y, weak = draw_seeds(400, 3, 3, sharpness=0.5)
    _, strong = draw_seeds(400, 3, 2, sharpness=3.0)
    forth = compare_pair(y, strong, weak, metric="accuracy")
    back = compare_pair(y, weak, strong, metric="accuracy")
    assert forth.low > 0.2
    assert forth.p == pytest.approx(2 / 1001)
    assert back == pytest.approx((-forth.difference, -forth.high, -forth.low, forth.p, forth.detectable))


def test_compare_pair_no_true_difference_rarely_significant():
    pvalues = []
    for seed in range(100):
        y, seeds = draw_seeds(200, 2, 2, seed=seed)
        pvalues.append(compare_pair(y, seeds[:1], seeds[1:], metric="accuracy", n_resamples=200).p)
    assert 0 <= np.mean(np.array(pvalues) < 0.05) < 0.13


def test_compare_pair_unknown_metric_names_the_nearest():
    y, seeds = draw_seeds(10, 2, 1)
    with pytest.raises(ConfigError) as error:
        compare_pair(y, seeds, seeds, metric="macro-f1")
    assert str(error.value) == (
        "metric 'macro-f1' is unknown (did you mean 'macro_f1'?): "
        "use one of accuracy, macro_f1, mcc, log_loss, calibration_error."
    )


def test_resample_metrics_wrong_number_of_groups_says_so():
    y, seeds = draw_seeds(10, 2, 1)
    with pytest.raises(DataError) as error:
        resample_metrics(y, seeds, groups=[1, 2])
    assert str(error.value) == "10 test rows but groups of shape (2,): give one group per row."


@pytest.mark.parametrize(("n_only_a", "n_only_b"), [(0, 5), (9, 1), (30, 60), (7, 7)])
def test_mcnemar_p_equals_statsmodels(n_only_a, n_only_b):
    y = np.zeros(200, dtype=int)
    a, b = np.zeros(200, dtype=int), np.zeros(200, dtype=int)
    b[:n_only_a] = 1
    a[n_only_a : n_only_a + n_only_b] = 1
    a[190:] = b[190:] = 1
    n_both = 190 - n_only_a - n_only_b
    expected = mcnemar([[n_both, n_only_a], [n_only_b, 10]], exact=True).pvalue
    assert mcnemar_p(y, a, b) == pytest.approx(min(1.0, expected))


def test_mcnemar_p_no_discordant_rows_is_one():
    assert mcnemar_p([0, 1], [0, 0], [0, 0]) == 1


def test_holm_equals_step_down_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_holm_equals_statsmodels(n):
    pvalues = np.random.default_rng(n).beta(0.3, 2.0, size=n).round(3).tolist()  # some are equal
    assert holm(pvalues) == pytest.approx(multipletests(pvalues, method="holm")[1].tolist())


def test_resample_metrics_five_arms_of_three_seeds_take_seconds():
    y, seeds = draw_seeds(8000, 3, 3)
    start = time.process_time()
    for _ in range(5):
        resample_metrics(y, seeds)
    assert time.process_time() - start < 15


# Power, seeds, repeated splits


def draw_pair(
    random: np.random.Generator, n: int, *, gain: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels and two arms right on 80 % of the rows, the first on a share `gain` more."""
    y = random.integers(0, 2, size=n)
    hard = random.random(n)
    arms = []
    for share in (0.8 + gain, 0.8):
        right = (hard + random.normal(scale=0.1, size=n)) < share
        arms.append(np.eye(2)[np.where(right, y, 1 - y)] * 0.8 + 0.1)
    return y, arms[0], arms[1]


def test_detectable_difference_is_found_four_times_in_five() -> None:
    random = np.random.default_rng(0)
    y, a, b = draw_pair(random, 800, gain=0.0)
    gain = compare_pair(y, a, b, metric="accuracy").detectable
    found = 0
    for seed in range(60):
        y, a, b = draw_pair(random, 800, gain=gain)
        found += compare_pair(y, a, b, metric="accuracy", n_resamples=400, seed=seed).p < 0.05
    assert 0.65 < found / 60 < 0.95


def test_seeds_spread_stands_beside_the_interval() -> None:
    y = np.arange(100) % 2
    right, half = np.eye(2)[y], np.eye(2)[np.where(np.arange(100) < 50, y, 1 - y)]
    found = bootstrap_intervals(y, np.stack([right, half]))["accuracy"]
    assert found["value"] == 0.75
    assert found["seed_sd"] == pytest.approx(np.std([1, 0.5], ddof=1))
    assert bootstrap_intervals(y, right)["accuracy"]["seed_sd"] is None


def test_compare_splits_is_nadeau_and_bengios_test() -> None:
    differences = [0.021, 0.013, -0.004, 0.017, 0.009, 0.011, 0.002, 0.015, 0.008, 0.019]
    found = compare_splits(differences, n_train=900, n_test=100)
    mean, variance = np.mean(differences), np.var(differences, ddof=1)
    t = mean / np.sqrt((1 / 10 + 100 / 900) * variance)
    assert found.difference == pytest.approx(mean)
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(t, 9))
    assert found.low == pytest.approx(mean - scipy.stats.t.ppf(0.975, 9) * mean / t)
    # without the splits' overlap it would be the paired t-test
    alone = compare_splits(differences, n_train=1, n_test=0)
    assert alone.p == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue)


def test_compare_splits_without_any_spread() -> None:
    assert compare_splits([0.0, 0.0, 0.0], n_train=9, n_test=1).p == 1
    assert compare_splits([0.01, 0.01, 0.01], n_train=9, n_test=1).p == 0
