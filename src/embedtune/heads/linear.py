"""Linear heads: logistic regression, ridge, and the ready-made head of a fine-tuned model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import softmax

from embedtune.errors import ConfigError
from embedtune.heads.base import Head
from embedtune.heads.blocks import BlockMatrix, Floats, Ints, Matrix, fit_scale, split_blocks
from embedtune.heads.crossfit import (
    CrossFit,
    FoldPlan,
    OpenPath,
    cross_fit,
    measure_log_loss,
    plan_folds,
)
from embedtune.heads.multinomial import Linear, fit_multinomial
from embedtune.heads.ridge import open_ridge_path
from embedtune.heads.training import (
    ClassWeight,
    TrainingRows,
    check_strength,
    read_training_rows,
)

#: Inverse penalty strengths tried, the strongest penalty first.
C_GRID = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
#: Penalty strengths tried, likewise.
ALPHA_GRID = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)


class LinearClassifier(Head):
    """What the linear heads share once fitted: `coef_` (K, n_features), `intercept_` (K,), `classes_`.

    Both act on the columns as given, dense or sparse; probabilities are the softmax of the scores.
    """

    coef_: Floats
    intercept_: Floats
    classes_: NDArray[Any]

    def compute_scores(self, X: Matrix) -> Floats:
        """Return the class scores, (n, K) float64, with two classes too; columns follow `classes_`."""
        X = self._read(X)
        return _multiply_rows(X, self.coef_.T) + self.intercept_

    def decision_function(self, X: Matrix) -> Floats:
        """Return scores (n, K), or (n,) with two classes: the second's minus the first's."""
        scores = self.compute_scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X: Matrix) -> Floats:
        """Return probabilities (n, K), float64, columns in the order of `classes_`."""
        probabilities: Floats = softmax(self.compute_scores(X), axis=1)
        return probabilities


class LogisticHead(LinearClassifier):
    """Multinomial logistic regression, each block standardised apart.

    Dense blocks are standardised per column and divided by the square root of their width, so a wide block
    doesn't drown a narrow one; sparse blocks (under 10 % non-zero) stay as they are.

    Parameters
    ----------
    widths : sequence of int, optional
        Columns of each block, in order; one block by default.
    C : float or "auto"
        Inverse strength of the L2 penalty. "auto" takes the one of `C_GRID` with the lowest out-of-fold log
        loss (a proper score, steadier than accuracy or F1) on at most 4,000 rows.
    cv : int
        Folds: stratified, and whole groups where `fit` is given them.
    class_weight : "balanced", dict or None
    random_state : int
        Seeds the folds and the choice of those 4,000 rows.

    Attributes
    ----------
    C_ : float
    coef_ : ndarray of shape (K, n_features), float64
    intercept_ : ndarray of shape (K,), float64
    classes_ : ndarray of shape (K,)
    """

    def __init__(
        self,
        widths: Sequence[int] | None = None,
        *,
        C: float | Literal["auto"] = "auto",
        cv: int = 5,
        class_weight: ClassWeight = None,
        random_state: int = 0,
    ) -> None:
        self.widths = widths
        self.C = C
        self.cv = cv
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Matrix, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit to `X` (n, n_features), dense or CSR, and labels `y` (n,); rows of one group share a fold.

        Raises
        ------
        ConfigError
            If a parameter is out of range or the widths don't fit `X`.
        DataError
            If there is one class only, or one group.
        """
        rows = read_training_rows(self, X, y, groups=groups)
        matrix = split_blocks(rows.X, rows.widths)
        check_strength("C", self.C)
        C = self.C
        if C == "auto":
            plan = plan_folds(
                rows.y, groups=rows.groups, cv=self.cv, random_state=self.random_state, every_row=False
            )
            C = cross_fit_logistic(matrix, rows, plan=plan).strength
        return self._fit_all(matrix, rows, C=C)

    def fit_out_of_fold(
        self, X: Matrix, y: ArrayLike, groups: ArrayLike | None = None, **options: Any
    ) -> Floats:
        """Fit, and return the out-of-fold probabilities (n, K) at the same C."""
        rows = read_training_rows(self, X, y, groups=groups)
        matrix = split_blocks(rows.X, rows.widths)
        check_strength("C", self.C)
        plan = plan_folds(
            rows.y, groups=rows.groups, cv=self.cv, random_state=self.random_state, every_row=True
        )
        strengths = C_GRID if self.C == "auto" else (self.C,)
        found = cross_fit_logistic(matrix, rows, plan=plan, strengths=strengths)
        self._fit_all(matrix, rows, C=found.strength)
        probabilities: Floats = softmax(found.scores, axis=1)
        return probabilities

    def _fit_all(self, matrix: BlockMatrix, rows: TrainingRows, *, C: float) -> Self:
        scale = fit_scale(matrix)
        step = open_logistic_path(len(rows.classes))(scale.apply(matrix), rows.y, rows.sample_weight)
        self.n_features_in_ = matrix.n_columns
        self.C_ = C
        self.classes_ = rows.classes
        weights, self.intercept_ = scale.undo(matrix, *step(C))
        self.coef_ = weights.T
        return self


