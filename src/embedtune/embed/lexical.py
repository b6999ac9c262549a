"""LexicalEncoder: texts to TF-IDF weights of their words and character n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.validation import check_is_fitted

from embedtune.embed.texts import check_texts
from embedtune.errors import DataError


class LexicalEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Weigh word n-grams and character n-grams (inside word bounds) by sublinear TF-IDF, rows of length 1 each.

    Parameters
    ----------
    word_ngrams : tuple of (int, int)
        Shortest and longest word n-gram.
    character_ngrams : tuple of (int, int)
        Shortest and longest character n-gram.
    min_texts : int
        An n-gram counts only if at least this many of the fitted texts hold it. Where fewer texts are fitted,
        every n-gram counts.
    max_features : int or None
        Most n-grams kept per block, the most frequent first.

    Attributes
    ----------
    words_, characters_ : TfidfVectorizer
    widths_ : tuple of int
        Columns of the word block and of the character block.
    """

    def __init__(
        self,
        *,
        word_ngrams: tuple[int, int] = (1, 2),
        character_ngrams: tuple[int, int] = (2, 5),
        min_texts: int = 1,
        max_features: int | None = 200_000,
    ) -> None:
        self.word_ngrams = word_ngrams
        self.character_ngrams = character_ngrams
        self.min_texts = min_texts
        self.max_features = max_features

    def fit(self, X: Sequence[str], y: Any = None) -> Self:
        """Learn the vocabulary and how rare each n-gram is.

        Raises
        ------
        DataError
            If `X` isn't made of strings, or no text holds a word.
        """
        self._fit(X)
        return self

    def fit_transform(self, X: Sequence[str], y: Any = None) -> sp.csr_matrix:
        """Fit, and transform the same texts without reading them twice; raises as `fit` does."""
        return self._fit(X)

    def transform(self, X: Sequence[str]) -> sp.csr_matrix:
        """Weigh the n-grams of texts.

        Returns
        -------
        scipy.sparse.csr_matrix of float32, shape (n_texts, sum of widths_)
            n-grams that weren't fitted are left out.

        Raises
        ------
        DataError
            If `X` isn't made of strings.
        sklearn.exceptions.NotFittedError
            Before `fit`.
        """
        check_is_fitted(self)
        texts = check_texts(X)
        if not texts:
            return sp.csr_matrix((0, sum(self.widths_)), dtype=np.float32)
        return _join(self.words_.transform(texts), self.characters_.transform(texts))

    def dump_vocabulary(self) -> dict[str, dict[str, list[Any]]]:
        """Return what `fit` learned, JSON-able: each block's ``terms``, in column order, and their ``idf``."""
        check_is_fitted(self)
        return {
            name: {"terms": vectorizer.get_feature_names_out().tolist(), "idf": vectorizer.idf_.tolist()}
            for name, vectorizer in (("words", self.words_), ("characters", self.characters_))
        }

    def load_vocabulary(self, vocabulary: dict[str, dict[str, list[Any]]]) -> Self:
        """Take what `dump_vocabulary` returned, instead of fitting."""
        self.words_, self.characters_ = self._make_vectorizer(), self._make_vectorizer(characters=True)
        for name, vectorizer in (("words", self.words_), ("characters", self.characters_)):
            terms = vocabulary[name]["terms"]
            vectorizer.vocabulary = {term: column for column, term in enumerate(terms)}
            vectorizer.idf_ = np.asarray(vocabulary[name]["idf"], dtype=np.float32)
        self.widths_ = (len(vocabulary["words"]["terms"]), len(vocabulary["characters"]["terms"]))
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    def _make_vectorizer(self, *, characters: bool = False, **settings: Any) -> TfidfVectorizer:
        if characters:
            settings |= {"analyzer": "char_wb", "ngram_range": self.character_ngrams}
        else:
            # One-letter words, signs and figures count too: "$", "%", "5".
            settings |= {"token_pattern": r"(?u)\w+|[^\w\s]", "ngram_range": self.word_ngrams}
        return TfidfVectorizer(sublinear_tf=True, dtype=np.float32, lowercase=True, **settings)

    def _fit(self, X: Sequence[str]) -> sp.csr_matrix:
        texts = check_texts(X)
        settings: dict[str, Any] = {
            "min_df": min(self.min_texts, max(len(texts), 1)),
            "max_features": self.max_features,
        }
        self.words_ = self._make_vectorizer(**settings)
        self.characters_ = self._make_vectorizer(characters=True, **settings)
        try:
            words, characters = self.words_.fit_transform(texts), self.characters_.fit_transform(texts)
        except ValueError as error:
            if "vocabulary" not in str(error) and "no terms remain" not in str(error).lower():
                raise
            raise DataError(
                f"no n-gram is left in {len(texts)} texts with min_texts {self.min_texts}: "
                "give texts with words in them, or lower min_texts."
            ) from error
        self.widths_ = (words.shape[1], characters.shape[1])
        return _join(words, characters)


def _join(words: Any, characters: Any) -> sp.csr_matrix:
    return sp.csr_matrix(sp.hstack([words, characters], format="csr", dtype=np.float32))
