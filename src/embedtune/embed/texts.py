"""What encoders accept as texts, and what those that learn nothing from them share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from embedtune.errors import DataError


def check_texts(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list.

    Parameters
    ----------
    texts : list, tuple, ndarray of shape (n_texts,) or Series of str

    Raises
    ------
    DataError
        If `texts` is a single string, isn't one-dimensional, or holds anything but strings.
    """
    if isinstance(texts, str | bytes):
        raise DataError(f"texts is a single {type(texts).__name__}, not a list: put it in a list, [text].")
    if getattr(texts, "ndim", 1) != 1:
        raise DataError(f"texts has {texts.ndim} dimensions, not 1: give one column of strings.")  # type: ignore[attr-defined]
    if not isinstance(texts, Iterable):
        raise DataError(
            f"texts is a {type(texts).__name__}, not a list of strings: give a list, array or Series."
        )
    rows = list(texts)
    for number, text in enumerate(rows):
        if not isinstance(text, str):
            raise DataError(
                f"text {number} is a {type(text).__name__} ({text!r:.40}), not a string: "
                "drop the row or convert it with str()."
            )
    return [str(text) for text in rows]


def find_distinct(texts: Sequence[str]) -> tuple[list[str], NDArray[np.intp]]:
    """Return the distinct texts in order of appearance, and each text's number among them."""
    numbers: dict[str, int] = {}
    index = np.fromiter((numbers.setdefault(t, len(numbers)) for t in texts), np.intp, count=len(texts))
    return list(numbers), index


class NamedColumns(ClassNamePrefixFeaturesOutMixin, TransformerMixin):  # type: ignore[misc]
    """What lets scikit-learn name an encoder's columns, and put them out as a pandas or polars frame (`set_output`)."""

    @property
    def _n_features_out(self) -> int:
        return sum(self.widths_)


class FrozenEncoder(NamedColumns, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn transformer of texts that is ready without being fitted."""

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.requires_fit = False
        return tags
