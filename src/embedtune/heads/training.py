"""What every head does with its training rows before it fits, and with the classes it learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, validate_data

from embedtune.errors import ConfigError, DataError
from embedtune.heads.blocks import Floats, Ints, Matrix, resolve_widths

#: How classes count in the loss: None as they come, "balanced" all alike, or a weight per class.
ClassWeight: TypeAlias = Literal["balanced"] | Mapping[Any, float] | None


class TrainingRows(NamedTuple):
    """Checked training rows: `X` (n, n_features) float32, dense or CSR; `y` numbers into `classes`."""

    X: Matrix
    y: Ints
    groups: Ints | None
    classes: NDArray[Any]
    sample_weight: Floats
    widths: tuple[int, ...]


def read_training_rows(head: Any, X: Matrix, y: ArrayLike, *, groups: ArrayLike | None) -> TrainingRows:
    """Check what `fit` was given, and set `n_features_in_` on `head`, which has widths and class_weight.

    Raises
    ------
    ConfigError
        If the widths don't fit the matrix.
    DataError
        If there is only one class.
    """
    X, y = validate_data(head, X, y, accept_sparse="csr", dtype=np.float32)
    check_classification_targets(y)
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"a head needs two classes to tell apart, got 1 class: {classes.tolist()}.")
    numbers = None
    if groups is not None:
        check_consistent_length(X, groups)
        numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    weight = compute_sample_weight(head.class_weight, y)
    return TrainingRows(X, codes, numbers, classes, weight, resolve_widths(head.widths, X.shape[1]))


def check_strength(name: str, value: Any) -> None:
    """Raise ConfigError unless `value` is "auto" or a positive number."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if value != "auto" and not (is_number and value > 0):
        raise ConfigError(f"{name} is {value!r}: give a positive number or 'auto'.")


def check_folds(cv: Any) -> None:
    """Raise ConfigError unless `cv` is a whole number from 2."""
    if not isinstance(cv, int | np.integer) or isinstance(cv, bool) or cv < 2:
        raise ConfigError(f"cv is {cv!r}: give a whole number of folds, 2 or more.")
