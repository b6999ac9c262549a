"""StackHead: a logistic regression per view worth reading and a ridge on all, joined by their out-of-fold opinions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax

from embedtune.errors import ConfigError
from embedtune.heads.base import Head
from embedtune.heads.blocks import BlockMatrix, Floats, Matrix, slice_blocks, split_blocks
from embedtune.heads.crossfit import CrossFit, plan_folds
from embedtune.heads.linear import LogisticHead, RidgeHead, cross_fit_logistic
from embedtune.heads.pool import Pool, cross_fit_pool, fit_pool
from embedtune.heads.selection import describe_step, select_views
from embedtune.heads.training import ClassWeight, TrainingRows, read_training_rows


class StackHead(Head):
    """Stacked generalisation over views.

    Each view's logistic regression is cross-fitted once: the pass that chooses its C also gives the
    out-of-fold log-probabilities that the pool's weights are learned from (`fit_pool`). Views are taken greedily while
    they are worth their cost (`select_views`), and those taken are refitted on all rows. A ridge regression on all
    blocks that are read then, whose errors are others, is one opinion more where it lowers the pool's out-of-fold log
    loss.

    Parameters
    ----------
    widths : sequence of int, optional
        Columns of each block, in order; one block by default.
    views : sequence of sequences of int, optional
        Block numbers of each view; each block its own view by default. A block may be in several views.
    sources : sequence of int or None, optional
        What must be run to have each view, such as the number of a backbone; None costs nothing, and is the default
        for all.
    cv : int
        Folds: stratified, whole groups, the same for all views.
    class_weight : "balanced", dict or None
    random_state : int

    Attributes
    ----------
    views_ : tuple of tuple of int
        Block numbers of each view taken, in the order given.
    heads_ : list of LogisticHead
        One per view, in the order of `views_`.
    together_ : RidgeHead or None
        On the columns of `blocks_`; None where it is left out.
    weights_ : ndarray of shape (n_opinions,)
        Of the log-probabilities of `heads_`, then of `together_`.
    bias_ : ndarray of shape (K,)
    selection_ : list of dict
        What each view given brought, those taken first, and `together_`, whose number is that of the views given; see
        `describe_step`.
    widths_ : tuple of int
    classes_ : ndarray of shape (K,)

    References
    ----------
    Wolpert, "Stacked generalization", Neural Networks 5 (1992).
    """

    classes_: NDArray[Any]

    def __init__(
        self,
        widths: Sequence[int] | None = None,
        *,
        views: Sequence[Sequence[int]] | None = None,
        sources: Sequence[int | None] | None = None,
        cv: int = 5,
        class_weight: ClassWeight = None,
        random_state: int = 0,
    ) -> None:
        self.widths = widths
        self.views = views
        self.sources = sources
        self.cv = cv
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Matrix, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit to `X` (n, n_features), dense or CSR, and labels `y` (n,); rows of one group share a fold.

        Raises
        ------
        ConfigError
            If a parameter is out of range, or widths or views don't fit `X`.
        DataError
            If there is one class only, or one group.
        """
        self.fit_out_of_fold(X, y, groups)
        return self

    def fit_out_of_fold(
        self, X: Matrix, y: ArrayLike, groups: ArrayLike | None = None, **options: Any
    ) -> Floats:
        """Fit, and return the pool's out-of-fold probabilities (n, K)."""
        rows = read_training_rows(self, X, y, groups=groups)
        probabilities: Floats = softmax(self.fit_rows(rows).scores, axis=1)
        return probabilities

    def fit_rows(self, rows: TrainingRows) -> CrossFit:
        """Fit, and return the pool's own cross-fit: the stack's out-of-fold scores."""
        plan = plan_folds(
            rows.y, groups=rows.groups, cv=self.cv, random_state=self.random_state, every_row=True
        )
        views = resolve_views(self.views, len(rows.widths))
        sources = resolve_sources(self.sources, len(views))
        self.widths_ = rows.widths
        found = [cross_fit_logistic(self._read_view(rows, view), rows, plan=plan) for view in views]
        opinions = [log_softmax(one.scores, axis=1) for one in found]

        def join(chosen: Sequence[int]) -> CrossFit:
            return cross_fit_pool(np.stack([opinions[number] for number in chosen]), rows, plan)

        selection = select_views(join, len(views), rows, sources=sources)
        self.views_ = tuple(views[number] for number in selection.views)
        self.heads_ = [
            LogisticHead(
                [rows.widths[block] for block in view],
                C=found[number].strength,
                class_weight=self.class_weight,
            )._fit_all(self._read_view(rows, view), rows, C=found[number].strength)
            for number, view in zip(selection.views, self.views_, strict=True)
        ]
        chosen, joined = selection.views, selection.joined
        blocks = tuple(self.blocks_)
        widths, matrix = [rows.widths[block] for block in blocks], self._read_view(rows, blocks)
        ridge = RidgeHead(widths, class_weight=self.class_weight, random_state=self.random_state)
        of_all = ridge._cross_fit(matrix, rows, plan)
        opinions.append(log_softmax(ridge._calibrate_scores(of_all, rows), axis=1))
        with_ridge = join([*chosen, len(views)])
        is_taken = with_ridge.loss < joined.loss
        if is_taken:
            ridge.n_features_in_ = sum(widths)
            ridge._fit_all(matrix, rows, found=of_all)
            chosen, joined = (*chosen, len(views)), with_ridge
        self.together_ = ridge if is_taken else None
        steps = [*selection.steps, describe_step(len(views), with_ridge, rows, is_taken=is_taken)]
        self.selection_ = sorted(steps, key=lambda step: not step["taken"])
        heard = np.stack([opinions[number] for number in chosen])
        self.weights_, self.bias_ = fit_pool(heard, rows.y, rows.sample_weight)
        self.classes_ = rows.classes
        return joined

    @staticmethod
    def _read_view(rows: TrainingRows, view: tuple[int, ...]) -> BlockMatrix:
        return split_blocks(slice_blocks(rows.X, rows.widths, view), [rows.widths[block] for block in view])

    @property
    def blocks_(self) -> list[int]:
        """Numbers of the blocks that any view taken reads, ascending."""
        return sorted({block for view in self.views_ for block in view})

    def keep_blocks(self, kept: Sequence[int]) -> None:
        """Read matrices that hold the given blocks only, ascending; all of `blocks_` must be among them."""
        place = {block: number for number, block in enumerate(kept)}
        self.views_ = tuple(tuple(place[block] for block in view) for view in self.views_)
        self.widths_ = tuple(self.widths_[block] for block in kept)
        self.n_features_in_ = sum(self.widths_)

    def predict_proba(self, X: Matrix) -> Floats:
        """Return probabilities (n, K), float64, columns in the order of `classes_`."""
        X = self._read(X)
        opinions = [
            log_softmax(head.compute_scores(slice_blocks(X, self.widths_, view)), axis=1)
            for head, view in zip(self.heads_, self.views_, strict=True)
        ]
        if self.together_ is not None:
            of_all = self.together_.compute_scores(slice_blocks(X, self.widths_, self.blocks_))
            opinions.append(log_softmax(of_all, axis=1))
        probabilities: Floats = softmax(Pool(self.weights_, self.bias_).join(np.stack(opinions)), axis=1)
        return probabilities


def resolve_views(views: Sequence[Sequence[int]] | None, n_blocks: int) -> tuple[tuple[int, ...], ...]:
    """Return the views as tuples of block numbers; `None` makes each block a view.

    Raises
    ------
    ConfigError
        If a view is empty, repeats a block or names one that doesn't exist.
    """
    if views is None:
        return tuple((block,) for block in range(n_blocks))
    resolved = tuple(tuple(int(block) for block in view) for view in views)
    for view in resolved:
        if not view or len(set(view)) < len(view) or min(view) < 0 or max(view) >= n_blocks:
            raise ConfigError(
                f"view {list(view)} can't be read: give different block numbers from 0 to {n_blocks - 1}."
            )
    if not resolved:
        raise ConfigError("views is empty: give at least one view, or None for one per block.")
    return resolved


def resolve_sources(sources: Sequence[int | None] | None, n_views: int) -> list[int | None]:
    """Return what must be run for each view; `None` makes all free.

    Raises
    ------
    ConfigError
        If there isn't one per view.
    """
    resolved: list[int | None] = [None] * n_views if sources is None else list(sources)
    if len(resolved) != n_views:
        raise ConfigError(f"sources names {len(resolved)} and there are {n_views} views: give one per view.")
    return resolved
