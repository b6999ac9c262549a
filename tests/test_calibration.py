"""Calibrated probabilities and prediction sets, against simulations whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.base import clone
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from embedtune import EmbedClassifier, LexicalEncoder, load_bundle
from embedtune.errors import ConfigError
from embedtune.heads.auto import AutoHead
from embedtune.heads.calibration import METHODS, Calibrator, find_sets
from embedtune.heads.cooccurrence_head import CooccurrenceHead
from embedtune.heads.linear import LogisticHead, RidgeHead
from embedtune.heads.stack import StackHead


def draw(
    n: int, *, n_labels: int = 3, temperature: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities that are right at this temperature, and labels drawn from the right ones."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2, size=(n, n_labels))
    y = (softmax(logits, axis=1).cumsum(axis=1) > random.random((n, 1))).argmax(axis=1)
    return softmax(logits * temperature, axis=1), y


def measure_log_loss(probabilities: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(y)), y]).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_the_one_that_probabilities_were_sharpened_by(temperature: float) -> None:
    probabilities, y = draw(20_000, temperature=temperature)
    calibrator = Calibrator("temperature").fit(probabilities, y)
    assert calibrator.temperature_ == pytest.approx(temperature, rel=0.05)
    right, _ = draw(20_000)
    np.testing.assert_allclose(calibrator.transform(probabilities), right, atol=0.02)


def stretch(probabilities: np.ndarray, factor_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Multiply each row's log-probabilities by what is given for the margin between its two highest."""
    logs = np.log(probabilities)
    second, first = np.sort(logs, axis=1)[:, -2:].T
    return softmax(logs * factor_of(first - second)[:, None], axis=1)


def test_adaptive_undoes_what_depends_on_the_margin() -> None:
    right, y = draw(20_000)
    # probabilities that are too near 0 and 1 where labels lie close, and right where they lie far apart
    given = stretch(right, lambda margin: 1 + 1.5 / (1 + margin))
    calibrator = Calibrator("adaptive").fit(given, y)
    assert calibrator.coefficients_.shape == (4,) and calibrator.temperature_ is None
    found = calibrator.transform(given)
    np.testing.assert_allclose(found, right, atol=0.05)
    one = Calibrator("temperature").fit(given, y).transform(given)
    assert np.abs(found - right).mean() < np.abs(one - right).mean() / 3
    np.testing.assert_array_equal(found.argmax(axis=1), given.argmax(axis=1))


def test_adaptive_without_reason_is_one_temperature() -> None:
    sharp, y = draw(20_000, temperature=2.0)
    mapped = Calibrator("adaptive").fit(sharp, y).transform(sharp)
    np.testing.assert_allclose(mapped, Calibrator("temperature").fit(sharp, y).transform(sharp), atol=0.02)


def test_adaptive_leaves_a_surer_row_the_surer_one() -> None:
    """Where labels of high margins are random, the best bend would turn the order of rows round."""
    right, y = draw(4000, n_labels=2)
    margins = np.abs(np.diff(np.log(right), axis=1))[:, 0]
    y = np.where(margins > 2, np.random.default_rng(0).integers(0, 2, len(y)), y)
    calibrator = Calibrator("adaptive").fit(right, y)
    found = calibrator.transform(right[np.argsort(margins)])
    assert (np.diff(found.max(axis=1)) >= -1e-12).all()


def test_adaptive_stays_beyond_the_margins_it_has_seen() -> None:
    right, y = draw(4000, n_labels=2)
    calibrator = Calibrator("adaptive").fit(stretch(right, lambda margin: 1 + 1.5 / (1 + margin)), y)
    beyond = np.exp(-np.array([[20.0, 0.0], [26.0, 0.0]]))
    logs = np.log(calibrator.transform(beyond / beyond.sum(axis=1, keepdims=True)))
    ratios = (logs[:, 1] - logs[:, 0]) / [20.0, 26.0]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-6)


