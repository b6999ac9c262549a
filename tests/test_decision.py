"""Which label is named: weights chosen for macro-F1, in the classifier, its bundle and a run."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score

from embedtune import EmbedClassifier, LexicalEncoder, load_bundle
from embedtune.config import FitConfig
from embedtune.errors import ConfigError
from embedtune.evaluate.metrics import compute_metrics
from embedtune.heads.decision import choose_weights, decide
from run_cases import write_recipe, write_rows
from test_run import call


def draw_rare(n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are true to the letter, of a label with one row in twelve."""
    rng = np.random.default_rng(seed)
    rare = rng.beta(0.4, 4.4, size=n)
    y = (rng.random(n) < rare).astype(int)
    return np.column_stack([1 - rare, rare]), y


def measure(probabilities: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> float:
    return float(f1_score(y, decide(probabilities, weights), average="macro"))


def test_two_labels_get_the_threshold_that_a_search_over_all_gives() -> None:
    probabilities, y = draw_rare(2000, seed=0)
    weights = choose_weights(probabilities, y)
    best = max(
        f1_score(y, probabilities[:, 1] > threshold, average="macro")
        for threshold in np.linspace(0.02, 0.98, 193)
    )
    assert measure(probabilities, y, weights) > best - 0.005


def test_weights_carry_over_to_rows_that_they_were_not_chosen_on() -> None:
    weights = choose_weights(*draw_rare(4000, seed=1))
    probabilities, y = draw_rare(4000, seed=2)
    assert measure(probabilities, y, weights) > measure(probabilities, y, None) + 0.05


def test_three_labels_come_near_the_best_weights_of_a_grid() -> None:
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet([4, 1, 0.4], size=600)
    y = np.array([rng.choice(3, p=row) for row in probabilities])
    grid = np.exp(np.linspace(-2.5, 2.5, 21))
    best = max(measure(probabilities, y, np.array([1.0, a, b])) for a, b in product(grid, grid))
    assert measure(probabilities, y, choose_weights(probabilities, y)) > best - 0.01


def test_equal_weights_stay_where_nothing_is_better() -> None:
    probabilities = np.eye(3)[[0, 1, 2, 0]] * 0.8 + 0.2 / 3
    np.testing.assert_array_equal(choose_weights(probabilities, np.array([0, 1, 2, 0])), np.ones(3))


TEXTS = [f"sales were as before {i}" for i in range(90)] + [f"sales fell {i}" for i in range(10)]
LABELS = ["as before"] * 70 + ["down"] * 5 + ["as before"] * 15 + ["down"] * 7 + ["as before"] * 3


def test_classifier_names_labels_by_its_weights_and_keeps_its_probabilities(tmp_path: Path) -> None:
    plain = EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, LABELS)
    weighted = EmbedClassifier([LexicalEncoder()], "logistic", decision="macro_f1").fit(TEXTS, LABELS)
    assert plain.decision_weights_ is None
    assert weighted.decision_weights_ is not None
    probabilities = weighted.predict_proba(TEXTS)
    np.testing.assert_array_equal(probabilities, plain.predict_proba(TEXTS))
    expected = weighted.classes_[(probabilities * weighted.decision_weights_).argmax(axis=1)]
    assert list(weighted.predict(TEXTS)) == list(expected)
    weighted.save(tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    np.testing.assert_array_equal(again.decision_weights_, weighted.decision_weights_)
    assert list(again.predict(TEXTS)) == list(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decision": "macro-f1"}, r"decision 'macro-f1' is unknown \(did you mean 'macro_f1'\?\)"),
        (
            {"decision": "macro_f1", "calibration": "none"},
            "needs out-of-fold rows to choose weights on: name a head",
        ),
    ],
)
def test_decision_that_cannot_be_made_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EmbedClassifier([LexicalEncoder()], "logistic", **options).fit(TEXTS, LABELS)


def test_settings_refuse_weights_without_out_of_fold_rows() -> None:
    with pytest.raises(
        ValueError, match=r"fit.decision is 'macro_f1', whose weights are chosen on out-of-fold"
    ):
        FitConfig(decision="macro_f1", calibration="none")


def test_named_labels_are_scored_and_calibration_is_of_the_likeliest() -> None:
    probabilities, y = draw_rare(500, seed=4)
    predicted = decide(probabilities, np.array([0.3, 1.0]))
    scores, plain = compute_metrics(y, probabilities, predicted), compute_metrics(y, probabilities)
    assert scores["macro_f1"] == pytest.approx(f1_score(y, predicted, average="macro"))
    assert scores["accuracy"] == pytest.approx((y == predicted).mean())
    for name in ("log_loss", "calibration_error"):
        assert scores[name] == plain[name]


def test_run_scores_the_labels_that_its_bundle_names(tiny_bert: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "tiny.yaml",
        model=tiny_bert,
        data=write_rows(tmp_path / "moves.csv"),
        store=tmp_path / "store",
    )
    out = tmp_path / "run"
    settings = ["fit.decision=macro_f1", "compare.arms=[floor,frozen+,tuned,end-to-end]", "finetune.epochs=1"]
    result = call("run", recipe, "--out", out, *settings)
    assert result.exit_code == 0, result.output
    results = json.loads((out / "results.json").read_text())
    splits = pq.read_table(out / "data" / "splits.parquet").to_pandas()
    test = splits[splits["part"] == "test"]
    for arm in ("floor", "frozen+", "end-to-end"):
        table = pq.read_table(out / "predictions" / f"{arm}.parquet").to_pandas()
        classifier = load_bundle(out / "arms" / arm)
        assert list(classifier.predict(test["text"].tolist())) == table["predicted"].tolist()
        score = f1_score(table["label"], table["predicted"], average="macro")
        assert results["arms"][arm]["macro_f1"]["value"] == pytest.approx(score)
        weights = results["arms"][arm]["calibration"]["decision_weights"]
        assert weights == classifier.decision_weights_.tolist()
