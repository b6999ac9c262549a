"""TransformerEncoder with a store: what is kept, what is computed, what a kill costs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from embedtune.embed import encoder as module
from embedtune.embed import waiting
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.store import EmbeddingStore
from embedtune.errors import ConfigError, DataError
from encoder_cases import TEXTS, count_rows, encode, watch_batches
from tiny_models import build_tiny_bert


def test_transform_with_store_gives_the_stored_half_precision_every_time(
    tiny_bert: Path, tmp_path: Path
) -> None:
    exact = encode(tiny_bert, layers="last2")
    first = encode(tiny_bert, layers="last2", store=tmp_path)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, exact.astype(np.float16).astype(np.float32))
    again = encode(tiny_bert, TEXTS[::-1], layers="last2", store=EmbeddingStore(tmp_path), batch_tokens=1)
    np.testing.assert_array_equal(again[::-1], first)


def test_transform_stored_texts_load_no_backbone(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TransformerEncoder(tiny_bert, layers=(0, 3), store=tmp_path)
    first = encoder.transform(TEXTS)
    monkeypatch.setattr(TransformerEncoder, "_load", lambda self: pytest.fail("loaded"))
    np.testing.assert_array_equal(encoder.transform(TEXTS), first)
    assert encoder.last_n_computed_ == 0
    assert clone(encoder).set_params(layers=(3,)).transform([*TEXTS, TEXTS[0]]).shape == (len(TEXTS) + 1, 32)


def test_transform_computes_only_texts_that_the_store_lacks(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(tiny_bert, TEXTS[:4], store=tmp_path)
    batches = count_rows(monkeypatch)
    encode(tiny_bert, TEXTS, store=tmp_path)
    assert sorted(row for batch in batches for row in batch) == [4, 5]


def test_transform_new_layers_are_added_to_the_store(tiny_bert: Path, tmp_path: Path) -> None:
    encode(tiny_bert, layers=(3,), store=tmp_path / "store")
    both = encode(tiny_bert, layers=(3, 1), store=tmp_path / "store")
    np.testing.assert_array_equal(both, encode(tiny_bert, layers=(3, 1), store=tmp_path / "new"))
    (row,) = EmbeddingStore(tmp_path / "store").list()
    assert row.columns == ("layer_01_mean", "layer_03_mean")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_done", [0, 1, 4])
@pytest.mark.parametrize("commit_texts", [1, 3, 2000])
def test_transform_resumed_run_equals_an_undisturbed_one(
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    n_done: int,
    commit_texts: int,
) -> None:
    monkeypatch.setattr(waiting, "COMMIT_TEXTS", commit_texts)
    texts = [" ".join(TEXTS[i % 6].split()[: 1 + i % 7]) + f" {i}" for i in range(40)]
    settings: dict[str, Any] = {"layers": "all", "precision": precision, "batch_tokens": 90}
    undisturbed = encode(tiny_llama, texts, store=tmp_path / "undisturbed", **settings)
    done: list[Any] = []

    def kill(rows: np.ndarray) -> None:
        if len(done) == n_done:
            raise Killed
        done.append(rows)

    with monkeypatch.context() as patch:
        watch_batches(patch, kill)
        with pytest.raises(Killed):
            encode(tiny_llama, texts, store=tmp_path / "killed", **settings)
    batches = count_rows(monkeypatch)
    resumed = encode(tiny_llama, texts, store=tmp_path / "killed", **settings)
    n_batches = len(batches)
    np.testing.assert_array_equal(resumed, undisturbed)
    batches.clear()
    encode(tiny_llama, texts, store=tmp_path / "third", **settings)
    assert n_batches == len(batches) - n_done


def test_transform_every_setting_that_changes_values_has_a_table_of_its_own(
    tiny_bert: Path, tmp_path: Path
) -> None:
    other = build_tiny_bert(tmp_path / "weights" / tiny_bert.name, seed=3)
    deeper = tmp_path / "config" / tiny_bert.name
    shutil.copytree(tiny_bert, deeper)
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    words = tmp_path / "words" / tiny_bert.name
    shutil.copytree(tiny_bert, words)
    rules = json.loads((words / "tokenizer.json").read_text())
    rules["normalizer"]["lowercase"] = False
    (words / "tokenizer.json").write_text(json.dumps(rules))
    variants: list[tuple[Path, dict[str, Any]]] = [
        (tiny_bert, {}),
        (tiny_bert, {"max_length": 16}),
        (tiny_bert, {"prefix": "q: "}),
        (tiny_bert, {"precision": "bfloat16"}),
        (tiny_bert, {"adapter": other}),
        (other, {}),
        (deeper, {}),
        (words, {}),
    ]
    store = EmbeddingStore(tmp_path / "store")
    for n_tables, (model, settings) in enumerate(variants, start=1):
        found = encode(model, store=store, **settings)
        assert len(store.list()) == n_tables
        exact = encode(model, **settings).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(found, exact)
    encode(tiny_bert, store=store, batch_tokens=7, layers=(1, 2), pooling="max", device="auto")
    assert len(store.list()) == len(variants)


def test_store_texts_windows_are_those_of_transform(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_TEXTS", 7)
    texts = [f"{TEXTS[i % 6]} {i}" for i in range(25)]
    settings: dict[str, Any] = {"layers": (1, 3), "precision": "bfloat16", "device": "cpu"}
    whole = TransformerEncoder(tiny_bert, store=tmp_path / "whole", **settings).transform(texts)
    streamed = TransformerEncoder(tiny_bert, store=tmp_path / "streamed", **settings)
    assert streamed.store_texts(iter(texts))[:2] == (25, 25)
    monkeypatch.setattr(TransformerEncoder, "_load", lambda self: pytest.fail("loaded"))
    np.testing.assert_array_equal(streamed.transform(texts), whole)
    assert streamed.store_texts(text for text in [*texts, *texts])[:2] == (50, 0)


def test_store_texts_reads_no_further_than_a_window(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_TEXTS", 5)
    encoder = TransformerEncoder(tiny_bert, store=tmp_path, device="cpu")
    batches = count_rows(monkeypatch)
    n_run: list[int] = []

    def tell() -> Iterator[str]:
        for i in range(20):
            n_run.append(sum(map(len, batches)))
            yield f"sales rose {i // 2}"

    stored = encoder.store_texts(tell())
    assert stored[:2] == (20, 10)
    assert n_run[5] == n_run[9] == 3 and n_run[10] == 5


def test_store_texts_killed_goes_on_with_the_same_batches(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_TEXTS", 9)
    monkeypatch.setattr(waiting, "COMMIT_TEXTS", 2)
    texts = [" ".join(TEXTS[i % 6].split()[: 1 + i % 7]) + f" {i}" for i in range(40)]
    settings: dict[str, Any] = {"layers": "all", "precision": "bfloat16", "device": "cpu", "batch_tokens": 60}
    encoder = TransformerEncoder(tiny_llama, store=tmp_path / "killed", **settings)

    def stop() -> Iterator[str]:
        yield from texts[:20]
        raise Killed

    with pytest.raises(Killed):
        encoder.store_texts(stop())
    assert encoder.store_texts(texts)[:2] == (40, 22)
    undisturbed = TransformerEncoder(tiny_llama, store=tmp_path / "whole", **settings)
    undisturbed.store_texts(texts)
    np.testing.assert_array_equal(encoder.transform(texts), undisturbed.transform(texts))


def test_store_texts_needs_a_store_and_strings(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no store"):
        TransformerEncoder(tiny_bert).store_texts(TEXTS)
    with pytest.raises(DataError, match="single str"):
        TransformerEncoder(tiny_bert, store=tmp_path).store_texts("sales rose")