def test_isotonic_maps_two_labels_as_scikit_learn_does() -> None:
    probabilities, y = draw(2000, n_labels=2, temperature=2.0)
    found = Calibrator("isotonic").fit(probabilities, y).transform(probabilities)
    curve = IsotonicRegression(y_min=1 / 2002, y_max=1 - 1 / 2002).fit(probabilities[:, 1], y)
    np.testing.assert_allclose(found[:, 1], curve.predict(probabilities[:, 1]), atol=1e-9)


def test_auto_takes_what_the_probabilities_need() -> None:
    right, y = draw(6000)
    assert Calibrator().fit(right, y).method_ == "none"
    sharp, _ = draw(6000, temperature=2.5)
    assert Calibrator().fit(sharp, y).method_ == "temperature"
    close = stretch(right, lambda margin: 1 + 1.5 / (1 + margin))
    assert Calibrator().fit(close, y).method_ == "adaptive"
    # stretched in the middle, which no single temperature undoes
    bent = right**0.3 * (right > 0.5) + right**3 * (right <= 0.5) + 1e-3
    bent /= bent.sum(axis=1, keepdims=True)
    calibrator = Calibrator().fit(bent, y)
    assert calibrator.method_ == "isotonic"
    fresh, labels = draw(6000, seed=1)
    bent = fresh**0.3 * (fresh > 0.5) + fresh**3 * (fresh <= 0.5) + 1e-3
    bent /= bent.sum(axis=1, keepdims=True)
    assert measure_log_loss(calibrator.transform(bent), labels) < measure_log_loss(bent, labels) - 0.02


@pytest.mark.parametrize("method", METHODS)
def test_calibrated_rows_sum_to_one_and_rule_nothing_out(method: str) -> None:
    probabilities, y = draw(50, temperature=4.0)
    found = Calibrator(method).fit(probabilities, y).transform(draw(500, temperature=4.0, seed=1)[0])
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found > 0).all()
    assert Calibrator(method).fit(probabilities, y).transform(np.empty((0, 3))).shape == (0, 3)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="calibration 'isotnic' is unknown"):
        Calibrator("isotnic").fit(*draw(50))


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("method", ["none", "temperature", "adaptive", "isotonic"])
def test_sets_hold_the_true_label_as_often_as_promised(method: str, coverage: float) -> None:
    covered = []
    for seed in range(60):
        probabilities, y = draw(700, n_labels=4, temperature=2.0, seed=seed)
        calibrator = Calibrator(method).fit(probabilities[:200], y[:200])
        fresh = calibrator.transform(probabilities[200:])
        sets = find_sets(fresh, calibrator.find_threshold(coverage))
        covered.append(sets[np.arange(500), y[200:]].mean())
    # sets always hold the likeliest label, which can only add
    assert coverage - 0.01 < np.mean(covered) < coverage + 0.03


def test_threshold_is_mapies() -> None:
    from mapie.classification import SplitConformalClassifier

    random = np.random.default_rng(0)
    X = random.normal(size=(900, 4))
    y = (X @ random.normal(size=(4, 3)) + random.gumbel(size=(900, 3))).argmax(axis=1)
    model = LogisticRegression().fit(X[:300], y[:300])
    theirs = SplitConformalClassifier(model, confidence_level=0.9, conformity_score="lac", prefit=True)
    theirs.conformalize(X[300:600], y[300:600])
    _, sets = theirs.predict_set(X[600:])
    calibrator = Calibrator("none").fit(model.predict_proba(X[300:600]), y[300:600])
    ours = model.predict_proba(X[600:]) >= calibrator.find_threshold(0.9)
    np.testing.assert_array_equal(ours, sets[:, :, 0])


def test_too_few_rows_promise_nothing_but_all_labels() -> None:
    probabilities, y = draw(8)
    calibrator = Calibrator("none").fit(probabilities, y)
    assert calibrator.find_threshold(0.9) == 0
    assert find_sets(probabilities, 0.0).all()
    assert calibrator.find_threshold(0.5) > 0
    assert calibrator.find_threshold(1e-9) == calibrator.conformity_[-1]
    with pytest.raises(ConfigError, match=r"coverage 1\.5 is out of range"):
        calibrator.find_threshold(1.5)


# Heads


