"""Out-of-fold scores, and the penalty strength that they favour, in one pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from joblib import Parallel, delayed
from scipy.special import log_softmax
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

from embedtune.errors import DataError
from embedtune.heads.blocks import BlockMatrix, Floats, Ints, fit_scale
from embedtune.heads.multinomial import Linear
from embedtune.heads.training import check_folds

#: A strength is chosen on at most this many rows; it moves little beyond.
MAX_ROWS = 4000

#: Given training rows (standardised), their classes and weights: a function from a strength to its solution.
#: It is called with strengths in order, so it may start each from the one before.
OpenPath: TypeAlias = Callable[[BlockMatrix, Ints, Floats], Callable[[float], Linear]]
#: Given out-of-fold scores (n, K), classes and weights: the loss to minimise.
Measure: TypeAlias = Callable[[Floats, Ints, Floats], float]


class CrossFit(NamedTuple):
    """What cross-validation found.

    `scores` (n_rows, K) are the chosen strength's, each row's by a model that saw neither it nor its group;
    `rows` are the row numbers they belong to.
    """

    strength: float
    loss: float
    scores: Floats
    rows: Ints


class FoldPlan(NamedTuple):
    """Which rows choose a strength, and the folds; made once and shared by all that must be comparable.

    `folds` number the rows within `rows` (n_rows,), `every_fold` all rows where their out-of-fold scores are
    wanted; both hold pairs of training and held-out row numbers.
    """

    rows: Ints
    folds: list[tuple[Ints, Ints]]
    every_fold: list[tuple[Ints, Ints]] | None


def plan_folds(
    y: Ints, *, groups: Ints | None, cv: int, random_state: int, every_row: bool, n_rows: int = MAX_ROWS
) -> FoldPlan:
    """Plan `cv` folds over about `n_rows` rows, and over all where `every_row` asks for it.

    Raises
    ------
    ConfigError
        If `cv` is below two.
    DataError
        If all rows are in one group.
    """
    check_folds(cv)
    rows = subsample_rows(y, groups=groups, n_rows=n_rows, random_state=random_state)
    every_fold = None
    if every_row or len(rows) == len(y):
        every_fold = assign_folds(y, groups=groups, n_folds=cv, random_state=random_state)
        if len(rows) == len(y):
            return FoldPlan(rows, every_fold, every_fold)
    some = None if groups is None else groups[rows]
    folds = assign_folds(y[rows], groups=some, n_folds=cv, random_state=random_state)
    return FoldPlan(rows, folds, every_fold)


def cross_fit(
    matrix: BlockMatrix,
    y: Ints,
    *,
    plan: FoldPlan,
    n_classes: int,
    sample_weight: Floats,
    strengths: Sequence[float],
    open_path: OpenPath,
    measure: Measure,
) -> CrossFit:
    """Choose a strength on the plan's rows and return the out-of-fold scores.

    The folds' scores at the chosen strength are those the choice was made on: one number chosen from a few
    biases them negligibly, and nothing is fitted twice. Only where the plan asks for every row and chose on
    fewer, the folds over all rows are fitted anew, at that strength.
    """
    every, rows, folds = np.arange(len(y)), plan.rows, plan.folds
    if plan.every_fold is not None and len(strengths) == 1:
        rows, folds = every, plan.every_fold
    some = len(rows) < len(y)
    part = matrix.take(rows) if some else matrix
    weight = sample_weight[rows]
    scores = _run_folds(part, y[rows], folds, n_classes, weight, strengths, open_path, measure)
    losses = [measure(at, y[rows], weight) for at in scores]
    best = int(np.argmin(losses))
    chosen = strengths[best]
    if plan.every_fold is None or not some:
        return CrossFit(chosen, losses[best], scores[best], rows)
    again = _run_folds(matrix, y, plan.every_fold, n_classes, sample_weight, (chosen,), open_path, measure)[0]
    return CrossFit(chosen, measure(again, y, sample_weight), again, every)


def _run_folds(
    matrix: BlockMatrix,
    y: Ints,
    folds: Sequence[tuple[Ints, Ints]],
    n_classes: int,
    sample_weight: Floats,
    strengths: Sequence[float],
    open_path: OpenPath,
    measure: Measure,
) -> Floats:
    """Return out-of-fold scores (n_strengths, n, K), fewer strengths where the first fold stops early.

    Standardising is measured on a fold's training rows alone.
    """
    n_strengths = len(strengths)
    scores = np.zeros((n_strengths, len(y), n_classes))

    def run_fold(train: Ints, test: Ints, *, may_stop: bool) -> int:
        training = matrix.take(train)
        scale = fit_scale(training)
        step = open_path(scale.apply(training), y[train], sample_weight[train])
        held_out = scale.apply(matrix.take(test))
        losses: list[float] = []
        for i, strength in enumerate(strengths[:n_strengths]):
            solution = step(strength)
            scores[i, test] = held_out.multiply(solution.weights) + solution.intercept
            losses.append(measure(scores[i, test], y[test], sample_weight[test]))
            # the loss has one valley along the path: two steps past its floor, the rest needs no fitting
            if may_stop and i - int(np.argmin(losses)) >= 2:
                return i
        return n_strengths

    n_strengths = run_fold(*folds[0], may_stop=True)
    # threads, since the work is in matrix products, which let go of the interpreter; each fold has its own rows
    Parallel(n_jobs=-1, prefer="threads")(delayed(run_fold)(*fold, may_stop=False) for fold in folds[1:])
    return scores[:n_strengths]


def measure_log_loss(scores: Floats, y: Ints, sample_weight: Floats) -> float:
    """Return the weighted mean log loss of scores (n, K) read as logits."""
    per_row = -log_softmax(scores, axis=1)[np.arange(len(y)), y]
    return float(np.average(per_row, weights=sample_weight)) if sample_weight.sum() > 0 else 0.0


def assign_folds(y: Ints, *, groups: Ints | None, n_folds: int, random_state: int) -> list[tuple[Ints, Ints]]:
    """Return (training rows, held-out rows) per fold: stratified, shuffled, groups kept whole.

    Fewer folds where no class has `n_folds` rows, or where there are fewer groups.

    Raises
    ------
    DataError
        If all rows are in one group.
    """
    n_groups = len(y) if groups is None else len(np.unique(groups))
    if n_groups < 2:
        raise DataError(
            f"all {len(y)} training rows are in one group, and cross-validation needs two: give groups=None."
        )
    most = int(np.bincount(y).max())
    n_folds = max(2, min(n_folds, most, n_groups))
    if most < 2:
        splits = KFold(n_folds, shuffle=True, random_state=random_state).split(y)
    elif n_groups == len(y):  # groups of one row: the plain splitter gives the same guarantee much faster
        splits = StratifiedKFold(n_folds, shuffle=True, random_state=random_state).split(y, y)
    else:
        splits = StratifiedGroupKFold(n_folds, shuffle=True, random_state=random_state).split(y, y, groups)
    return [(train, test) for train, test in _without_rarity_warning(splits) if len(train) and len(test)]


def _without_rarity_warning(splits: Iterator[tuple[Ints, Ints]]) -> list[tuple[Ints, Ints]]:
    with warnings.catch_warnings():
        # a class with fewer rows than folds is absent from some training folds; the solvers keep its column
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return list(splits)


def subsample_rows(y: Ints, *, groups: Ints | None, n_rows: int, random_state: int) -> Ints:
    """Return about `n_rows` row numbers, ascending: whole groups, each class in proportion.

    A group counts for the class of its first row. Every class keeps at least one group.
    """
    if len(y) <= n_rows:
        return np.arange(len(y))
    _, first, member = np.unique(
        np.arange(len(y)) if groups is None else groups, return_index=True, return_inverse=True
    )
    sizes = np.bincount(member)
    order = np.random.default_rng(random_state).permutation(len(first))
    kept = np.zeros(len(first), dtype=bool)
    for label in np.unique(y[first]):
        candidates = order[y[first][order] == label]
        before = np.cumsum(sizes[candidates]) - sizes[candidates]
        kept[candidates[before < n_rows * sizes[candidates].sum() / len(y)]] = True
    return np.flatnonzero(kept[member])
