"""What all heads share."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from embedtune.heads.blocks import Floats, Matrix


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier on one matrix, dense or CSR, whose `predict` follows `predict_proba`."""

    classes_: NDArray[Any]

    #: Threads that libraries may use in fit; NumPy, SciPy and torch each bring a pool of them, and on many small
    #: products they only wait for each other. None leaves them be.
    n_threads: ClassVar[int | None] = 1

    def predict_proba(self, X: Matrix) -> Floats:
        """Return probabilities (n, K), float64, columns in the order of `classes_`."""
        raise NotImplementedError

    def predict(self, X: Matrix) -> NDArray[Any]:
        """Return the likeliest class of each row."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def _read(self, X: Matrix) -> Matrix:
        """Check rows that are to be classified; raises scikit-learn's errors."""
        check_is_fitted(self)
        return validate_data(self, X, accept_sparse="csr", dtype=[np.float32, np.float64], reset=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