def make_rows(n: int = 1200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows whose groups of four are near-copies with a label of their own, which only leaking would find."""
    random = np.random.default_rng(0)
    groups = np.arange(n) // 4
    X = random.normal(size=(n // 4, 12))[groups] + 1e-3 * random.normal(size=(n, 12))
    y = random.integers(0, 3, size=n // 4)[groups]
    return X.astype(np.float32), np.array(["a", "b", "c"])[y], groups


HEADS = {
    "logistic": LogisticHead((6, 6)),
    "ridge": RidgeHead((6, 6)),
    "stack": StackHead((6, 6)),
    "auto": AutoHead((6, 6)),
    "cooccurrence": CooccurrenceHead((6, 6), epochs=60, batch_size=32, hidden=(32, 16), sigma=0.3),
}


@pytest.mark.parametrize("name", HEADS)
def test_out_of_fold_probabilities_come_from_heads_without_the_rows_group(name: str) -> None:
    n = 400 if name == "cooccurrence" else 1200  # its epochs of small steps take long
    X, y, groups = make_rows(n)
    head = clone(HEADS[name])
    found = head.fit_out_of_fold(X, y, groups)
    assert found.shape == (n, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    expected = clone(HEADS[name]).fit(X, y, groups)
    np.testing.assert_allclose(head.predict_proba(X), expected.predict_proba(X), atol=1e-6)
    chance = np.mean(head.classes_[found.argmax(axis=1)] == y)
    assert chance < 0.5  # labels are noise: a head that had seen a near-copy would know them
    if name != "ridge":
        leaking = clone(HEADS[name]).fit_out_of_fold(X, y, None)
        assert np.mean(head.classes_[leaking.argmax(axis=1)] == y) > chance


# The classifier

TEXTS = [f"{word} {filler}" for filler in range(40) for word in ("sales rose", "sales fell", "sales stood")]
LABELS = ["up", "down", "flat"] * 40


def mislabel() -> list[str]:
    """Return the labels, a quarter of them wrong at random, so that nobody should be sure."""
    random = np.random.default_rng(0)
    return [
        str(random.choice(["up", "down", "flat"])) if random.random() < 0.375 else label for label in LABELS
    ]


def make_classifier(**changes: object) -> EmbedClassifier:
    return EmbedClassifier([LexicalEncoder()], "logistic", **changes)


def test_classifier_is_calibrated_and_saved_with_it(tmp_path: Path) -> None:
    labels = mislabel()
    classifier = make_classifier(calibration="temperature").fit(TEXTS, labels)
    assert classifier.calibrator_.method_ == "temperature"
    assert classifier.out_of_fold_.shape == (120, 3)
    raw = make_classifier(calibration="none").fit(TEXTS, labels)
    assert raw.calibrator_ is None
    expected = classifier.calibrator_.transform(raw.predict_proba(TEXTS[:9]))
    np.testing.assert_allclose(classifier.predict_proba(TEXTS[:9]), expected)

    loaded = load_bundle(classifier.save(tmp_path / "bundle"))
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS[:9]), classifier.predict_proba(TEXTS[:9]))
    assert loaded.predict_sets(TEXTS, coverage=0.95) == classifier.predict_sets(TEXTS, coverage=0.95)
    assert load_bundle(raw.save(tmp_path / "raw")).calibrator_ is None


def test_sets_start_with_the_prediction_and_grow_with_the_coverage() -> None:
    labels = mislabel()
    classifier = make_classifier().fit(TEXTS, labels)
    narrow, wide = (classifier.predict_sets(TEXTS, coverage=coverage) for coverage in (0.5, 0.99))
    assert [found[0] for found in narrow] == classifier.predict(TEXTS).tolist()
    assert all(set(small) <= set(large) for small, large in zip(narrow, wide, strict=True))
    assert sum(map(len, wide)) > sum(map(len, narrow))
    assert classifier.predict_sets([]) == []


def test_classifier_without_calibration_has_no_sets() -> None:
    classifier = make_classifier(calibration="none").fit(TEXTS, LABELS)
    with pytest.raises(ConfigError, match="no out-of-fold rows to take sets from"):
        classifier.predict_sets(TEXTS)
