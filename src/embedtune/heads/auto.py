"""AutoHead: the linear head or stack that does best in cross-validation inside the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.metrics import f1_score

from embedtune.heads.base import Head
from embedtune.heads.blocks import Floats, Matrix, slice_blocks, split_blocks
from embedtune.heads.crossfit import CrossFit, FoldPlan, measure_log_loss, plan_folds
from embedtune.heads.linear import LogisticHead, RidgeHead, cross_fit_logistic
from embedtune.heads.stack import StackHead, resolve_sources, resolve_views
from embedtune.heads.training import ClassWeight, TrainingRows, read_training_rows

#: Rows per label, on average, below which nothing is chosen: with 16 a choice does worse than none, with 32 better
#: (benchmarks/choices.py).
FEW_ROWS = 24


class AutoHead(Head):
    """Logistic regression, ridge or a stack, whichever has the best out-of-fold macro-F1.

    With fewer than `FEW_ROWS` rows per label, cross-validation can't tell them apart, and lower layers and n-grams are
    noise: then it is logistic regression on each source's first view and the dense views that cost nothing.

    Equal macro-F1 (to four places) is decided by log loss. The folds are the same for all, and the scores
    come from the passes that choose the penalties, so only the winner is fitted to all rows afterwards (the
    stack is fitted at once). With one view there is nothing to stack.

    Parameters
    ----------
    widths : sequence of int, optional
        Columns of each block, in order; one block by default.
    views, sources
        As in `StackHead`.
    cv : int
    class_weight : "balanced", dict or None
    random_state : int

    Attributes
    ----------
    choice_ : str
        "logistic", "ridge" or "stack"; "few" is logistic regression where rows are few.
    blocks_ : list of int
        Numbers of the blocks that are read, ascending.
    cv_scores_ : dict
        Per candidate its out-of-fold "macro_f1" and "log_loss".
    head_ : LogisticHead, RidgeHead or StackHead
    selection_ : list of dict
        What each view brings to the stack, chosen or not; see `Selection.steps`. Empty with one view.
    classes_ : ndarray of shape (K,)
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
        self._fit_rows(read_training_rows(self, X, y, groups=groups))
        return self

    def fit_out_of_fold(
        self, X: Matrix, y: ArrayLike, groups: ArrayLike | None = None, **options: Any
    ) -> Floats:
        """Fit, and return the out-of-fold probabilities (n, K) that the choice was made on."""
        probabilities: Floats = softmax(
            self._fit_rows(read_training_rows(self, X, y, groups=groups)).scores, axis=1
        )
        return probabilities

    def _fit_rows(self, rows: TrainingRows) -> CrossFit:
        views = resolve_views(self.views, len(rows.widths))
        matrix = split_blocks(rows.X, rows.widths)
        shared: dict[str, Any] = {
            "cv": self.cv,
            "class_weight": self.class_weight,
            "random_state": self.random_state,
        }
        found: dict[str, CrossFit] = {}
        heads: dict[str, Any] = {}

        self.selection_: list[dict[str, Any]] = []
        self.blocks_ = list(range(len(rows.widths)))
        self.classes_ = rows.classes
        plan = plan_folds(
            rows.y, groups=rows.groups, cv=self.cv, random_state=self.random_state, every_row=True
        )
        if len(views) > 1 and len(rows.y) < FEW_ROWS * len(rows.classes):
            return self._fit_few(rows, views, plan)
        found["logistic"] = cross_fit_logistic(matrix, rows, plan=plan)
        heads["logistic"] = LogisticHead(rows.widths, **shared)
        heads["ridge"] = RidgeHead(rows.widths, **shared)
        ridge = heads["ridge"]._cross_fit(matrix, rows, plan)
        found["ridge"] = ridge._replace(scores=heads["ridge"]._calibrate_scores(ridge, rows))
        if len(views) > 1:
            heads["stack"] = StackHead(rows.widths, views=views, sources=self.sources, **shared)
            heads["stack"].n_features_in_ = self.n_features_in_
            found["stack"] = heads["stack"]._fit_rows(rows, plan)
            self.selection_ = heads["stack"].selection_

        self.cv_scores_ = {name: _score(cross, rows) for name, cross in found.items()}
        self.choice_ = min(
            self.cv_scores_,
            key=lambda name: (
                -round(self.cv_scores_[name]["macro_f1"], 4),
                self.cv_scores_[name]["log_loss"],
            ),
        )
        self.head_ = heads[self.choice_]
        self.head_.n_features_in_ = self.n_features_in_
        if self.choice_ == "logistic":
            self.head_._fit_all(matrix, rows, C=found["logistic"].strength)
        elif self.choice_ == "ridge":
            self.head_._fit_all(matrix, rows, found=ridge)
        else:
            self.blocks_ = self.head_.blocks_
        self.widths_ = rows.widths
        return found[self.choice_]

    def _fit_few(self, rows: TrainingRows, views: Sequence[tuple[int, ...]], plan: FoldPlan) -> CrossFit:
        """Fit logistic regression to the views that few rows can make something of."""
        kept: list[tuple[int, ...]] = []
        seen: set[int] = set()
        for view, source in zip(views, resolve_sources(self.sources, len(views)), strict=True):
            own = [rows.widths[block] for block in view]
            if source is None and split_blocks(slice_blocks(rows.X, rows.widths, view), own).sparse is None:
                kept.append(view)
            elif source is not None and source not in seen:
                seen.add(source)
                kept.append(view)
        self.blocks_ = sorted({block for view in kept or views for block in view})
        widths = [rows.widths[block] for block in self.blocks_]
        matrix = split_blocks(slice_blocks(rows.X, rows.widths, self.blocks_), widths)
        found = cross_fit_logistic(matrix, rows, plan=plan)
        head = LogisticHead(widths, class_weight=self.class_weight)
        self.head_ = head._fit_all(matrix, rows, C=found.strength)
        self.choice_, self.widths_ = "few", rows.widths
        self.cv_scores_ = {"few": _score(found, rows)}
        return found

    def keep_blocks(self, kept: Sequence[int]) -> None:
        """Read matrices that hold the given blocks only, in this order; all of `blocks_` must be among them."""
        if self.choice_ == "stack":
            self.head_.keep_blocks(kept)
        place = {block: number for number, block in enumerate(kept)}
        self.blocks_ = [place[block] for block in self.blocks_]
        self.widths_ = tuple(self.widths_[block] for block in kept)
        self.n_features_in_ = sum(self.widths_)

    def predict_proba(self, X: Matrix) -> Floats:
        """Return probabilities (n, K), float64, columns in the order of `classes_`."""
        X = self._read(X)
        if self.choice_ == "few":
            X = slice_blocks(X, self.widths_, self.blocks_)
        probabilities: Floats = self.head_.predict_proba(X)
        return probabilities


def _score(cross: CrossFit, rows: TrainingRows) -> dict[str, float]:
    predicted = cross.scores.argmax(axis=1)
    return {
        "macro_f1": float(f1_score(rows.y, predicted, average="macro", zero_division=0)),
        "log_loss": measure_log_loss(cross.scores, rows.y, np.ones(len(rows.y))),
    }
