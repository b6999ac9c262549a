"""LexicalEncoder: texts to TF-IDF weights of their words and character n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.validation import check_is_fitted

from embedtune.embed.texts import NamedColumns, check_texts
from embedtune.errors import ConfigError, DataError

Matrix: TypeAlias = sp.csr_matrix | NDArray[np.float32]


class LexicalEncoder(NamedColumns, BaseEstimator):  # type: ignore[misc]
    """Weigh word n-grams and character n-grams (inside word bounds) by sublinear TF-IDF, rows of length 1 each.

    With `n_components` the two sparse blocks become one dense block of that width (latent semantic analysis), for
    heads that need blocks of equal width.

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
    n_components : int, optional
        Keep the weights' projection on so many right singular vectors instead of the weights.

    Attributes
    ----------
    words_, characters_ : TfidfVectorizer
    components_ : ndarray of float32, shape (n_components, n_ngrams), or None
    widths_ : tuple of int
        Columns of the word block and of the character block, or `n_components`.

    References
    ----------
    Deerwester et al. 1990, "Indexing by Latent Semantic Analysis", JASIS 41(6).
    """

    def __init__(
        self,
        *,
        word_ngrams: tuple[int, int] = (1, 2),
        character_ngrams: tuple[int, int] = (2, 5),
        min_texts: int = 1,
        max_features: int | None = 200_000,
        n_components: int | None = None,
    ) -> None:
        self.word_ngrams = word_ngrams
        self.character_ngrams = character_ngrams
        self.min_texts = min_texts
        self.max_features = max_features
        self.n_components = n_components

    def fit(self, X: Sequence[str], y: Any = None) -> Self:
        """Learn the vocabulary and how rare each n-gram is.

        Raises
        ------
        DataError
            If `X` isn't made of strings, or no text holds a word.
        ConfigError
            If there are fewer n-grams than `n_components`.
        """
        self._fit(X)
        return self

    def fit_transform(self, X: Sequence[str], y: Any = None) -> Matrix:
        """Fit, and transform the same texts without reading them twice; raises as `fit` does."""
        return self._project(self._fit(X))

    def transform(self, X: Sequence[str]) -> Matrix:
        """Weigh the n-grams of texts.

        Returns
        -------
        scipy.sparse.csr_matrix of float32, shape (n_texts, sum of widths_)
            n-grams that weren't fitted are left out. With `n_components` an ndarray.

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
            empty = np.zeros((0, sum(self.widths_)), dtype=np.float32)
            return empty if self.components_ is not None else sp.csr_matrix(empty)
        return self._project(_join(self.words_.transform(texts), self.characters_.transform(texts)))

    def dump_vocabulary(self) -> dict[str, dict[str, list[Any]]]:
        """Return what `fit` learned, JSON-able: each block's ``terms``, in column order, and their ``idf``."""
        check_is_fitted(self)
        return {
            name: {"terms": vectorizer.get_feature_names_out().tolist(), "idf": vectorizer.idf_.tolist()}
            for name, vectorizer in (("words", self.words_), ("characters", self.characters_))
        }

    def load_vocabulary(
        self,
        vocabulary: dict[str, dict[str, list[Any]]],
        *,
        components: NDArray[np.float32] | None = None,
    ) -> Self:
        """Take what `dump_vocabulary` returned, and `components_`, instead of fitting.

        Raises
        ------
        ValueError
            If a weight isn't finite.
        """
        self.words_, self.characters_ = self._make_vectorizer(), self._make_vectorizer(characters=True)
        for name, vectorizer in (("words", self.words_), ("characters", self.characters_)):
            terms = vocabulary[name]["terms"]
            vectorizer.vocabulary = {term: column for column, term in enumerate(terms)}
            vectorizer.idf_ = np.asarray(vocabulary[name]["idf"], dtype=np.float32)
            if not np.isfinite(vectorizer.idf_).all():
                raise ValueError(f"the {name} have weights that aren't finite")
        self.components_ = components
        n_terms = tuple(len(vocabulary[name]["terms"]) for name in ("words", "characters"))
        self.widths_ = n_terms if components is None else (len(components),)
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
        joined = _join(words, characters)
        self.components_ = None if self.n_components is None else _find_components(joined, self.n_components)
        n_terms = (words.shape[1], characters.shape[1])
        self.widths_ = n_terms if self.components_ is None else (len(self.components_),)
        return joined

    def _project(self, joined: sp.csr_matrix) -> Matrix:
        return joined if self.components_ is None else np.asarray(joined @ self.components_.T)


def _join(words: Any, characters: Any) -> sp.csr_matrix:
    return sp.csr_matrix(sp.hstack([words, characters], format="csr", dtype=np.float32))


def _find_components(joined: sp.csr_matrix, n_components: int) -> NDArray[np.float32]:
    limit = min(joined.shape)
    if not 1 <= n_components <= limit:
        raise ConfigError(
            f"n_components {n_components} is out of range for {joined.shape[0]} texts with "
            f"{joined.shape[1]} n-grams: set it to 1 to {limit}."
        )
    svd = TruncatedSVD(n_components, random_state=0).fit(joined)
    # In row order: safetensors writes an array's memory as it lies.
    return np.ascontiguousarray(svd.components_, dtype=np.float32)
