import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from embedtune.embed.lexical import LexicalEncoder
from embedtune.errors import ConfigError, DataError

TEXTS = ["Gold rose 5 %", "Gold fell 5 %", "Silver rose", "", "Silver fell"]


def test_transform_joins_a_word_and_a_character_block() -> None:
    encoder = LexicalEncoder()
    matrix = encoder.fit_transform(TEXTS)
    assert sp.issparse(matrix)
    assert matrix.format == "csr"
    assert matrix.dtype == np.float32
    assert matrix.shape == (len(TEXTS), sum(encoder.widths_))
    words = matrix[:, : encoder.widths_[0]]
    np.testing.assert_allclose(np.linalg.norm(words.toarray(), axis=1), [1, 1, 1, 0, 1], atol=1e-6)


def test_words_block_holds_signs_figures_and_pairs_in_lower_case() -> None:
    words = set(LexicalEncoder().fit(TEXTS).words_.get_feature_names_out())
    assert {"gold", "5", "%", "gold rose", "5 %"} <= words
    assert "Gold" not in words


def test_characters_block_stays_inside_words() -> None:
    characters = LexicalEncoder().fit(TEXTS).characters_.get_feature_names_out()
    assert {len(ngram) for ngram in characters} == {2, 3, 4, 5}
    assert not any(" " in ngram.strip() for ngram in characters)


def test_transform_equals_fit_transform_and_ignores_new_ngrams() -> None:
    encoder = LexicalEncoder()
    fitted = encoder.fit_transform(TEXTS)
    assert abs(encoder.transform(TEXTS) - fitted).max() < 1e-7
    assert encoder.transform(["zzz"]).nnz == 0
    assert encoder.transform([]).shape == (0, sum(encoder.widths_))


def test_fit_min_texts_and_max_features_bound_the_vocabulary() -> None:
    words = LexicalEncoder(min_texts=2).fit(TEXTS).words_.vocabulary_
    assert "silver" in words
    assert "gold rose" not in words
    assert LexicalEncoder(max_features=6).fit(TEXTS).widths_ == (6, 6)


def test_fit_texts_without_ngrams_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        LexicalEncoder().fit(["", " "])
    assert str(caught.value) == (
        "no n-gram is left in 2 texts with min_texts 1: give texts with words in them, or lower min_texts."
    )


def test_transform_before_fit_is_refused() -> None:
    with pytest.raises(NotFittedError):
        LexicalEncoder().transform(TEXTS)


def test_fit_refuses_what_is_no_string() -> None:
    with pytest.raises(DataError, match="text 1 is a NoneType"):
        LexicalEncoder().fit(["a", None])  # type: ignore[list-item]


def test_encoder_works_in_a_pipeline_and_clones() -> None:
    pipeline = make_pipeline(LexicalEncoder(min_texts=1), LogisticRegression())
    labels = ["up", "down", "up", "down", "down"]
    assert pipeline.fit(TEXTS, labels).predict(["copper rose"]).tolist() == ["up"]
    copy = clone(LexicalEncoder(min_texts=3))
    assert copy.get_params()["min_texts"] == 3
    assert not hasattr(copy, "widths_")


def test_n_components_gives_one_dense_block_with_the_same_inner_products() -> None:
    texts = TEXTS * 3
    sparse = LexicalEncoder().fit_transform(texts)
    encoder = LexicalEncoder(n_components=5)
    dense = encoder.fit_transform(texts)
    assert encoder.widths_ == (5,)
    assert dense.shape == (len(texts), 5)
    assert dense.dtype == np.float32
    # Five texts have rank four, so five components lose nothing.
    np.testing.assert_allclose(dense @ dense.T, (sparse @ sparse.T).toarray(), atol=1e-5)
    np.testing.assert_allclose(encoder.transform(texts), dense, atol=1e-6)
    assert encoder.transform([]).shape == (0, 5)


def test_n_components_beyond_the_rank_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        LexicalEncoder(n_components=9).fit(TEXTS)
    assert str(caught.value).startswith("n_components 9 is out of range for 5 texts with ")
    assert str(caught.value).endswith(" n-grams: set it to 1 to 5.")


def test_load_vocabulary_with_components_transforms_alike() -> None:
    encoder = LexicalEncoder(n_components=3)
    dense = encoder.fit_transform(TEXTS)
    loaded = LexicalEncoder(n_components=3).load_vocabulary(
        encoder.dump_vocabulary(), components=encoder.components_
    )
    np.testing.assert_allclose(loaded.transform(TEXTS), dense, atol=1e-6)
