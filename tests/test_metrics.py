"""Scores of one set of predictions, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from embedtune.errors import DataError
from embedtune.evaluate.metrics import METRICS, compute_metrics, confusion, per_class


def draw_predictions(n, n_labels, *, seed, sharpness=2.0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, n_labels, n)
    logits = generator.normal(size=(n, n_labels))
    logits[np.arange(n), y] += sharpness
    exp = np.exp(logits)
    return y, exp / exp.sum(axis=1, keepdims=True)


def calibration_error_by_bins(y, probabilities, n_bins=15):
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    total = 0.0
    for i in range(n_bins):
        inside = (confidence > i / n_bins) & (confidence <= (i + 1) / n_bins)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - hit[inside].mean())
    return total


@pytest.mark.parametrize(("n", "n_labels", "seed"), [(500, 2, 0), (500, 3, 1), (40, 12, 2), (1, 4, 3)])
def test_compute_metrics_random_predictions_equals_sklearn(n, n_labels, seed):
    y, probabilities = draw_predictions(n, n_labels, seed=seed)
    predicted, labels = probabilities.argmax(axis=1), np.arange(n_labels)
    scores = compute_metrics(y, probabilities)
    assert tuple(scores) == METRICS
    assert scores["accuracy"] == pytest.approx(reference.accuracy_score(y, predicted))
    macro = reference.f1_score(y, predicted, labels=labels, average="macro", zero_division=0)
    assert scores["macro_f1"] == pytest.approx(macro)
    # a single label in both is undefined: scikit-learn says 0 too
    mcc = 0.0 if n == 1 else reference.matthews_corrcoef(y, predicted)
    assert scores["mcc"] == pytest.approx(mcc)
    assert scores["log_loss"] == pytest.approx(reference.log_loss(y, probabilities, labels=labels))
    assert scores["calibration_error"] == pytest.approx(calibration_error_by_bins(y, probabilities))


def test_compute_metrics_label_absent_and_never_predicted_counts_as_zero():
    y, probabilities = (
        np.array([0, 0, 1, 1]),
        np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0], [0, 1.0, 0]]),
    )
    assert compute_metrics(y, probabilities)["macro_f1"] == pytest.approx(2 / 3)


def test_compute_metrics_one_predicted_label_gives_zero_mcc_not_nan():
    scores = compute_metrics([0, 1, 1], [[1.0, 0.0]] * 3)
    assert scores["mcc"] == 0
    assert all(np.isfinite(value) for value in scores.values())


def test_compute_metrics_zero_probability_of_the_truth_stays_finite():
    assert compute_metrics([1], [[1.0, 0.0]])["log_loss"] == pytest.approx(36.04, abs=0.01)


def test_compute_metrics_certain_and_right_is_perfectly_calibrated():
    assert compute_metrics([0, 1], [[1.0, 0.0], [0.0, 1.0]])["calibration_error"] == 0


def test_per_class_random_predictions_equals_sklearn():
    y, probabilities = draw_predictions(300, 4, seed=5)
    expected = reference.precision_recall_fscore_support(y, probabilities.argmax(axis=1), labels=range(4))
    scores = per_class(y, probabilities, list("abcd"))
    for i, name in enumerate("abcd"):
        got = [scores[name][key] for key in ("precision", "recall", "f1", "support")]
        assert got == pytest.approx([column[i] for column in expected])


def test_per_class_label_never_predicted_scores_zero():
    scores = per_class([0, 1], [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]], ["a", "b", "c"])
    assert scores["b"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert scores["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


def test_confusion_counts_true_labels_in_rows():
    assert confusion([0, 0, 1], [1, 1, 1], 3).tolist() == [[0, 2, 0], [0, 1, 0], [0, 0, 0]]


def test_confusion_random_predictions_equals_sklearn():
    y, probabilities = draw_predictions(200, 5, seed=6)
    predicted = probabilities.argmax(axis=1)
    assert (confusion(y, predicted, 5) == reference.confusion_matrix(y, predicted, labels=range(5))).all()


@pytest.mark.parametrize(
    ("y", "probabilities", "message"),
    [
        ([], np.zeros((0, 2)), "no test rows to score: give at least one."),
        (
            [0, 1],
            [[1.0, 0.0]],
            "true labels of shape (2,) don't go with probabilities of shape (1, 2): "
            "give (n,) and (n, n_labels).",
        ),
        (
            [0, 2],
            [[1.0, 0.0], [1.0, 0.0]],
            "true labels must be integers from 0 to 1, positions in the sorted label names; "
            "got int64 from 0 to 2.",
        ),
        (
            [0, 1, 1],
            [[1.0, 0.0], [np.nan, 0.0], [3.0, 1.0]],
            "2 of 3 rows of probabilities are not distributions (finite, from 0 up, summing to 1): "
            "the head has diverged or its scores were never normalised.",
        ),
    ],
)
def test_compute_metrics_bad_input_says_what_is_wrong(y, probabilities, message):
    with pytest.raises(DataError) as error:
        compute_metrics(y, probabilities)
    assert str(error.value) == message


def test_per_class_missing_name_says_so():
    with pytest.raises(DataError) as error:
        per_class([0], [[1.0, 0.0]], ["a"])
    assert str(error.value) == "1 label names but 2 columns: give one name per column."
