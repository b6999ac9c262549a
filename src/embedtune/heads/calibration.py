"""Calibrator: what a head's probabilities are worth, learned on rows the head hasn't seen."""

from __future__ import annotations

from typing import Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from sklearn.base import BaseEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import f1_score
from sklearn.utils.validation import check_is_fitted

from embedtune.errors import ConfigError, suggest_nearest
from embedtune.heads.blocks import Floats, Ints
from embedtune.heads.crossfit import assign_folds

Method: TypeAlias = Literal["auto", "temperature", "adaptive", "isotonic", "none"]
METHODS = ("auto", "temperature", "adaptive", "isotonic", "none")
Correction: TypeAlias = float | NDArray[np.float64] | list[IsotonicRegression] | None

#: Log losses that differ by less, in nats, don't decide.
NEAR = 5e-4
#: Temperatures are sought between the exponentials of these.
_LOG_TEMPERATURES = (-3.0, 3.0)
#: Fewer rows than this don't draw a curve.
MIN_CURVE_ROWS = 200
#: Inverse variance of the prior of an adaptive temperature's slope and bend.
_PRECISION = 4.0
_TINY = 1e-12


class Calibrator(BaseEstimator):  # type: ignore[misc]
    """Map a classifier's probabilities to calibrated ones, and to sets that hold the true label with a given chance.

    Parameters
    ----------
    method : {"auto", "temperature", "adaptive", "isotonic", "none"}
        Temperature scaling divides the log-probabilities by one number. An adaptive temperature is a row's own: its
        logarithm is quadratic in u, the logarithm of 1 + how far the row's two highest log-probabilities lie apart.
        Isotonic regression maps each label's probability by an increasing step function, then scales them to sum to 1.
        ``"auto"`` takes the simplest, in this order after none, whose cross-validated log loss is within `NEAR` of the
        lowest; the last two only from `MIN_CURVE_ROWS` rows, and isotonic regression, which may change the likeliest
        label, only if out-of-fold macro-F1 doesn't fall by it.
    cv : int
        Folds of that choice.
    random_state : int
        Seeds the folds.

    Attributes
    ----------
    method_ : str
        The method taken.
    temperature_ : float or None
    coefficients_ : ndarray of float64, shape (4,), or None
        Of an adaptive temperature's logarithm: at u = 0, and by u and u²; then the highest u fitted to, beyond which it
        stays as it is there.
    curves_ : list of IsotonicRegression or None
        One per label.
    log_losses_ : dict of str to float
        By method, in nats, cross-validated.
    conformity_ : ndarray of float64, shape (n,)
        Calibrated probabilities of the true labels, each by a mapping fitted without its row, ascending.

    References
    ----------
    Guo et al. 2017, "On Calibration of Modern Neural Networks"; Tomani, Cremers and Buettner 2022, "Parameterized
    Temperature Scaling for Boosting the Expressive Power in Post-Hoc Uncertainty Calibration"; Zadrozny and Elkan 2002,
    "Transforming Classifier Scores into Accurate Multiclass Probability Estimates"; Sadinle, Lei and Wasserman 2019,
    "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels" (the sets).
    """

    def __init__(self, method: Method = "auto", *, cv: int = 5, random_state: int = 0) -> None:
        self.method = method
        self.cv = cv
        self.random_state = random_state

    def fit(self, probabilities: Floats, y: Ints, groups: NDArray[Any] | None = None) -> Self:
        """Fit to out-of-fold probabilities (n, K) and the true columns `y` (n,); rows of one group share a fold.

        Raises
        ------
        ConfigError
            If the method is unknown.
        """
        self.fit_transform(probabilities, y, groups)
        return self

    def fit_transform(
        self, probabilities: Floats, y: Ints, groups: NDArray[Any] | None = None
    ) -> NDArray[np.float64]:
        """Fit, and return these rows' calibrated probabilities (n, K), each by a mapping fitted without its row."""
        if self.method not in METHODS:
            raise ConfigError(
                f"calibration {self.method!r} is unknown{suggest_nearest(str(self.method), METHODS)}: "
                f"choose one of {', '.join(METHODS)}."
            )
        y = np.asarray(y)
        folds = assign_folds(y, groups=groups, n_folds=self.cv, random_state=self.random_state)
        methods: list[str] = [self.method]
        if self.method == "auto":
            curves = ["adaptive", "isotonic"] if len(y) >= MIN_CURVE_ROWS else []
            methods = ["none", "temperature", *curves]
        found: dict[str, NDArray[np.float64]] = {}
        for method in methods:
            mapped = np.array(probabilities, dtype=np.float64)
            for seen, unseen in folds:
                mapped[unseen] = _apply(_fit(method, probabilities[seen], y[seen]), probabilities[unseen])
            found[method] = mapped
        self.log_losses_ = {method: _measure(mapped, y) for method, mapped in found.items()}
        if (
            "isotonic" in methods
            and self.method == "auto"
            and _score(found["isotonic"], y) < _score(found["none"], y)
        ):
            methods.remove("isotonic")
        enough = min(self.log_losses_[method] for method in methods) + NEAR
        self.method_ = next(method for method in methods if self.log_losses_[method] <= enough)
        mapping = _fit(self.method_, probabilities, y)
        self.temperature_ = mapping if isinstance(mapping, float) else None
        self.coefficients_ = mapping if isinstance(mapping, np.ndarray) else None
        self.curves_ = mapping if isinstance(mapping, list) else None
        self.conformity_ = np.sort(found[self.method_][np.arange(len(y)), y])
        return found[self.method_]

    def transform(self, probabilities: Floats) -> NDArray[np.float64]:
        """Return calibrated probabilities, (n, K)."""
        check_is_fitted(self, "method_")
        mapping = self.curves_ if self.coefficients_ is None else self.coefficients_
        return _apply(self.temperature_ if mapping is None else mapping, probabilities)

    def find_threshold(self, coverage: float) -> float:
        """Return the least calibrated probability at which a label belongs to a set.

        Sets of all labels at or above it hold the true one with probability `coverage` or more, on average over new
        rows that are exchangeable with the fitted ones. 0 where there are too few rows to promise it.

        Raises
        ------
        ConfigError
            If `coverage` is not between 0 and 1.
        """
        check_is_fitted(self, "conformity_")
        if not 0 < coverage < 1:
            raise ConfigError(
                f"coverage {coverage!r} is out of range: give a share between 0 and 1, such as 0.9."
            )
        n_missed = int(np.floor((len(self.conformity_) + 1) * (1 - coverage) + _TINY))
        return 0.0 if n_missed < 1 else float(self.conformity_[min(n_missed, len(self.conformity_)) - 1])


