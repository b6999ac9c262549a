"""StackHead and AutoHead."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.metrics import f1_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from skops.io import dumps, get_untrusted_types, loads

from embedtune.errors import ConfigError
from embedtune.heads import linear as linear_module
from embedtune.heads import stack as stack_module
from embedtune.heads.auto import AutoHead
from embedtune.heads.blocks import slice_blocks
from embedtune.heads.linear import LogisticHead, RidgeHead
from embedtune.heads.stack import StackHead, resolve_views

WIDTHS = (5, 8, 60)


def make_rows(n: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose dense views tell one class each from the rest, beside a sparse view that is noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    first = rng.normal(size=(n, 5)) + 2.0 * (y == 0)[:, None]
    second = rng.normal(size=(n, 8)) + 2.0 * (y == 1)[:, None]
    noise = (rng.random((n, 60)) < 0.03).astype(float)
    return np.hstack([first, second, noise]), np.array(["down", "flat", "up"])[y]


def read_views(head: StackHead, X: np.ndarray) -> Iterator[tuple[LogisticHead, np.ndarray]]:
    """Yield the head of each view taken, and its columns."""
    for one, view in zip(head.heads_, head.views_, strict=True):
        yield one, slice_blocks(X, head.widths_, view)


@parametrize_with_checks([StackHead(cv=3), AutoHead(cv=3)])
def test_head_meets_scikit_learns_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def test_stack_beats_each_of_its_views() -> None:
    X, y = make_rows(600)
    head = StackHead(WIDTHS).fit(X[:300], y[:300])
    alone = [one.score(view, y[300:]) for one, view in read_views(head, X[300:])]
    assert head.score(X[300:], y[300:]) > max(alone) + 0.1


def test_stack_views_group_blocks() -> None:
    X, y = make_rows(200)
    head = StackHead(WIDTHS, views=[(0, 1), (0,), (2,)]).fit(X, y)
    assert head.views_[0] == (0, 1)
    assert head.heads_[0].n_features_in_ == 13
    alone = LogisticHead((5, 8), C=head.heads_[0].C_).fit(X[:, :13], y)
    np.testing.assert_allclose(
        head.heads_[0].predict_proba(X[:, :13]), alone.predict_proba(X[:, :13]), atol=1e-6
    )


def test_stack_leaves_out_a_view_of_noise() -> None:
    X, y = make_rows(400)
    head = StackHead(WIDTHS).fit(X, y)
    assert head.views_ == ((0,), (1,))
    first, second, *rest = head.selection_
    assert {first["view"], second["view"]} == {0, 1}
    assert second["log_loss"] < first["log_loss"]
    (left_out,) = [step for step in rest if step["view"] == 2]
    assert not left_out["taken"]
    assert left_out["log_loss"] >= second["log_loss"]


@pytest.mark.parametrize("repeated", [False, True])
def test_stack_pays_for_a_source_only_what_it_is_worth(repeated: bool) -> None:
    """A second backbone that says what the first one says isn't run; one that tells more is."""
    X, y = make_rows(400)
    first, second = X[:, :5], X[:, 5:13]
    other = first + 1e-3 * np.random.default_rng(1).normal(size=first.shape) if repeated else second
    head = StackHead((5, other.shape[1]), sources=(0, 1)).fit(np.hstack([first, other]), y)
    assert len(head.views_) == (1 if repeated else 2)


def test_stack_reads_a_source_for_nothing_once_it_is_run() -> None:
    X, y = make_rows(400)
    paid = StackHead(WIDTHS, views=[(0, 1), (0,), (1,)], sources=(0, 0, 0)).fit(X, y)
    free = StackHead(WIDTHS, views=[(0, 1), (0,), (1,)]).fit(X, y)
    assert paid.views_[0] == free.views_[0] == (0, 1)
    assert [step["view"] for step in paid.selection_] == [step["view"] for step in free.selection_]


def test_stack_labels_that_nothing_tells_of_still_get_a_view() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 8)), rng.integers(2, size=60)
    head = StackHead((4, 4), sources=(0, 1)).fit(X, y)
    assert len(head.views_) == 1
    assert head.predict_proba(X).shape == (60, 2)


