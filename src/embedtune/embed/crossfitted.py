"""CrossFittedEncoder: encoders fine-tuned on all folds but one each, read as one view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.base import clone

from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.texts import FrozenEncoder, check_texts
from embedtune.errors import ConfigError, DataError

#: Weights (n_labels, width) and biases (n_labels,), float32.
Head: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]


def list_backbones(views: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, TransformerEncoder]]:
    """Yield the backbones that named views read: ``NAME``, or ``NAME-fold0``, ``NAME-fold1`` … if cross-fitted."""
    for name, encoder in views:
        if isinstance(encoder, CrossFittedEncoder):
            yield from ((f"{name}-fold{k}", fold) for k, fold in enumerate(encoder.encoders))
        elif isinstance(encoder, TransformerEncoder):
            yield name, encoder


class CrossFittedEncoder(FrozenEncoder):
    """Read texts with backbones that were fine-tuned on them, without any having seen the text it reads.

    As in scikit-learn's TargetEncoder, ``fit_transform(X)`` is not ``fit(X).transform(X)``: the first reads each text
    with the one encoder that wasn't fine-tuned on it, the second reads new texts with all and averages.

    Parameters
    ----------
    encoders : sequence of TransformerEncoder
        Alike but for their adapters; encoder `k` was fine-tuned on every fold but `k`. Fine-tune them with the same
        seed: their heads then start from the same directions, and their embeddings are of a kind.
    folds : mapping of str to int, optional
        The fold of each text that any encoder was fine-tuned on. Only `fit_transform` needs it.
    heads : sequence of (weight, bias), optional
        Each encoder's own classification head, float32 (n_labels, width) and (n_labels,), on the last layer's pooled
        vector. Its log-probabilities are then a last block of columns: they are of a kind whatever the adapter.

    Attributes
    ----------
    layers_ : tuple of int
        As each encoder has them.
    widths_ : tuple of int
        As each encoder has them, and the number of labels where there are heads.
    n_parameters_ : int or None
        Parameters of all encoders together; None before all were loaded.

    References
    ----------
    Out-of-fold features: Wolpert, "Stacked generalization", Neural Networks 5 (1992).
    """

    def __init__(
        self,
        encoders: Sequence[TransformerEncoder],
        *,
        folds: Mapping[str, int] | None = None,
        heads: Sequence[Head] | None = None,
    ) -> None:
        self.encoders = encoders
        self.folds = folds
        self.heads = heads

    def fit(self, X: Sequence[str], y: Any = None) -> Self:
        """Do nothing: the encoders were fine-tuned before."""
        return self

    def fit_transform(self, X: Sequence[str], y: Any = None) -> NDArray[np.float32]:
        """Embed the texts that were fine-tuned on, each with the encoder that hasn't seen it.

        Returns
        -------
        ndarray of float32, shape (n_texts, sum of widths)

        Raises
        ------
        ConfigError
            If there are fewer than two encoders, or they read different layers.
        DataError
            If a text is in no fold, or in one without an encoder.
        """
        texts = check_texts(X)
        self._check()
        of_text = self.folds or {}
        for number, text in enumerate(texts):
            if of_text.get(text, -1) not in range(len(self.encoders)):
                raise DataError(
                    f"text {number} ({text!r:.40}) is in none of the {len(self.encoders)} folds: fit on the texts that "
                    "the encoders were fine-tuned on, and read others with transform."
                )
        fold = np.array([of_text[text] for text in texts], dtype=np.int64)
        embeddings = np.empty((len(texts), sum(self.widths_)), dtype=np.float32)
        for k in range(len(self.encoders)):
            rows = np.flatnonzero(fold == k)
            embeddings[rows] = self._read(k, [texts[row] for row in rows])
        return embeddings

    def transform(self, X: Sequence[str]) -> NDArray[np.float32]:
        """Embed new texts: the mean over all encoders, float32 (n_texts, sum of widths).

        Raises
        ------
        ConfigError
            If there are fewer than two encoders, or they read different layers.
        """
        texts = check_texts(X)
        self._check()
        total = np.zeros((len(texts), sum(self.widths_)), dtype=np.float32)
        for k in range(len(self.encoders)):
            total += self._read(k, texts)
        return total / np.float32(len(self.encoders))

    def find_cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which texts have more tokens than are read, shape (n_texts,); the encoders read alike."""
        return self.encoders[0].find_cut(texts)

    @property
    def layers_(self) -> tuple[int, ...]:
        """Hidden-state numbers from 0, in the order asked."""
        return self.encoders[0].layers_

    @property
    def widths_(self) -> tuple[int, ...]:
        """Columns per layer, and of the heads' log-probabilities."""
        own = () if self.heads is None else (len(self.heads[0][1]),)
        return (*self.encoders[0].widths_, *own)

    @property
    def n_parameters_(self) -> int | None:
        """Parameters of all encoders together; None before all were loaded."""
        counts = [encoder.n_parameters_ for encoder in self.encoders]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def _read(self, k: int, texts: list[str]) -> NDArray[np.float32]:
        """Return what encoder `k` reads of the texts, (n_texts, sum of widths)."""
        encoder = self.encoders[k]
        if self.heads is None:
            found: NDArray[np.float32] = encoder.transform(texts)
            return found
        last = clone(encoder).set_params(layers=(-1,)).layers_[0]
        if last not in encoder.layers_:  # one pass reads both
            encoder = clone(encoder).set_params(layers=(*encoder.layers_, last))
        embeddings: NDArray[np.float32] = encoder.transform(texts)
        width = encoder.widths_[0]
        place = encoder.layers_.index(last) * width
        weight, bias = self.heads[k]
        opinions = log_softmax(embeddings[:, place : place + width] @ weight.T + bias, axis=1)
        return np.hstack([embeddings[:, : width * len(self.layers_)], opinions])

    def _check(self) -> None:
        if self.heads is not None and len(self.heads) != len(self.encoders):
            raise ConfigError(
                f"cross-fitting has {len(self.encoders)} encoders and {len(self.heads)} heads: give one head per "
                "encoder."
            )
        if len(self.encoders) < 2:
            raise ConfigError(
                f"cross-fitting has {len(self.encoders)} encoders: give two or more, one per fold."
            )
        first = self.encoders[0]
        for k, encoder in enumerate(self.encoders):
            if (encoder.layers_, encoder.widths_) != (first.layers_, first.widths_):
                raise ConfigError(
                    f"encoder {k} reads layers {encoder.layers_} of widths {encoder.widths_}, and encoder 0 "
                    f"{first.layers_} of {first.widths_}: give encoders that differ in their adapters only."
                )