class RidgeHead(LinearClassifier):
    """Ridge regression on the classes' indicators, its scores calibrated to probabilities.

    Blocks are standardised as in `LogisticHead`. Out-of-fold scores choose alpha and teach a small
    multinomial regression to read scores as logits; being linear too, it is folded into `coef_`. Up to 3,072
    columns, or 2,048 rows, the solution is exact; beyond, it is a Nyström approximation.

    Parameters
    ----------
    widths : sequence of int, optional
        Columns of each block, in order; one block by default.
    alpha : float or "auto"
        Strength of the L2 penalty. "auto" takes the one of `ALPHA_GRID` with the lowest log loss of the
        calibrated out-of-fold scores, on at most 4,000 rows.
    cv : int
        Folds: stratified, and whole groups where `fit` is given them.
    class_weight : "balanced", dict or None
    random_state : int

    Attributes
    ----------
    alpha_ : float
    coef_ : ndarray of shape (K, n_features), float64
    intercept_ : ndarray of shape (K,), float64
    classes_ : ndarray of shape (K,)
    """

    def __init__(
        self,
        widths: Sequence[int] | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        cv: int = 5,
        class_weight: ClassWeight = None,
        random_state: int = 0,
    ) -> None:
        self.widths = widths
        self.alpha = alpha
        self.cv = cv
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Matrix, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit to `X` (n, n_features), dense or CSR, and labels `y` (n,); rows of one group share a fold.

        Raises
        ------
        ConfigError
            If a parameter is out of range or the widths don't fit `X`.
        DataError
            If there is one class only, or one group.
        """
        self.fit_out_of_fold(X, y, groups)
        return self

    def fit_out_of_fold(
        self, X: Matrix, y: ArrayLike, groups: ArrayLike | None = None, **options: Any
    ) -> Floats:
        """Fit, and return the calibrated out-of-fold probabilities (n, K)."""
        rows = read_training_rows(self, X, y, groups=groups)
        matrix = split_blocks(rows.X, rows.widths)
        check_strength("alpha", self.alpha)
        plan = plan_folds(
            rows.y, groups=rows.groups, cv=self.cv, random_state=self.random_state, every_row=True
        )
        found = self._cross_fit(matrix, rows, plan)
        self._fit_all(matrix, rows, found=found)
        probabilities: Floats = softmax(self._calibrate_scores(found, rows), axis=1)
        return probabilities

    def _cross_fit(self, matrix: BlockMatrix, rows: TrainingRows, plan: FoldPlan) -> CrossFit:
        n_classes = len(rows.classes)

        def measure(scores: Floats, y: Ints, sample_weight: Floats) -> float:
            calibrated = _calibrate(scores, y, n_classes, sample_weight)
            return measure_log_loss(scores @ calibrated.weights + calibrated.intercept, y, sample_weight)

        return cross_fit(
            matrix,
            rows.y,
            plan=plan,
            n_classes=n_classes,
            sample_weight=rows.sample_weight,
            strengths=ALPHA_GRID if self.alpha == "auto" else (self.alpha,),
            open_path=open_ridge_path(n_classes, random_state=self.random_state),
            measure=measure,
        )

    def _calibrate_scores(self, found: CrossFit, rows: TrainingRows) -> Floats:
        """Return the out-of-fold scores as logits, (n, K)."""
        calibrated = _calibrate(found.scores, rows.y, len(rows.classes), rows.sample_weight)
        return found.scores @ calibrated.weights + calibrated.intercept

    def _fit_all(self, matrix: BlockMatrix, rows: TrainingRows, *, found: CrossFit) -> None:
        scale = fit_scale(matrix)
        step = open_ridge_path(len(rows.classes), random_state=self.random_state)(
            scale.apply(matrix), rows.y, rows.sample_weight
        )
        calibrated = _calibrate(found.scores, rows.y, len(rows.classes), rows.sample_weight)
        weights, intercept = scale.undo(matrix, *step(found.strength))
        self.alpha_ = found.strength
        self.classes_ = rows.classes
        self.coef_ = (weights @ calibrated.weights).T
        self.intercept_ = intercept @ calibrated.weights + calibrated.intercept


class SoftmaxHead(LinearClassifier):
    """The linear head of a fine-tuned model: its weights are given, `fit` keeps them.

    Parameters
    ----------
    coef : array of shape (K, n_features)
    intercept : array of shape (K,)
    classes : sequence of K labels
        In the order of the rows of `coef`.
    """

    def __init__(
        self,
        coef: ArrayLike | None = None,
        intercept: ArrayLike | None = None,
        *,
        classes: Sequence[Any] | None = None,
    ) -> None:
        self.coef = coef
        self.intercept = intercept
        self.classes = classes

    @classmethod
    def from_weights(cls, weight: ArrayLike, bias: ArrayLike, classes: Sequence[Any]) -> Self:
        """Return a head ready to predict, from `weight` (K, n_features) and `bias` (K,)."""
        return cls(weight, bias, classes=classes)._take_weights()

    def fit(self, X: Matrix = None, y: ArrayLike | None = None, groups: ArrayLike | None = None) -> Self:
        """Check the given weights and take them; the rows aren't looked at.

        Raises
        ------
        ConfigError
            If weights are missing or their shapes disagree.
        """
        return self._take_weights()

    def _take_weights(self) -> Self:
        if self.coef is None or self.intercept is None or self.classes is None:
            raise ConfigError("SoftmaxHead needs coef, intercept and classes: use SoftmaxHead.from_weights.")
        coef = np.asarray(self.coef, dtype=np.float64)
        intercept = np.asarray(self.intercept, dtype=np.float64)
        if coef.ndim != 2 or len(coef) < 2 or intercept.shape != (len(coef),):
            raise ConfigError(
                f"coef has shape {coef.shape} and intercept {intercept.shape}: they must be (K, n_features) "
                "and (K,) with K of at least 2."
            )
        classes = np.asarray(self.classes)
        if classes.shape != intercept.shape or len(np.unique(classes)) != len(classes):
            raise ConfigError(f"classes {list(self.classes)} must be {len(coef)} different labels.")
        # scikit-learn's classes are sorted; the rows follow them
        order = np.argsort(classes)
        self.coef_, self.intercept_, self.classes_ = coef[order], intercept[order], classes[order]
        self.n_features_in_ = coef.shape[1]
        return self


def open_logistic_path(n_classes: int) -> OpenPath:
    """Return the solver that `cross_fit` steps along C with, each fit started from the one before."""

    def open_path(matrix: BlockMatrix, y: Ints, sample_weight: Floats) -> Callable[[float], Linear]:
        previous: Linear | None = None

        def step(C: float) -> Linear:
            nonlocal previous
            previous = fit_multinomial(
                matrix, y, n_classes=n_classes, C=C, sample_weight=sample_weight, start=previous
            )
            return previous

        return step

    return open_path


def cross_fit_logistic(
    matrix: BlockMatrix,
    rows: TrainingRows,
    *,
    plan: FoldPlan,
    strengths: Sequence[float] = C_GRID,
) -> CrossFit:
    """Cross-fit logistic regression: C chosen by log loss, and out-of-fold scores at that C."""
    return cross_fit(
        matrix,
        rows.y,
        plan=plan,
        n_classes=len(rows.classes),
        sample_weight=rows.sample_weight,
        strengths=strengths,
        open_path=open_logistic_path(len(rows.classes)),
        measure=measure_log_loss,
    )


def _calibrate(scores: Floats, y: Ints, n_classes: int, sample_weight: Floats) -> Linear:
    """Fit the K·K weights and K intercepts that turn out-of-fold scores (n, K) into logits."""
    matrix = split_blocks(scores + 0.0, (n_classes,))
    return fit_multinomial(matrix, y, n_classes=n_classes, C=1.0, sample_weight=sample_weight)


def _multiply_rows(X: Matrix, weights: Floats) -> Floats:
    """Return `X` times `weights` in float64, so a row's result doesn't depend on the rows beside it."""
    if sparse.issparse(X):
        return np.asarray(X @ weights)
    step = 1024
    parts = [X[i : i + step].astype(np.float64) @ weights for i in range(0, len(X), step)]
    return np.concatenate(parts) if parts else np.empty((0, weights.shape[1]))
