"""What all heads share."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from embedtune.heads.blocks import Floats, Matrix
from embedtune.heads.crossfit import assign_folds

#: Folds of `fit_out_of_fold`, where a head's own cross-validation doesn't say.
N_FOLDS = 5


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier on one matrix, dense or CSR, whose `predict` follows `predict_proba`."""

    classes_: NDArray[Any]
    n_features_in_: int

    #: Threads that libraries may use in fit; NumPy, SciPy and torch each bring a pool of them, and on many small
    #: products they only wait for each other. None leaves them be.
    n_threads: ClassVar[int | None] = 1

    def fit_out_of_fold(
        self, X: Matrix, y: ArrayLike, groups: ArrayLike | None = None, **options: Any
    ) -> Floats:
        """Fit as `fit` does, and return the training rows' probabilities (n, K), each by a head without its fold.

        Settings that `fit` chose are kept in the folds: one choice among a few biases them negligibly.
        """
        self.fit(X, y, groups, **options)
        y = np.asarray(y)
        codes = np.searchsorted(self.classes_, y)
        numbers = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        found = np.zeros((len(y), len(self.classes_)))
        for seen, unseen in assign_folds(codes, groups=numbers, n_folds=N_FOLDS, random_state=0):
            head = self._pin().fit(X[seen], y[seen], None if groups is None else np.asarray(groups)[seen])
            columns = np.searchsorted(self.classes_, head.classes_)
            found[np.ix_(unseen, columns)] = head.predict_proba(X[unseen])
        return found

    def _pin(self) -> Any:
        """Return an unfitted copy with the settings that `fit` chose."""
        return clone(self)

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