@pytest.mark.parametrize("head_class", [StackHead, AutoHead])
def test_head_reads_the_kept_blocks_alone(head_class: Any) -> None:
    X, y = make_rows(400)
    wide = head_class(WIDTHS).fit(X, y)
    narrow = head_class(WIDTHS).fit(X, y)
    kept = narrow.blocks_
    assert kept == [0, 1]
    narrow.keep_blocks(kept)
    columns = np.concatenate(
        [np.arange(73)[slice(*ends)] for ends in ((0, 5), (5, 13), (13, 73))][: len(kept)]
    )
    np.testing.assert_allclose(narrow.predict_proba(X[:, columns]), wide.predict_proba(X), atol=1e-12)


def test_stack_sources_that_fit_no_view_are_refused() -> None:
    X, y = make_rows(60)
    with pytest.raises(ConfigError, match="sources names 2 and there are 3 views: give one per view"):
        StackHead(WIDTHS, sources=(0, 1)).fit(X, y)


def make_shared(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two views that tell half of what makes the label each."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 8))
    return X, (X[:, 3] + X[:, 4] + 0.3 * rng.normal(size=n) > 0).astype(int)


def test_stack_reads_all_at_once_where_that_tells_more() -> None:
    X, y = make_shared(600)
    head = StackHead((4, 4)).fit(X[:300], y[:300])
    assert head.together_ is not None
    views = [one.predict_proba(view) for one, view in read_views(head, X[300:])]
    opinions = np.log([*views, head.together_.predict_proba(X[300:])])
    pooled = softmax(np.tensordot(head.weights_, opinions, axes=1) + head.bias_, axis=1)
    np.testing.assert_allclose(head.predict_proba(X[300:]), pooled, atol=1e-9)
    alone = RidgeHead((4, 4)).fit(X[:300], y[:300])
    np.testing.assert_allclose(head.together_.coef_, alone.coef_, rtol=1e-6)


def test_stack_does_without_a_ridge_that_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(size=(200, 3))
    monkeypatch.setattr(RidgeHead, "_calibrate_scores", lambda self, found, rows: noise)
    X, y = make_rows(200)
    head = StackHead(WIDTHS).fit(X, y)
    assert head.together_ is None
    assert {step["view"]: step["taken"] for step in head.selection_}[3] is False


def test_stack_learns_to_join_from_out_of_fold_opinions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows given twice, in one group, with a random label: in-fold opinions would look perfect."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(60, 40)), 2, axis=0)
    y, groups = np.repeat(np.arange(60) % 2, 2), np.repeat(np.arange(60), 2)
    seen = []
    original = stack_module.cross_fit_logistic

    def spy(matrix: Any, rows: Any, **options: Any) -> Any:
        seen.append(original(matrix, rows, **options))
        return seen[-1]

    monkeypatch.setattr(stack_module, "cross_fit_logistic", spy)
    StackHead().fit(X, y, groups=groups)
    assert (seen[0].scores.argmax(axis=1) == y).mean() < 0.7
    seen.clear()
    StackHead().fit(X, y)
    assert (seen[0].scores.argmax(axis=1) == y).mean() > 0.8


def test_stack_fits_each_view_once_per_fold_and_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = linear_module.fit_multinomial

    def count(matrix: Any, y: Any, **options: Any) -> Any:
        calls.append((matrix.n_columns, len(y), options["C"]))
        return original(matrix, y, **options)

    monkeypatch.setattr(linear_module, "fit_multinomial", count)
    X, y = make_rows(203)
    StackHead(WIDTHS, cv=4).fit(X, y)
    for width in WIDTHS:
        of_view = [call for call in calls if call[0] == width]
        assert sum(n == 203 for _, n, _ in of_view) == 1
        for C in {C for _, n, C in of_view if n < 203}:
            assert sum(at == C and n < 203 for _, n, at in of_view) <= 4


@pytest.mark.parametrize("head_class", [StackHead, AutoHead])
def test_head_csr_gives_what_dense_gives(head_class: Any) -> None:
    X, y = make_rows(150)
    dense = head_class(WIDTHS).fit(X, y).predict_proba(X)
    csr = sparse.csr_matrix(X)
    np.testing.assert_allclose(head_class(WIDTHS).fit(csr, y).predict_proba(csr), dense, atol=1e-4)


@pytest.mark.parametrize("head_class", [StackHead, AutoHead])
def test_head_same_seed_gives_the_same_probabilities(head_class: Any) -> None:
    X, y = make_rows(150)
    head = head_class(WIDTHS, random_state=5).fit(X, y)
    assert np.array_equal(head.predict_proba(X), clone(head).fit(X, y).predict_proba(X))


@pytest.mark.parametrize("head_class", [StackHead, AutoHead])
def test_head_saved_by_skops_needs_only_our_types(head_class: Any) -> None:
    X, y = make_rows(150)
    head = head_class(WIDTHS, views=((0, 1), (2,))).fit(X, y)
    data = dumps(head)
    types = get_untrusted_types(data=data)
    assert types and all(name.startswith("embedtune.heads.") for name in types)
    np.testing.assert_array_equal(loads(data, trusted=types).predict_proba(X), head.predict_proba(X))


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([(0, 3)], "view [0, 3] can't be read: give different block numbers from 0 to 2."),
        ([(0,), ()], "view [] can't be read: give different block numbers from 0 to 2."),
        ([(1, 1)], "view [1, 1] can't be read: give different block numbers from 0 to 2."),
        ([], "views is empty: give at least one view, or None for one per block."),
    ],
)
def test_resolve_views_unreadable_is_refused(views: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_views(views, 3)
    assert str(caught.value) == message


def test_auto_is_a_stack_where_rows_are_enough() -> None:
    X, y = make_rows(250)
    head, stack = AutoHead(WIDTHS).fit(X, y), StackHead(WIDTHS).fit(X, y)
    np.testing.assert_array_equal(head.predict_proba(X), stack.predict_proba(X))
    assert head.selection_ == stack.selection_


def test_auto_with_few_rows_reads_first_and_free_dense_views_alone() -> None:
    X, y = make_rows(60)
    views = [(0,), (0, 1), (1,), (2,)]  # the last is sparse
    head = AutoHead(WIDTHS, views=views, sources=(0, 0, None, None)).fit(X[:30], y[:30])
    assert isinstance(head.head_, LogisticHead)
    assert head.blocks_ == [0, 1]
    alone = LogisticHead(WIDTHS[:2], C=head.head_.C_).fit(X[:30, :13], y[:30])
    np.testing.assert_allclose(head.predict_proba(X), alone.predict_proba(X[:, :13]), atol=1e-6)
    before = head.predict_proba(X)
    head.keep_blocks([0, 1])
    np.testing.assert_allclose(head.predict_proba(X[:, :13]), before, atol=1e-12)
    enough = AutoHead(WIDTHS, views=views, sources=(0, 0, None, None)).fit(*make_rows(150))
    assert isinstance(enough.head_, StackHead)


def test_auto_with_few_rows_and_nothing_dense_still_reads_something() -> None:
    X, y = make_rows(30)
    head = AutoHead(WIDTHS, views=[(2,), (2,)]).fit(X, y)
    assert head.blocks_ == [2]


def test_auto_foretells_the_test_score() -> None:
    X, y = make_rows(1500)
    head = AutoHead(WIDTHS)
    out_of_fold = head.fit_out_of_fold(X[:400], y[:400])
    foretold = f1_score(y[:400], head.classes_[out_of_fold.argmax(axis=1)], average="macro")
    on_test = f1_score(y[400:], head.predict(X[400:]), average="macro")
    assert abs(foretold - on_test) < 0.06


def test_stack_log_probabilities_stay_finite_on_separable_views() -> None:
    X = np.repeat([[-1.0, -1.0], [1.0, 1.0]], 40, axis=0)
    probabilities = StackHead((1, 1)).fit(X, np.repeat([0, 1], 40)).predict_proba(X * 1e4)
    assert np.isfinite(log_softmax(probabilities, axis=1)).all() and np.isfinite(probabilities).all()
