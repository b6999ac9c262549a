"""What scikit-learn's own tools expect of encoders and of EmbedClassifier: one contract for all of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from embedtune import EmbedClassifier, LexicalEncoder, StaticEncoder, TransformerEncoder
from embedtune.embed.crossfitted import CrossFittedEncoder

SUBJECTS = ("sales", "profit", "orders", "output", "income", "demand")
TEXTS = [
    f"{subject} {move} {when}"
    for when in ("today", "again")
    for move in ("rose", "fell")
    for subject in SUBJECTS
]
LABELS = np.array(["up" if " rose " in text else "down" for text in TEXTS])


@pytest.fixture(params=["transformer", "cross-fitted", "static", "lexical", "projected"])
def encoder(request: pytest.FixtureRequest, tiny_bert: Path) -> Any:
    def read() -> TransformerEncoder:
        return TransformerEncoder(str(tiny_bert), layers=(-1, 1), max_length=16, device="cpu")

    makers: dict[str, Callable[[], Any]] = {
        "transformer": read,
        "cross-fitted": lambda: CrossFittedEncoder(
            [read(), read()], folds={text: number % 2 for number, text in enumerate(TEXTS)}
        ),
        "static": StaticEncoder,
        "lexical": LexicalEncoder,
        "projected": lambda: LexicalEncoder(n_components=3),
    }
    return makers[request.param]()


def as_array(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def test_columns_of_any_frame_are_read_alike(encoder: Any) -> None:
    expected = as_array(encoder.fit_transform(TEXTS))
    for column in (np.array(TEXTS), pd.Series(TEXTS), pd.Series(TEXTS, dtype="string"), pl.Series(TEXTS)):
        np.testing.assert_allclose(as_array(encoder.transform(column)), expected, atol=1e-5)


def test_clone_and_parameters_round_trip(encoder: Any) -> None:
    copy = clone(encoder)
    assert copy.get_params(deep=False).keys() == encoder.get_params(deep=False).keys()
    copy.set_params(**encoder.get_params(deep=False))
    again = pickle.loads(pickle.dumps(encoder.fit(TEXTS)))
    np.testing.assert_allclose(
        as_array(again.transform(TEXTS)), as_array(encoder.transform(TEXTS)), atol=1e-5
    )


def test_names_of_columns_are_as_many_as_columns(encoder: Any) -> None:
    matrix = encoder.fit_transform(TEXTS)
    names = encoder.get_feature_names_out()
    assert len(names) == matrix.shape[1] == len(set(names))
    assert names[0] == f"{type(encoder).__name__.lower()}0"


def test_frames_are_put_out_where_asked_for(encoder: Any) -> None:
    matrix = encoder.fit_transform(TEXTS)
    if sparse.issparse(matrix):
        with pytest.raises(ValueError, match="sparse"):
            encoder.set_output(transform="pandas").transform(TEXTS)
        return
    series = pd.Series(TEXTS, index=[f"row{i}" for i in range(len(TEXTS))])
    frame = encoder.set_output(transform="pandas").transform(series)
    assert (list(frame.index), list(frame.columns)) == (
        list(series.index),
        list(encoder.get_feature_names_out()),
    )
    np.testing.assert_allclose(frame.to_numpy(), matrix, atol=1e-5)
    assert isinstance(encoder.set_output(transform="polars").transform(TEXTS), pl.DataFrame)


def test_encoder_stands_in_column_transformer_and_grid_search(encoder: Any) -> None:
    frame = pd.DataFrame({"text": TEXTS, "number": range(len(TEXTS))})
    columns = ColumnTransformer([("text", encoder, "text")], remainder="passthrough")
    pipeline = make_pipeline(columns, LogisticRegression())
    found = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 10.0]}, cv=2, error_score="raise")
    assert found.fit(frame, LABELS).best_score_ >= 0.4
    assert columns.fit(frame).get_feature_names_out()[-1] == "remainder__number"
    assert cross_val_score(pipeline, frame, LABELS, cv=2, error_score="raise").shape == (2,)


def test_unfitted_lexical_encoder_has_no_names() -> None:
    with pytest.raises(NotFittedError):
        LexicalEncoder().get_feature_names_out()


def test_classifier_is_searched_through_the_parameters_of_its_views() -> None:
    classifier = EmbedClassifier([("words", LexicalEncoder()), ("static", StaticEncoder())], "logistic")
    assert classifier.get_params()["words__n_components"] is None
    search = GridSearchCV(
        classifier, {"words__n_components": [None, 2], "head": ["ridge"]}, cv=2, error_score="raise"
    )
    search.fit(pd.Series(TEXTS), pd.Series(LABELS))
    assert set(search.best_params_) == {"words__n_components", "head"}
    assert classifier.views[0][1].n_components is None  # the search worked on copies
    classifier.set_params(words=LexicalEncoder(n_components=2))
    assert classifier.get_params()["words__n_components"] == 2
    assert "views" in EmbedClassifier().get_params()
    assert "views" in EmbedClassifier([StaticEncoder()]).get_params()


def test_classifier_reads_frames_whatever_the_callers_output_is() -> None:
    views = [("words", LexicalEncoder()), ("static", StaticEncoder())]
    expected = EmbedClassifier(views, "logistic").fit(TEXTS, LABELS).predict_proba(TEXTS)
    with config_context(transform_output="pandas"):
        found = EmbedClassifier(views, "logistic").fit(pl.Series(TEXTS), pl.Series(LABELS.tolist()))
        np.testing.assert_allclose(found.predict_proba(pd.Series(TEXTS)), expected, atol=1e-9)
    assert list(found.classes_) == ["down", "up"]
    scores = cross_val_score(EmbedClassifier(views, "logistic"), TEXTS, LABELS, cv=3, scoring="neg_log_loss")
    assert np.isfinite(scores).all()
