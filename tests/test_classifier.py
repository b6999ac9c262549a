from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from embedtune import EmbedClassifier, LexicalEncoder, TransformerEncoder, load_bundle
from embedtune.classifier import TOGETHER
from embedtune.embed.store import EmbeddingStore
from embedtune.errors import DataError
from embedtune.heads.stack import StackHead

UP = ["sales rose", "profit rose by 4 %", "orders rose again", "income rose a little", "the margin rose"]
DOWN = ["sales fell", "profit fell by 4 %", "orders fell again", "income fell a little", "the margin fell"]
FLAT = ["sales were flat", "profit was flat", "orders stayed flat", "income is flat", "the margin is flat"]
TEXTS = UP + DOWN + FLAT
LABELS = ["up"] * 5 + ["down"] * 5 + ["flat"] * 5


@pytest.fixture(scope="module")
def views(tiny_bert: Path, tiny_llama: Path) -> list[tuple[str, object]]:
    return [
        ("bert", TransformerEncoder(str(tiny_bert), layers=(-1, 1), max_length=32, precision="float32")),
        ("llama", TransformerEncoder(str(tiny_llama), pooling="last", max_length=32, precision="float32")),
        ("lexical", LexicalEncoder()),
    ]


@pytest.mark.parametrize("head", ["auto", "logistic", "ridge", "stack"])
def test_every_named_head_learns_from_joined_views(views: list[tuple[str, object]], head: str) -> None:
    classifier = EmbedClassifier(views, head).fit(TEXTS, LABELS)
    probabilities = classifier.predict_proba(TEXTS)
    assert probabilities.shape == (15, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert list(classifier.classes_) == ["down", "flat", "up"]
    assert classifier.score(TEXTS, LABELS) > 0.8


def test_cooccurrence_head_reads_layers_of_equal_width(views: list[tuple[str, object]]) -> None:
    classifier = EmbedClassifier(views[:2], "cooccurrence").fit(TEXTS, LABELS)
    assert classifier.score(TEXTS, LABELS) > 0.8


def test_predict_names_the_column_with_the_highest_probability() -> None:
    classifier = EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, LABELS)
    best = np.array(["down", "flat", "up"])[classifier.predict_proba(TEXTS).argmax(axis=1)]
    assert list(classifier.predict(TEXTS)) == list(best)


def test_head_may_be_any_scikit_learn_classifier() -> None:
    classifier = EmbedClassifier([LexicalEncoder()], LogisticRegression(C=100)).fit(TEXTS, LABELS)
    assert classifier.score(TEXTS, LABELS) == 1


def test_clone_and_params_round_trip(views: list[tuple[str, object]]) -> None:
    copy = clone(EmbedClassifier(views, "ridge", random_state=3))
    assert (copy.head, copy.random_state, [name for name, _ in copy.views]) == (
        "ridge",
        3,
        ["bert", "llama", "lexical"],
    )


def test_works_in_a_pipeline_and_a_grid_search() -> None:
    pipeline = make_pipeline(EmbedClassifier([LexicalEncoder()], "logistic"))
    search = GridSearchCV(pipeline, {"embedclassifier__head": ["logistic", "ridge"]}, cv=2).fit(TEXTS, LABELS)
    assert search.predict(["the profit rose"])[0] == "up"


def test_pickled_classifier_predicts_the_same(views: list[tuple[str, object]]) -> None:
    classifier = EmbedClassifier(views, "logistic").fit(TEXTS, LABELS)
    again = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))


def test_store_is_filled_by_fit_and_spares_the_next_one(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = TransformerEncoder(str(tiny_bert), max_length=32, store=EmbeddingStore(tmp_path / "store"))
    EmbedClassifier([encoder], "logistic").fit(TEXTS, LABELS)
    again = EmbedClassifier([encoder], "ridge").fit(TEXTS, LABELS)
    assert again.views_[0][1].last_n_computed_ == 0


def test_saved_classifier_predicts_the_same(views: list[tuple[str, object]], tmp_path: Path) -> None:
    classifier = EmbedClassifier(views, "stack").fit(TEXTS, LABELS)
    classifier.save(tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    np.testing.assert_array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    assert list(again.classes_) == ["down", "flat", "up"]


def test_stack_drops_a_backbone_that_is_not_worth_running(
    views: list[tuple[str, object]], tmp_path: Path
) -> None:
    """Two backbones with random weights beside the words that decide the label."""
    rng = np.random.default_rng(0)
    words = [("rose", "up"), ("fell", "down"), ("flat", "flat")] * 40
    texts = [
        f"{' '.join(rng.choice(['sales', 'income', 'margin', 'orders'], 4))} {word}" for word, _ in words
    ]
    classifier = EmbedClassifier(views, "stack").fit(texts, [label for _, label in words])
    assert [name for name, _ in classifier.views_] == ["lexical"]
    names = [step["view"] for step in classifier.selection_ if step["taken"]]
    assert set(names) <= {"lexical, words", "lexical, characters", TOGETHER}
    left_out = {step["view"] for step in classifier.selection_} - set(names)
    assert left_out >= {"bert, layer 3", "bert, 2 layers", "llama"}
    classifier.save(tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    assert [name for name, _ in again.views_] == ["lexical"]
    assert list(again.predict(["margin fell"])) == ["down"]


@pytest.mark.parametrize("normalize", [True, False])
def test_layers_are_scaled_to_norm_one_for_linear_heads(
    views: list[tuple[str, object]], tmp_path: Path, normalize: bool
) -> None:
    classifier = EmbedClassifier(views, "ridge", normalize=normalize).fit(TEXTS, LABELS)
    X = classifier.transform(TEXTS).toarray()
    norms = np.linalg.norm(X[:, :32], axis=1), np.linalg.norm(X[:, 32:64], axis=1)
    assert all(np.allclose(norm, 1, atol=1e-5) for norm in norms) is normalize
    classifier.save(tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    assert again.normalizes_ is normalize
    np.testing.assert_array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))


@pytest.mark.parametrize("head", ["cooccurrence", LogisticRegression()])
def test_other_heads_get_the_vectors_as_they_are(views: list[tuple[str, object]], head: object) -> None:
    classifier = EmbedClassifier(views[:1], head).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(classifier.transform(TEXTS), views[0][1].transform(TEXTS))


def test_stack_of_ones_own_reads_all_columns(views: list[tuple[str, object]]) -> None:
    classifier = EmbedClassifier(views, StackHead()).fit(TEXTS, LABELS)
    assert [name for name, _ in classifier.views_] == ["bert", "llama", "lexical"]
    assert classifier.selection_ == []
    assert classifier.predict_proba(TEXTS).shape == (15, 3)


def test_no_texts_give_no_predictions() -> None:
    classifier = EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, LABELS)
    assert classifier.predict_proba([]).shape == (0, 3)
    assert classifier.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a", "b"], ["x"], "2 texts but 1 labels: give one label per text."),
        (["a", "b"], ["x", "x"], "all 2 labels are x: a classifier needs two or more."),
        ([], [], "all 0 labels are missing: a classifier needs two or more."),
    ],
)
def test_unusable_training_rows_are_refused(texts: list[str], labels: list[str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        EmbedClassifier([LexicalEncoder()], "logistic").fit(texts, labels)
    assert str(caught.value) == message
