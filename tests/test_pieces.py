"""``long_texts: split``: what pieces are, and that an encoder's vectors are theirs put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from embedtune import EmbedClassifier, TransformerEncoder, load_bundle
from embedtune.embed.pieces import Pieces, _cut, split_texts
from embedtune.errors import ConfigError
from run_cases import write_recipe, write_rows
from test_run import call

SAID = "sales rose while the margin fell and orders stayed flat after a long quarter of falling income"
WORDS = SAID.split()
LONG = " ".join([SAID] * 6)
TEXTS = ["sales rose", LONG, "", "the margin fell by 4 %", LONG[::-1]]


@pytest.fixture(params=["bert", "roberta", "llama"])
def model(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"tiny_{request.param}")
    return path


def encode(model: Path, texts: list[str], **options: Any) -> np.ndarray:
    encoder = TransformerEncoder(model, layers=(-1, 1), max_length=16, precision="float32", **options)
    found: np.ndarray = encoder.fit_transform(texts)
    return found


@pytest.mark.parametrize("prefix", ["", "query: "])
def test_pieces_hold_the_whole_text_and_fit(model: Path, prefix: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    pieces = split_texts(tokenizer, TEXTS, max_length=16, prefix=prefix)
    for number, text in enumerate(TEXTS):
        own = [piece for piece, owner in zip(pieces.texts, pieces.owner, strict=True) if owner == number]
        assert "".join(own) == text
        for piece in own:
            assert (
                len(tokenizer(prefix + piece)["input_ids"]) <= 17
            )  # a cut may cost a token more, never many
    long_ones = [piece for piece, owner in zip(pieces.texts, pieces.owner, strict=True) if owner == 1]
    assert all(word in WORDS for piece in long_ones for word in piece.split())


@given(st.text(alphabet="ab \n", max_size=60), st.integers(1, 9), st.data())
def test_cuts_follow_each_other_and_none_is_too_long(text: str, room: int, data: st.DataObject) -> None:
    begins = sorted(data.draw(st.sets(st.integers(0, len(text) - 1)))) if text else []
    found = _cut(text, begins, room)
    assert "".join(text[start:stop] for start, stop, _ in found) == text
    assert sum(count for *_, count in found) == len(begins)
    assert all(count <= room for *_, count in found)


def test_long_text_is_the_mean_of_its_pieces_weighted_by_tokens(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    pieces = split_texts(tokenizer, [LONG], max_length=16)
    assert len(pieces.texts) > 5
    vectors = encode(model, pieces.texts)
    expected = np.average(vectors, axis=0, weights=pieces.n_tokens)
    np.testing.assert_allclose(encode(model, [LONG], long_texts="split")[0], expected, atol=1e-5)


def test_max_pooling_takes_the_maximum_over_pieces(tiny_bert: Path) -> None:
    pieces = split_texts(AutoTokenizer.from_pretrained(tiny_bert), [LONG], max_length=16)
    found = encode(tiny_bert, [LONG], long_texts="split", pooling=("max", "mean"))
    np.testing.assert_array_equal(found[0, :64], encode(tiny_bert, pieces.texts, pooling="max").max(axis=0))


def test_short_texts_keep_their_vectors(model: Path) -> None:
    short = [TEXTS[0], TEXTS[2], TEXTS[3]]
    whole = encode(model, short)
    np.testing.assert_array_equal(encode(model, short, long_texts="split"), whole)
    beside = encode(model, TEXTS, long_texts="split")[[0, 2, 3]]
    np.testing.assert_allclose(beside, whole, atol=1e-5)


def test_store_keeps_pieces_and_texts_are_counted(tiny_bert: Path, tmp_path: Path) -> None:
    options = {"long_texts": "split", "max_length": 16, "store": tmp_path / "store", "precision": "float32"}
    encoder = TransformerEncoder(tiny_bert, **options)
    first = encoder.transform([LONG, "sales rose"])
    assert encoder.last_n_computed_ == 2
    np.testing.assert_array_equal(encoder.transform([LONG, "sales rose"]), first)
    assert encoder.last_n_computed_ == 0
    assert encoder.store_texts([LONG, f"{LONG} again", "orders fell"]).n_computed == 2


def test_pooling_pieces_without_a_long_text_is_the_identity() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    pieces = Pieces(["a", "b", "c"], np.arange(3), np.ones(3))
    np.testing.assert_array_equal(pieces.pool(vectors, pooling="mean"), vectors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_texts": "spilt"}, r"long_texts 'spilt' is unknown \(did you mean 'split'\?\)"),
        (
            {"long_texts": "split", "max_length": 2},
            "max_length 2 leaves no room for a text: set it to 3 or more",
        ),
    ],
)
def test_splitting_that_cannot_be_done_is_refused(
    tiny_bert: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerEncoder(tiny_bert, **options).transform([LONG])


def test_bundle_reads_long_texts_in_pieces(tiny_bert: Path, tmp_path: Path) -> None:
    texts = [f"{LONG} sales rose", f"{LONG} sales fell"] * 4
    encoder = TransformerEncoder(tiny_bert, max_length=16, long_texts="split", precision="float32")
    classifier = EmbedClassifier([encoder], "logistic").fit(texts, ["up", "down"] * 4)
    assert (
        list(classifier.predict(texts)) == ["up", "down"] * 4
    )  # the end decides, which is cut off otherwise
    classifier.save(tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    np.testing.assert_array_equal(again.predict_proba(texts), classifier.predict_proba(texts))


def test_run_reads_in_pieces_and_counts_what_it_took(tiny_bert: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "tiny.yaml",
        model=tiny_bert,
        data=write_rows(tmp_path / "moves.csv"),
        store=tmp_path / "store",
    )
    settings = [
        "embed.views.bert.long_texts=split",
        "embed.views.bert.max_length=6",
        "compare.arms=[frozen+]",
    ]
    result = call("run", recipe, "--out", tmp_path / "run", *settings)
    assert result.exit_code == 0, result.output
    cost = json.loads((tmp_path / "run" / "results.json").read_text())["arms"]["frozen+"]["cost"]
    assert cost["embed_seconds"] > 0
    assert cost["rows_per_second"] > 0