def find_sets(probabilities: Floats, threshold: float) -> NDArray[np.bool_]:
    """Return which labels belong to each row's set, (n, K): those at or above the threshold, the likeliest always."""
    probabilities = np.asarray(probabilities)
    chosen: NDArray[np.bool_] = probabilities >= threshold
    chosen[np.arange(len(chosen)), probabilities.argmax(axis=1)] = True
    return chosen


def _fit(method: str, probabilities: Floats, y: Ints) -> Correction:
    if method == "none":
        return None
    if method == "temperature":
        return _fit_temperature(probabilities, y)
    if method == "adaptive":
        return _fit_adaptive(probabilities, y)
    rest = 1 / (len(y) + 2)  # no label is ever ruled out, nor certain
    return [
        IsotonicRegression(y_min=rest, y_max=1 - rest, out_of_bounds="clip").fit(
            probabilities[:, label], y == label
        )
        for label in range(probabilities.shape[1])
    ]


def _fit_temperature(probabilities: Floats, y: Ints) -> float:
    logs = np.log(np.maximum(probabilities, _TINY))

    def measure(log_temperature: float) -> float:
        return _measure(_sharpen(logs, np.exp(log_temperature)), y)

    return float(np.exp(minimize_scalar(measure, bounds=_LOG_TEMPERATURES, method="bounded").x))


def _fit_adaptive(probabilities: Floats, y: Ints) -> NDArray[np.float64]:
    """Return the coefficients of lowest log loss; one temperature where a surer row would not stay the surer one."""
    logs = np.log(np.maximum(probabilities, _TINY))
    logs -= logs.max(axis=1, keepdims=True)
    rows = np.arange(len(y))
    u = _measure_margins(logs)
    powers = np.vander(u, 3, increasing=True)

    def evaluate(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        temperature = np.exp(powers @ at)[:, None]
        sharpened = _sharpen(logs, temperature)
        slope = (logs[rows, y] - (sharpened * logs).sum(axis=1)) / temperature[:, 0]
        value = -np.log(np.maximum(sharpened[rows, y], _TINY)).sum() + _PRECISION / 2 * at[1:] @ at[1:]
        return value, slope @ powers + _PRECISION * np.array([0.0, *at[1:]])

    found = minimize(evaluate, np.zeros(3), jac=True, method="L-BFGS-B", bounds=[_LOG_TEMPERATURES] * 3).x
    steps = np.linspace(0, u.max(initial=0.0), 200)
    margins = np.expm1(steps) / np.exp(np.vander(steps, 3, increasing=True) @ found)
    if np.any(np.diff(margins) < 0):
        found = np.array([np.log(_fit_temperature(probabilities, y)), 0.0, 0.0])
    return np.append(found, steps[-1])


def _measure_margins(logs: Floats) -> NDArray[np.float64]:
    """Return the logarithm of 1 + how far each row's two highest log-probabilities lie apart, (n,)."""
    second, first = np.partition(logs, -2, axis=1)[:, -2:].T
    margins: NDArray[np.float64] = np.log1p(first - second)
    return margins


def _apply(mapping: Correction, probabilities: Floats) -> NDArray[np.float64]:
    given = np.asarray(probabilities, dtype=np.float64)
    if mapping is None or not len(given):
        return given
    if not isinstance(mapping, list):
        logs = np.log(np.maximum(given, _TINY))
        if isinstance(mapping, float):
            return _sharpen(logs, mapping)
        u = np.minimum(_measure_margins(logs), mapping[3])
        return _sharpen(logs, np.exp(np.vander(u, 3, increasing=True) @ mapping[:3])[:, None])
    mapped = np.column_stack([curve.predict(given[:, k]) for k, curve in enumerate(mapping)])
    scaled: NDArray[np.float64] = mapped / mapped.sum(axis=1, keepdims=True)
    return scaled


def _sharpen(logs: Floats, temperature: float | Floats) -> NDArray[np.float64]:
    scaled = logs / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    sharpened: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return sharpened


def _score(probabilities: Floats, y: Ints) -> float:
    return float(f1_score(y, probabilities.argmax(axis=1), average="macro", zero_division=0))


def _measure(probabilities: Floats, y: Ints) -> float:
    return float(-np.log(np.maximum(probabilities[np.arange(len(y)), y], _TINY)).mean())
