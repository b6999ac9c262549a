import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.base import clone
from sklearn.pipeline import FeatureUnion
from tokenizers import Tokenizer, models, pre_tokenizers

from embedtune.embed import static as module
from embedtune.embed.static import StaticEncoder, load_table
from embedtune.errors import BackboneError, DataError, MissingExtraError

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def model2vec(tmp_path: Path) -> Path:
    return write_model2vec(tmp_path / "m2v", normalize=False)


def write_model2vec(folder: Path, *, normalize: bool, **tensors: np.ndarray) -> Path:
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "gold": 1, "rose": 2, "fell": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embeddings": VECTORS, **tensors}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"normalize": normalize}))
    return folder


def test_transform_averages_token_vectors_without_unknown_ones(model2vec: Path) -> None:
    found = StaticEncoder(model2vec).transform(["gold rose", "gold rose fell fell", "silver gold"])
    expected = [VECTORS[[1, 2]].mean(0), VECTORS[[1, 2, 3, 3]].mean(0), VECTORS[1]]
    np.testing.assert_allclose(found, expected)
    assert found.dtype == np.float32


def test_transform_empty_text_or_unknown_words_give_zeros(model2vec: Path) -> None:
    assert not StaticEncoder(model2vec).transform(["", "silver"]).any()


def test_transform_no_texts_gives_no_rows(model2vec: Path) -> None:
    assert StaticEncoder(model2vec).transform([]).shape == (0, 3)


def test_transform_normalizes_where_the_folder_says_so(tmp_path: Path) -> None:
    encoder = StaticEncoder(write_model2vec(tmp_path / "n", normalize=True))
    np.testing.assert_allclose(np.linalg.norm(encoder.transform(["gold rose", "fell"]), axis=1), 1, rtol=1e-6)


def test_transform_applies_model2vec_mapping_and_weights(tmp_path: Path) -> None:
    folder = write_model2vec(
        tmp_path / "w",
        normalize=False,
        mapping=np.array([0, 3, 2, 1], dtype=np.int64),
        weights=np.array([1, 2, 1, 1], dtype=np.float32),
    )
    np.testing.assert_allclose(StaticEncoder(folder).transform(["gold"]), 2 * VECTORS[[3]])


def test_transform_does_not_depend_on_other_texts(model2vec: Path) -> None:
    encoder = StaticEncoder(model2vec)
    texts = ["gold rose fell", "fell", "gold rose fell", ""]
    alone = np.concatenate([encoder.transform([text]) for text in texts])
    np.testing.assert_array_equal(encoder.transform(texts), alone)


def test_transform_refuses_what_is_no_string(model2vec: Path) -> None:
    with pytest.raises(DataError, match="text 1 is a int"):
        StaticEncoder(model2vec).transform(["gold", 1])  # type: ignore[list-item]


def test_wordllama_table_is_llamas_and_sets_up_no_logging() -> None:
    handlers = list(logging.getLogger().handlers)
    encoder = StaticEncoder()
    found = encoder.transform(["Gold settles lower", "Gold", ""])
    table = load_table("wordllama")
    ids = table.tokenizer.encode("Gold settles lower", add_special_tokens=False).ids
    np.testing.assert_allclose(found[0], table.vectors[ids].mean(0), atol=1e-6)
    assert encoder.widths_ == (256,)
    assert encoder.n_parameters_ == 32000 * 256
    assert not found[2].any()
    assert logging.getLogger().handlers == handlers


def test_wordllama_missing_package_tells_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    module._load_wordllama.cache_clear()
    with pytest.raises(MissingExtraError) as caught:
        StaticEncoder().transform(["a"])
    assert str(caught.value) == "the 'wordllama' table isn't installed: pip install 'embedtune[demo]'."


def test_source_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as nothing:
        StaticEncoder(tmp_path).transform(["a"])
    assert str(nothing.value) == (
        f"static source '{tmp_path}' lacks model.safetensors and tokenizer.json: "
        "give 'wordllama' or a folder saved by model2vec."
    )
    folder = write_model2vec(tmp_path / "other", normalize=False)
    save_file({"weight": VECTORS}, folder / "model.safetensors")
    with pytest.raises(BackboneError) as other:
        StaticEncoder(folder).transform(["a"])
    assert str(other.value) == (
        f"static source '{folder}' holds weight, not 'embeddings': give a folder saved by model2vec."
    )


def test_encoder_is_a_scikit_learn_transformer_without_its_table_in_the_pickle(model2vec: Path) -> None:
    encoder = StaticEncoder(model2vec)
    expected = encoder.fit_transform(["gold rose"])
    copies = [clone(encoder), pickle.loads(pickle.dumps(encoder))]
    for copy in copies:
        np.testing.assert_array_equal(copy.transform(["gold rose"]), expected)
    assert len(pickle.dumps(StaticEncoder())) < 500
    union = FeatureUnion([("a", encoder), ("b", StaticEncoder(model2vec))])
    assert union.fit_transform(["gold", "rose"]).shape == (2, 6)


def test_file_that_never_ends_is_refused(tmp_path: Path) -> None:
    folder = write_model2vec(tmp_path / "table", normalize=True)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(BackboneError, match="is a pipe or a device, and models are read from files"):
        StaticEncoder(str(folder)).transform(["gold rose"])
