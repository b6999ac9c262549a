"""Linear heads, their solvers and their cross-validation."""

import threading
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.special import softmax
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.utils.estimator_checks import parametrize_with_checks
from skops.io import dumps, get_untrusted_types, loads

from embedtune.errors import ConfigError, DataError
from embedtune.heads import ridge as ridge_module
from embedtune.heads.blocks import BlockMatrix, Ints, fit_scale, split_blocks
from embedtune.heads.crossfit import (
    assign_folds,
    cross_fit,
    measure_log_loss,
    plan_folds,
    subsample_rows,
)
from embedtune.heads.linear import LogisticHead, RidgeHead, SoftmaxHead, open_logistic_path
from embedtune.heads.multinomial import Linear, fit_multinomial
from embedtune.heads.ridge import open_ridge_path

HEADS = [LogisticHead, RidgeHead]
WIDTHS = (6, 12, 60)


def make_rows(n: int = 240, n_classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two dense blocks of unequal scale and a sparse one; every block says something about the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    first = rng.normal(size=(n, 6)) + np.eye(n_classes, 6)[y] * 1.5
    second = 50 + 20 * (rng.normal(size=(n, 12)) + np.eye(n_classes, 12)[y])
    rare = (rng.random((n, 60)) < 0.02 + 0.2 * (np.arange(60) % 30 == y[:, None])).astype(float)
    return np.hstack([first, second, rare]), np.array(["down", "flat", "up", "other"])[y]


@parametrize_with_checks([LogisticHead(cv=3), RidgeHead(cv=3)])
def test_head_meets_scikit_learns_contract(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_fit_multinomial_reaches_scikit_learns_optimum(n_classes: int, balanced: bool) -> None:
    X, labels = make_rows(n_classes=n_classes)
    y = np.unique(labels, return_inverse=True)[1]
    matrix = split_blocks(X, WIDTHS)
    scaled = fit_scale(matrix).apply(matrix)
    joined = np.hstack([scaled.dense, scaled.sparse.toarray()]).astype(np.float64)  # type: ignore[union-attr]
    weight = np.where(y == 0, 3.0, 1.0) if balanced else np.ones(len(y))
    found = fit_multinomial(
        scaled, y, n_classes=n_classes, C=2.0, sample_weight=weight, tol=1e-12, max_iter=2000
    )
    reference = LogisticRegression(C=2.0, tol=1e-8, max_iter=5000).fit(joined, y, sample_weight=weight)
    ours = softmax(joined @ found.weights + found.intercept, axis=1)
    np.testing.assert_allclose(ours, reference.predict_proba(joined), atol=2e-4)


def test_fit_multinomial_warm_start_gives_the_same_optimum() -> None:
    X, labels = make_rows()
    y = np.unique(labels, return_inverse=True)[1]
    matrix = split_blocks(X, WIDTHS)
    scaled = fit_scale(matrix).apply(matrix)
    step = open_logistic_path(3)(scaled, y, np.ones(len(y)))
    for C in (0.1, 1.0, 10.0):
        warm = step(C)
    cold = open_logistic_path(3)(scaled, y, np.ones(len(y)))(10.0)
    difference = softmax(scaled.multiply(warm.weights) + warm.intercept, axis=1) - softmax(
        scaled.multiply(cold.weights) + cold.intercept, axis=1
    )
    assert np.abs(difference).max() < 0.02


def test_fit_multinomial_absent_class_keeps_its_column() -> None:
    X, labels = make_rows(n_classes=2)
    y = np.unique(labels, return_inverse=True)[1]
    matrix = split_blocks(X, WIDTHS)
    scaled = fit_scale(matrix).apply(matrix)
    found = fit_multinomial(scaled, y, n_classes=3, C=1.0, sample_weight=np.ones(len(y)))
    probabilities = softmax(scaled.multiply(found.weights) + found.intercept, axis=1)
    assert probabilities.shape == (240, 3) and probabilities[:, 2].max() < 0.01


@pytest.mark.parametrize("n", [240, 40], ids=["long", "fewer-rows-than-columns"])
def test_open_ridge_path_reaches_scikit_learns_optimum(n: int) -> None:
    X, labels = make_rows(n=n)
    assert (n < X.shape[1]) == (n == 40)
    y = np.unique(labels, return_inverse=True)[1]
    weight = np.where(y == 0, 3.0, 1.0)
    matrix = split_blocks(X, WIDTHS)
    scaled = fit_scale(matrix).apply(matrix)
    joined = np.hstack([scaled.dense, scaled.sparse.toarray()])  # type: ignore[union-attr]
    step = open_ridge_path(3, random_state=0)(scaled, y, weight)
    for alpha in (10.0, 0.5):
        found = step(alpha)
        reference = Ridge(alpha=alpha).fit(joined, np.eye(3)[y] * 2 - 1, sample_weight=weight)
        np.testing.assert_allclose(
            joined @ found.weights + found.intercept, reference.predict(joined), atol=1e-3
        )


def test_open_ridge_path_wide_matrix_gives_the_same_through_landmarks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, labels = make_rows(n=100)
    y = np.unique(labels, return_inverse=True)[1]
    matrix = split_blocks(X, WIDTHS)
    scaled = fit_scale(matrix).apply(matrix)

    def solve() -> np.ndarray:
        found = open_ridge_path(3, random_state=0)(scaled, y, np.ones(100))(1.0)
        return np.asarray(scaled.multiply(found.weights) + found.intercept)

    direct = solve()
    monkeypatch.setattr(ridge_module, "MAX_COLUMNS", 10)
    np.testing.assert_allclose(solve(), direct, atol=2e-3)
    monkeypatch.setattr(ridge_module, "MAX_LANDMARKS", 40)
    sampled = solve()
    assert 2e-3 < np.abs(sampled - direct).max() < 1.5


@pytest.mark.parametrize("head_class", HEADS)
def test_head_learns_string_labels_and_orders_probabilities_by_class(head_class: Any) -> None:
    X, y = make_rows(500)
    head = head_class(WIDTHS).fit(X[:300], y[:300])
    probabilities = head.predict_proba(X[300:])
    assert head.classes_.tolist() == ["down", "flat", "up"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (head.classes_[probabilities.argmax(axis=1)] == head.predict(X[300:])).all()
    assert head.score(X[300:], y[300:]) > 0.8
    # beats the classes' frequencies by far, so the probabilities mean something
    assert log_loss(y[300:], probabilities) < 0.55


@pytest.mark.parametrize("head_class", HEADS)
def test_head_csr_gives_what_dense_gives(head_class: Any) -> None:
    X, y = make_rows()
    dense = head_class(WIDTHS).fit(X, y).predict_proba(X)
    csr = head_class(WIDTHS).fit(sparse.csr_matrix(X), y).predict_proba(sparse.csr_matrix(X))
    np.testing.assert_allclose(csr, dense, atol=1e-5)


@pytest.mark.parametrize("head_class", HEADS)
def test_head_ignores_the_scale_of_a_dense_block(head_class: Any) -> None:
    X, y = make_rows()
    scaled = X.copy()
    scaled[:, 6:18] = scaled[:, 6:18] * 0.01 + 3
    one = head_class(WIDTHS).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(head_class(WIDTHS).fit(scaled, y).predict_proba(scaled), one, atol=5e-3)


@pytest.mark.parametrize("head_class", HEADS)
def test_head_same_seed_gives_the_same_head(head_class: Any) -> None:
    X, y = make_rows()
    head = head_class(WIDTHS, random_state=3).fit(X, y)
    assert np.array_equal(head.coef_, clone(head).fit(X, y).coef_)


@pytest.mark.parametrize("head_class", HEADS)
def test_head_balanced_favours_the_rare_class(head_class: Any) -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.1).astype(int)
    X = rng.normal(size=(400, 5)) + y[:, None] * 0.8
    plain = head_class().fit(X, y).predict(X)
    balanced = head_class(class_weight="balanced").fit(X, y).predict(X)
    assert balanced.sum() > 2 * plain.sum()


@pytest.mark.parametrize("head_class", HEADS)
def test_head_noise_asks_for_a_stronger_penalty_than_signal(head_class: Any) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 40))
    signal = head_class().fit(X, X[:, 0] > 0)
    noise = head_class().fit(X, rng.random(200) > 0.5)
    if head_class is LogisticHead:
        assert noise.C_ < signal.C_
    else:
        assert noise.alpha_ > signal.alpha_


