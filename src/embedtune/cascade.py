"""CascadeClassifier: a cheap classifier answers what it is sure of, a dear one the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedtune.classifier import EmbedClassifier
from embedtune.embed.texts import check_texts
from embedtune.errors import ConfigError
from embedtune.heads.calibration import find_sets


class CascadeClassifier:
    """Ask the dear classifier only about texts of which the cheap one can't rule out all labels but one.

    Parameters
    ----------
    cheap, dear : EmbedClassifier
        Fitted, on the same labels; the cheap one calibrated.
    coverage : float
        Of the cheap one's sets of labels: the higher, the more texts go on.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    last_n_dear_ : int
        How many of the last call's texts the dear one was asked about.

    Raises
    ------
    ConfigError
        If their labels differ, or the cheap one has no sets.

    Examples
    --------
    >>> cascade = CascadeClassifier(load_bundle("runs/my/arms/floor"), load_bundle("runs/my/bundle"))  # doctest: +SKIP
    """

    def __init__(self, cheap: EmbedClassifier, dear: EmbedClassifier, *, coverage: float = 0.9) -> None:
        if list(cheap.classes_) != list(dear.classes_):
            raise ConfigError(
                f"the cheap classifier knows {list(cheap.classes_)}, the dear one {list(dear.classes_)}: "
                "train both on the same labels."
            )
        if cheap.calibrator_ is None:
            raise ConfigError(
                "the cheap classifier has no sets of labels: fit it with calibration 'auto', 'temperature' or "
                "'isotonic'."
            )
        self.cheap, self.dear = cheap, dear
        self.classes_ = cheap.classes_
        self.threshold = cheap.calibrator_.find_threshold(coverage)
        self.last_n_dear_ = 0

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return each text's probabilities (n, n_classes), by the classifier that answered it."""
        texts = check_texts(texts)
        probabilities = self.cheap.predict_proba(texts)
        open_rows = np.empty(0, np.intp)
        if texts:
            open_rows = np.flatnonzero(find_sets(probabilities, self.threshold).sum(axis=1) > 1)
        self.last_n_dear_ = len(open_rows)
        if len(open_rows):
            probabilities[open_rows] = self.dear.predict_proba([texts[row] for row in open_rows])
        return probabilities

    def predict(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return each text's most probable class, shape (n,)."""
        winners: NDArray[Any] = np.asarray(self.classes_)[self.predict_proba(texts).argmax(axis=1)]
        return winners
