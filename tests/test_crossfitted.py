"""CrossFittedEncoder: out-of-fold rows when fitting, the mean over all encoders for new texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

from embedtune import EmbedClassifier, LexicalEncoder, TransformerEncoder, load_bundle
from embedtune.classifier import TOGETHER
from embedtune.embed.crossfitted import CrossFittedEncoder
from embedtune.errors import BundleError, ConfigError, DataError, EmbedtuneError
from test_classifier import LABELS, TEXTS
from tiny_models import build_tiny_bert

FOLDS = {text: i % 3 for i, text in enumerate(TEXTS)}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[TransformerEncoder]:
    folder = tmp_path_factory.mktemp("folds")
    return [
        TransformerEncoder(
            str(build_tiny_bert(folder / f"bert{k}", seed=k)),
            layers=(-1, 1),
            max_length=32,
            precision="float32",
        )
        for k in range(3)
    ]


def test_fit_transform_reads_each_text_with_its_own_folds_encoder(encoders: list[TransformerEncoder]) -> None:
    found = CrossFittedEncoder(encoders, folds=FOLDS).fit_transform(TEXTS)
    for row, text in zip(found, TEXTS, strict=True):
        np.testing.assert_allclose(row, encoders[FOLDS[text]].transform([text])[0], atol=1e-5)


def test_fit_transform_repeated_text_gets_the_same_row(encoders: list[TransformerEncoder]) -> None:
    found = CrossFittedEncoder(encoders, folds=FOLDS).fit_transform([TEXTS[4], TEXTS[0], TEXTS[4]])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("layers", [(-1, 1), (1, 2)])
def test_own_heads_opinions_are_a_last_block(
    encoders: list[TransformerEncoder], layers: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    heads = [
        (rng.normal(size=(3, 32)).astype(np.float32), rng.normal(size=3).astype(np.float32)) for _ in range(3)
    ]
    own = [clone(encoder).set_params(layers=layers) for encoder in encoders]
    encoder = CrossFittedEncoder(own, folds=FOLDS, heads=heads)
    assert encoder.widths_ == (32, 32, 3)
    found = encoder.fit_transform(TEXTS)
    np.testing.assert_array_equal(
        found[:, :64], CrossFittedEncoder(own, folds=FOLDS).fit_transform(TEXTS)[:, :64]
    )
    for row, text in zip(found, TEXTS, strict=True):
        k = FOLDS[text]
        last = clone(encoders[k]).set_params(layers=(-1,)).transform([text])[0]
        logits = last @ heads[k][0].T + heads[k][1]
        np.testing.assert_allclose(row[64:], logits - np.log(np.exp(logits).sum()), atol=1e-4)
    mean = encoder.transform(["revenue rose"])[0]
    assert mean.shape == (67,)
    assert np.exp(mean[64:]).sum() <= 1 + 1e-5


def test_heads_and_encoders_of_different_number_are_refused(encoders: list[TransformerEncoder]) -> None:
    heads = [(np.zeros((3, 32), np.float32), np.zeros(3, np.float32))]
    with pytest.raises(ConfigError, match="3 encoders and 1 heads: give one head per encoder"):
        CrossFittedEncoder(encoders, folds=FOLDS, heads=heads).transform(TEXTS)


def test_bundle_cannot_hold_heads_without_adapters(
    encoders: list[TransformerEncoder], tmp_path: Path
) -> None:
    heads = [(np.ones((3, 32), np.float32), np.zeros(3, np.float32))] * 3
    encoder = CrossFittedEncoder(encoders, folds=FOLDS, heads=heads)
    classifier = EmbedClassifier([("bert", encoder)], "ridge").fit(TEXTS, LABELS)
    with pytest.raises(BundleError, match="view 'bert' has heads but an encoder without an adapter"):
        classifier.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_transform_is_the_mean_over_all_encoders(encoders: list[TransformerEncoder]) -> None:
    found = CrossFittedEncoder(encoders).transform(["revenue rose", TEXTS[0]])
    expected = np.mean([encoder.transform(["revenue rose", TEXTS[0]]) for encoder in encoders], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_no_texts_give_no_rows(encoders: list[TransformerEncoder]) -> None:
    encoder = CrossFittedEncoder(encoders, folds=FOLDS)
    assert encoder.transform([]).shape == encoder.fit_transform([]).shape == (0, 64)


def test_clone_keeps_folds_and_copies_encoders(encoders: list[TransformerEncoder]) -> None:
    copy = clone(CrossFittedEncoder(encoders, folds=FOLDS))
    assert (copy.folds, [one.model for one in copy.encoders]) == (FOLDS, [one.model for one in encoders])
    assert copy.encoders[0] is not encoders[0]


def test_stack_reads_a_cross_fitted_view_as_it_reads_a_plain_one(encoders: list[TransformerEncoder]) -> None:
    views = [("bert", CrossFittedEncoder(encoders, folds=FOLDS)), ("lexical", LexicalEncoder())]
    classifier = EmbedClassifier(views, "stack").fit(TEXTS, LABELS)
    assert {step["view"] for step in classifier.selection_} == {
        "bert, layer 3",
        "bert, 2 layers",
        "lexical, words",
        "lexical, characters",
        TOGETHER,
    }


def test_bundle_holds_all_encoders_and_no_training_text(
    encoders: list[TransformerEncoder], tmp_path: Path
) -> None:
    classifier = EmbedClassifier([("bert", CrossFittedEncoder(encoders, folds=FOLDS))], "ridge")
    classifier.fit(TEXTS, LABELS).save(tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    new = ["revenue rose", "demand is flat", *TEXTS]
    np.testing.assert_array_equal(again.predict_proba(new), classifier.predict_proba(new))
    assert again.views_[0][1].folds is None
    assert TEXTS[1] not in (tmp_path / "bundle" / "bundle.json").read_text()


@pytest.mark.parametrize(
    ("n_encoders", "texts", "kind", "message"),
    [
        (1, TEXTS, ConfigError, "cross-fitting has 1 encoders: give two or more, one per fold."),
        (
            3,
            ["a new text"],
            DataError,
            "text 0 ('a new text') is in none of the 3 folds: fit on the texts that the encoders were fine-tuned on, "
            "and read others with transform.",
        ),
        (
            2,
            TEXTS,
            DataError,
            "text 2 ('orders rose again') is in none of the 2 folds: fit on the texts that the encoders were "
            "fine-tuned on, and read others with transform.",
        ),
    ],
)
def test_unusable_folds_are_refused(
    encoders: list[TransformerEncoder],
    n_encoders: int,
    texts: list[str],
    kind: type[EmbedtuneError],
    message: str,
) -> None:
    with pytest.raises(kind) as caught:
        CrossFittedEncoder(encoders[:n_encoders], folds=FOLDS).fit_transform(texts)
    assert str(caught.value) == message


def test_encoders_of_different_layers_are_refused(encoders: list[TransformerEncoder]) -> None:
    other = clone(encoders[1]).set_params(layers=(-1,))
    with pytest.raises(ConfigError) as caught:
        CrossFittedEncoder([encoders[0], other]).transform(TEXTS)
    assert str(caught.value) == (
        "encoder 1 reads layers (3,) of widths (32,), and encoder 0 (3, 1) of (32, 32): "
        "give encoders that differ in their adapters only."
    )
