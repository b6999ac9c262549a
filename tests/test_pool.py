"""The logarithmic opinion pool."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from embedtune.heads.crossfit import plan_folds
from embedtune.heads.pool import Pool, cross_fit_pool, fit_pool
from embedtune.heads.training import TrainingRows


def draw_opinions(n: int, sharpness: list[float], *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return opinions (n_opinions, n, 3) that know the label so well each, independently, and the labels."""
    random = np.random.default_rng(seed)
    y = random.integers(3, size=n)
    logits = random.normal(size=(len(sharpness), n, 3))
    logits[:, np.arange(n), y] += np.array(sharpness)[:, None]
    return log_softmax(logits * np.maximum(np.array(sharpness), 0.1)[:, None, None], axis=2), y


def measure(at: np.ndarray, opinions: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """Return what a pool minimises, row by row and obviously."""
    weights, bias = at[: len(opinions)], at[len(opinions) :]
    total = 0.0
    for i, label in enumerate(y):
        scores = [
            sum(w * opinion[i, k] for w, opinion in zip(weights, opinions, strict=True)) + bias[k]
            for k in range(3)
        ]
        total -= weight[i] * (scores[label] - np.log(np.sum(np.exp(scores))))
    return total + 0.5 * np.sum((weights - 1 / len(opinions)) ** 2) + 0.5 * np.sum(bias**2)


def test_pool_is_the_minimum_that_another_method_finds() -> None:
    opinions, y = draw_opinions(60, [1.5, 1.0])
    weight = np.random.default_rng(1).uniform(0.5, 2, size=60)
    pool = fit_pool(opinions, y, weight)
    options = {"maxiter": 5000, "xatol": 1e-7, "fatol": 1e-10}
    slow = minimize(
        measure,
        np.zeros(5),
        args=(opinions, y, weight),
        method="Nelder-Mead",
        options=options,
    )
    assert (slow.x[:2] > 0).all()
    np.testing.assert_allclose([*pool.weights, *pool.bias], slow.x, atol=1e-3)


def test_pool_of_independent_opinions_adds_them_and_hears_no_noise() -> None:
    """Independent and calibrated opinions are multiplied: the naive Bayes rule, weights of one."""
    opinions, y = draw_opinions(6000, [1.5, 1.0, 0.0])
    pool = fit_pool(opinions, y, np.ones(6000))
    np.testing.assert_allclose(pool.weights[:2], 1, atol=0.08)
    assert 0 <= pool.weights[2] < 0.3


def test_pool_never_turns_an_opinion_round() -> None:
    opinions, y = draw_opinions(500, [1.5, 1.0])
    opinions[1] = log_softmax(-opinions[1], axis=1)
    assert fit_pool(opinions, y, np.ones(500)).weights[1] == 0


def test_pool_of_perfect_opinions_stays_finite() -> None:
    y = np.arange(30) % 3
    perfect = np.log(np.where(np.eye(3)[y] > 0, 1 - 2e-9, 1e-9))[None]
    pool = fit_pool(perfect, y, np.ones(30))
    assert np.isfinite(pool.join(perfect)).all()
    assert pool.weights[0] == pytest.approx(1, abs=0.01)


def test_cross_fit_pool_scores_each_row_by_a_pool_without_it() -> None:
    opinions, y = draw_opinions(90, [1.5, 1.0])
    rows = TrainingRows(
        X=np.zeros((90, 1)), y=y, classes=np.arange(3), widths=(1,), sample_weight=np.ones(90), groups=None
    )
    plan = plan_folds(y, groups=None, cv=3, random_state=0, every_row=True)
    found = cross_fit_pool(opinions, rows, plan)
    for seen, unseen in plan.every_fold or []:
        pool = fit_pool(opinions[:, seen], y[seen], np.ones(len(seen)))
        np.testing.assert_allclose(found.scores[unseen], pool.join(opinions[:, unseen]))
    assert found.loss == pytest.approx(-log_softmax(found.scores, axis=1)[np.arange(90), y].mean())
    assert isinstance(pool, Pool)
