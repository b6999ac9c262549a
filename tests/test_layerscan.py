"""The layer scan: scores of layers together, and the lowest one that is good enough."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from embedtune.heads.crossfit import assign_folds
from embedtune.heads.layerscan import Probe, choose_reading, scan_layers


def draw_layers(
    signal: list[float], *, n: int = 300, width: int = 12, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return layers side by side in which the label shifts all columns by `signal`, and the labels."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, n)
    layers = [generator.normal(size=(n, width)) + s * np.eye(3, width)[y] for s in signal]
    return np.hstack(layers).astype(np.float32), y


def test_scan_scores_each_layer_by_what_it_tells() -> None:
    X, y = draw_layers([0, 1.5, 3, 0])
    scores = [probe.score for probe in scan_layers(X, y, widths=(12,) * 4)]
    assert scores[0] < 0.45 and scores[3] < 0.45
    assert 0.6 < scores[1] < scores[2]


def test_layers_together_are_a_ridge_on_their_columns() -> None:
    X, y = draw_layers([1, 1, 1])
    probe = scan_layers(X, y, widths=(12,) * 3, n_together=2)[2]
    Z = (X[:, 12:] - X[:, 12:].mean(axis=0)) / X[:, 12:].std(axis=0)
    targets = np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    found = []
    for alpha in (0.01, 0.1, 1.0, 10.0):
        scores = np.empty_like(targets)
        for seen, unseen in assign_folds(y, groups=None, n_folds=5, random_state=0):
            mean = targets[seen].mean(axis=0)
            ridge = Ridge(alpha=24 * alpha, fit_intercept=False).fit(Z[seen], targets[seen] - mean)
            scores[unseen] = ridge.predict(Z[unseen]) + mean
        found.append((np.square(scores - targets).mean(), scores))
    predicted = min(found, key=lambda pair: pair[0])[1].argmax(axis=1)
    classes = [
        2 * np.sum((y == c) & (predicted == c)) / np.sum((y == c) * 1 + (predicted == c)) for c in range(3)
    ]
    assert probe.score == pytest.approx(np.mean(classes), abs=0.01)


def test_layers_together_are_fewer_at_the_bottom() -> None:
    X, y = draw_layers([2, 0, 0, 0])
    alone = scan_layers(X, y, widths=(12,) * 4)
    together = scan_layers(X, y, widths=(12,) * 4, n_together=3)
    assert together[0] == alone[0]
    assert together[2].score > 0.6 > 0.45 > alone[2].score
    assert together[3].score < 0.45


def test_rows_of_one_group_share_a_fold() -> None:
    """Pairs of equal rows with arbitrary labels: only a probe that sees one half can tell the other's."""
    generator = np.random.default_rng(0)
    X = np.repeat(generator.normal(size=(120, 150)), 2, axis=0).astype(np.float32)
    y = np.repeat(generator.integers(0, 2, 120), 2)
    assert scan_layers(X, y, widths=(150,))[0].score > 0.8
    assert scan_layers(X, y, widths=(150,), groups=np.arange(240) // 2)[0].score < 0.65


def test_constant_layer_scores_as_chance_without_a_warning() -> None:
    X, y = draw_layers([2, 0])
    X[:, 12:] = 1.0
    assert scan_layers(X, y, widths=(12, 12))[1].score < 0.45


@pytest.mark.parametrize(
    ("by_fold", "chosen"),
    [
        ([[0.5, 0.6], [0.8, 0.9], [0.8, 0.9]], 1),
        ([[0.5, 0.6], [0.79, 0.89], [0.8, 0.9]], 2),
        ([[0.5, 0.6], [0.85, 0.84], [0.8, 0.9]], 1),
        ([[0.7, 0.8], [0.6, 0.7], [0.5, 0.6]], 0),
    ],
    ids=["equal", "surely-a-little-worse", "within-the-error", "first-is-best"],
)
def test_choose_reading_takes_the_lowest_within_one_standard_error(
    by_fold: list[list[float]], chosen: int
) -> None:
    probes = [Probe(float(np.mean(folds)), tuple(folds)) for folds in by_fold]
    assert choose_reading({"mean": probes}) == ("mean", chosen)


def test_choose_reading_takes_the_best_pooling_of_the_lowest_good_layer() -> None:
    def probe(score: float) -> Probe:
        return Probe(score, (score - 0.02, score, score + 0.02))

    found = {
        "mean": [probe(0.3), probe(0.6), probe(0.9)],
        "cls": [probe(0.3), Probe(0.89, (0.9, 0.9, 0.87)), probe(0.7)],
        "max": [probe(0.3), Probe(0.895, (0.9, 0.9, 0.885)), probe(0.7)],
    }
    assert choose_reading(found) == ("max", 1)