@pytest.mark.parametrize("head_class", HEADS)
def test_head_saved_by_skops_needs_only_its_own_type(head_class: Any) -> None:
    X, y = make_rows()
    head = head_class(WIDTHS).fit(X, y)
    data = dumps(head)
    types = get_untrusted_types(data=data)
    assert types == [f"embedtune.heads.linear.{head_class.__name__}"]
    np.testing.assert_array_equal(loads(data, trusted=types).predict_proba(X), head.predict_proba(X))


def test_logistic_head_given_c_is_kept() -> None:
    X, y = make_rows()
    assert LogisticHead(WIDTHS, C=0.7).fit(X, y).C_ == 0.7


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (LogisticHead(C=-1), "C is -1: give a positive number or 'auto'."),
        (LogisticHead(C="best"), "C is 'best': give a positive number or 'auto'."),  # type: ignore[arg-type]
        (RidgeHead(alpha=0), "alpha is 0: give a positive number or 'auto'."),
        (LogisticHead(cv=1), "cv is 1: give a whole number of folds, 2 or more."),
    ],
)
def test_head_parameter_out_of_range_is_refused(head: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        head.fit(*make_rows(30))
    assert str(caught.value) == message


def test_head_one_class_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        LogisticHead().fit(np.ones((3, 2)), ["up"] * 3)
    assert str(caught.value) == "a head needs two classes to tell apart, got 1 class: ['up']."


def test_head_groups_of_wrong_length_are_refused() -> None:
    X, y = make_rows(30)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        LogisticHead().fit(X, y, groups=[1, 2])


def test_logistic_head_groups_decide_the_penalty() -> None:
    """Copies of a row with a random label: split apart they reward memorising, kept whole they don't."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(40, 60)), 5, axis=0)
    y = np.repeat(rng.integers(2, size=40), 5)
    groups = np.repeat(np.arange(40), 5)
    assert LogisticHead().fit(X, y, groups=groups).C_ < 1 < LogisticHead().fit(X, y).C_


def test_assign_folds_keeps_groups_whole_and_covers_every_row() -> None:
    rng = np.random.default_rng(0)
    groups, y = rng.integers(30, size=200), rng.integers(3, size=200)
    folds = assign_folds(y, groups=groups, n_folds=5, random_state=0)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(200))
    assert all(not set(groups[train]) & set(groups[test]) for train, test in folds)


def test_assign_folds_rare_class_gives_no_warning() -> None:
    y = np.array([0] * 20 + [1] * 20 + [2])
    assert len(assign_folds(y, groups=None, n_folds=5, random_state=0)) == 5


def test_assign_folds_one_group_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        assign_folds(np.array([0, 1]), groups=np.array([4, 4]), n_folds=5, random_state=0)
    assert str(caught.value) == (
        "all 2 training rows are in one group, and cross-validation needs two: give groups=None."
    )


def test_subsample_rows_keeps_groups_whole_and_classes_in_proportion() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(np.repeat([0, 1, 2], [700, 290, 10]), 2)
    groups = np.repeat(rng.permutation(1000), 2)
    rows = subsample_rows(y, groups=groups, n_rows=400, random_state=0)
    assert 398 <= len(rows) <= 404
    assert not set(groups[rows]) & set(np.delete(groups, rows))
    np.testing.assert_allclose(np.bincount(y[rows]) / len(rows), [0.7, 0.29, 0.01], atol=0.01)
    assert np.array_equal(rows, subsample_rows(y, groups=groups, n_rows=400, random_state=0))


class _SpySolver:
    """Remembers what it is given to train on, and answers with zero weights."""

    def __init__(self) -> None:
        self.trained: list[tuple[BlockMatrix, Ints]] = []
        self.n_steps: list[int] = []
        self.lock = threading.Lock()

    def __call__(self, matrix: BlockMatrix, y: Ints, sample_weight: np.ndarray) -> Any:
        with self.lock:  # folds are fitted side by side
            place = len(self.trained)
            self.trained.append((matrix, y))
            self.n_steps.append(0)

        def step(strength: float) -> Linear:
            self.n_steps[place] += 1
            return Linear(np.zeros((matrix.n_columns, 2)), np.array([0.0, abs(strength - 3)]))

        return step


def _spy(n: int, *, n_rows: int, every_row: bool) -> tuple[_SpySolver, Any]:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    solver = _SpySolver()
    found = cross_fit(
        split_blocks(rng.normal(size=(n, 3)), (3,)),
        y,
        plan=plan_folds(y, groups=None, cv=4, random_state=0, every_row=every_row, n_rows=n_rows),
        n_classes=2,
        sample_weight=np.ones(n),
        strengths=(1, 2, 3, 4, 5, 6, 7, 8),
        open_path=solver,
        measure=measure_log_loss,
    )
    return solver, found


def test_cross_fit_standardises_on_a_folds_training_rows_alone() -> None:
    solver, _ = _spy(40, n_rows=100, every_row=True)
    assert len(solver.trained) == 4
    for matrix, _ in solver.trained:
        np.testing.assert_allclose(matrix.dense.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(matrix.dense.std(axis=0), 1 / np.sqrt(3), atol=1e-5)


def test_cross_fit_stops_two_steps_past_the_floor() -> None:
    solver, found = _spy(40, n_rows=100, every_row=True)
    assert found.strength == 3
    assert solver.n_steps == [5, 4, 4, 4]


def test_cross_fit_many_rows_chooses_on_some_and_scores_all_once() -> None:
    solver, found = _spy(200, n_rows=40, every_row=True)
    assert [len(y) for _, y in solver.trained] == [30] * 4 + [150] * 4
    assert solver.n_steps[4:] == [1] * 4
    assert len(found.scores) == len(found.rows) == 200
    solver, found = _spy(200, n_rows=40, every_row=False)
    assert len(solver.trained) == 4 and len(found.scores) == len(found.rows) == 40


def test_softmax_head_gives_the_softmax_of_its_linear_map() -> None:
    rng = np.random.default_rng(0)
    weight, bias, X = rng.normal(size=(3, 5)), rng.normal(size=3), rng.normal(size=(7, 5))
    head = SoftmaxHead.from_weights(weight, bias, classes=["a", "b", "c"])
    np.testing.assert_allclose(head.predict_proba(X), softmax(X @ weight.T + bias, axis=1))
    np.testing.assert_allclose(head.predict_proba(sparse.csr_matrix(X)), head.predict_proba(X))


def test_softmax_head_sorts_classes_with_their_rows() -> None:
    head = SoftmaxHead.from_weights(np.diag([9.0, 9.0]), [0.0, 0.0], classes=["z", "a"])
    assert head.classes_.tolist() == ["a", "z"]
    assert head.predict(np.eye(2)).tolist() == ["z", "a"]
    assert clone(head).fit().predict(np.eye(2)).tolist() == ["z", "a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, None), "SoftmaxHead needs coef, intercept and classes: use SoftmaxHead.from_weights."),
        (
            (np.ones((2, 3)), np.ones(3), ["a", "b"]),
            "coef has shape (2, 3) and intercept (3,): they must be (K, n_features) and (K,) with K of at "
            "least 2.",
        ),
        ((np.ones((2, 3)), np.ones(2), ["a", "a"]), "classes ['a', 'a'] must be 2 different labels."),
    ],
)
def test_softmax_head_unusable_weights_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SoftmaxHead.from_weights(*arguments)
    assert str(caught.value) == message
