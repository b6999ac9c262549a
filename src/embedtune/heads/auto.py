"""AutoHead: a stack of all that is read, or what few rows can make something of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from embedtune.heads.base import Head
from embedtune.heads.blocks import Floats, Matrix, slice_blocks, split_blocks
from embedtune.heads.crossfit import plan_folds
from embedtune.heads.linear import LogisticHead, cross_fit_logistic
from embedtune.heads.stack import StackHead, resolve_sources, resolve_views
from embedtune.heads.training import ClassWeight, TrainingRows, read_training_rows

#: Rows per label, on average, below which nothing is chosen: with 32 a choice does worse than none, with 64 better
#: (benchmarks/choices.py).
FEW_ROWS = 48


class AutoHead(Head):
    """A stack; with fewer than `FEW_ROWS` rows per label, and several views, a logistic regression on some of them.

    So few rows can't tell what is worth reading, and lower layers and n-grams are noise to them: read are each source's
    first view and the dense views that cost nothing.

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
    head_ : StackHead or LogisticHead
    blocks_ : list of int
        Numbers of the blocks that are read, ascending.
    selection_ : list of dict
        As in `StackHead`; empty with few rows.
    classes_ : ndarray of shape (K,)
    """

    classes_: NDArray[Any]
    head_: StackHead | LogisticHead
    selection_: list[dict[str, Any]]

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
        """Fit, and return the out-of-fold probabilities (n, K)."""
        rows = read_training_rows(self, X, y, groups=groups)
        views = resolve_views(self.views, len(rows.widths))
        self.classes_, self.widths_ = rows.classes, rows.widths
        if len(views) > 1 and len(rows.y) < FEW_ROWS * len(rows.classes):
            return self._fit_few(rows, views)
        stack = StackHead(
            rows.widths,
            views=views,
            sources=self.sources,
            cv=self.cv,
            class_weight=self.class_weight,
            random_state=self.random_state,
        )
        stack.n_features_in_ = self.n_features_in_
        probabilities: Floats = softmax(stack.fit_rows(rows).scores, axis=1)
        self.head_, self.blocks_, self.selection_ = stack, stack.blocks_, stack.selection_
        return probabilities

    def _fit_few(self, rows: TrainingRows, views: Sequence[tuple[int, ...]]) -> Floats:
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
        plan = plan_folds(
            rows.y, groups=rows.groups, cv=self.cv, random_state=self.random_state, every_row=True
        )
        found = cross_fit_logistic(matrix, rows, plan=plan)
        self.head_ = LogisticHead(widths, class_weight=self.class_weight)._fit_all(
            matrix, rows, C=found.strength
        )
        self.selection_ = []
        probabilities: Floats = softmax(found.scores, axis=1)
        return probabilities

    def keep_blocks(self, kept: Sequence[int]) -> None:
        """Read matrices that hold the given blocks only, ascending; all of `blocks_` must be among them."""
        if isinstance(self.head_, StackHead):
            self.head_.keep_blocks(kept)
        place = {block: number for number, block in enumerate(kept)}
        self.blocks_ = [place[block] for block in self.blocks_]
        self.widths_ = tuple(self.widths_[block] for block in kept)
        self.n_features_in_ = sum(self.widths_)

    def predict_proba(self, X: Matrix) -> Floats:
        """Return probabilities (n, K), float64, columns in the order of `classes_`."""
        X = self._read(X)
        if not isinstance(self.head_, StackHead):
            X = slice_blocks(X, self.widths_, self.blocks_)
        probabilities: Floats = self.head_.predict_proba(X)
        return probabilities
