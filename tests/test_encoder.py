import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline

import embedtune
from embedtune.embed import backbone as backbone_module
from embedtune.embed import forward
from embedtune.embed.backbone import load_backbone, release_backbones
from embedtune.embed.encoder import TransformerEncoder
from embedtune.errors import BackboneError, ConfigError, DataError, ResourceError
from embedtune.progress import use_progress
from encoder_cases import TEXTS, count_rows, encode
from tiny_models import build_tiny_bert

ARCHITECTURES = ["tiny_bert", "tiny_roberta", "tiny_llama"]
SAMPLE = Path(embedtune.__file__).parent / "data" / "sample" / "sentiment.jsonl"


@pytest.fixture(params=ARCHITECTURES)
def tiny(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def encode_slowly(folder: Path, texts: list[str], *, layer: int, pooling: str, max_length: int) -> np.ndarray:
    """One text at a time, without padding, through transformers' own hidden states."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length)
        with torch.inference_mode():
            hidden = model(**inputs, output_hidden_states=True).hidden_states[layer][0]
        reduce = {
            "mean": lambda x: x.mean(0),
            "weighted_mean": lambda x: np.average(x, axis=0, weights=np.arange(1, len(x) + 1)),
            "cls": lambda x: x[0],
            "last": lambda x: x[-1],
            "max": lambda x: x.amax(0),
        }
        rows.append(reduce[pooling](hidden).numpy())
    return np.stack(rows)


# What a row holds


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
def test_transform_equals_a_plain_loop_for_every_layer(tiny: Path, pooling: str) -> None:
    n_layers = load_backbone(tiny, precision="float32", device="cpu").n_layers
    found = encode(tiny, layers="all", pooling=pooling, max_length=24).reshape(len(TEXTS), n_layers + 1, 32)
    for layer in range(n_layers + 1):
        expected = encode_slowly(tiny, TEXTS, layer=layer, pooling=pooling, max_length=24)
        np.testing.assert_allclose(found[:, layer], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max", "mean_padded"])
def test_transform_text_does_not_depend_on_its_neighbours(tiny: Path, pooling: str) -> None:
    settings: dict[str, Any] = {"layers": "all", "pooling": pooling, "max_length": 32}
    together = encode(tiny, batch_tokens=10_000, **settings)
    alone = encode(tiny, batch_tokens=1, **settings)
    reverse = encode(tiny, TEXTS[::-1], batch_tokens=70, **settings)[::-1]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(reverse, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max", "mean_padded"])
def test_transform_ignores_the_side_a_tokenizer_pads(tiny: Path, pooling: str, tmp_path: Path) -> None:
    folder = tmp_path / "left"
    shutil.copytree(tiny, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    assert transformers.AutoTokenizer.from_pretrained(folder).padding_side == "left"
    found = encode(folder, layers="all", pooling=pooling, max_length=32)
    np.testing.assert_array_equal(found, encode(tiny, layers="all", pooling=pooling, max_length=32))


def test_transform_pooler_is_the_models_own(tiny_bert: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    model = transformers.AutoModel.from_pretrained(tiny_bert).eval()
    with torch.inference_mode():
        expected = [model(**tokenizer(text, return_tensors="pt")).pooler_output[0].numpy() for text in TEXTS]
    np.testing.assert_allclose(encode(tiny_bert, pooling="pooler"), np.stack(expected), rtol=0, atol=1e-5)


def test_transform_mean_padded_counts_padding_to_max_length(tiny_llama: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    model = transformers.AutoModel.from_pretrained(tiny_llama).eval()
    ids = tokenizer(TEXTS[0])["input_ids"]
    padded = torch.tensor([ids + [0] * (40 - len(ids))])
    mask = torch.tensor([[1] * len(ids) + [0] * (40 - len(ids))])
    with torch.inference_mode():
        expected = model(input_ids=padded, attention_mask=mask).last_hidden_state.mean(1).numpy()
    found = encode(tiny_llama, TEXTS[:1], pooling="mean_padded", max_length=40)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(found - encode(tiny_llama, TEXTS[:1], max_length=40)).max() > 0.01


def test_transform_minilm_equals_a_plain_transformers_loop() -> None:
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[::40]
    texts = [json.loads(line)["text"] for line in lines]
    folder = backbone_module.resolve_model("all-MiniLM-L6-v2")
    assert isinstance(folder, Path)
    expected = encode_slowly(folder, texts, layer=6, pooling="mean", max_length=128)
    found = encode("all-MiniLM-L6-v2", texts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_transform_bfloat16_stays_close_to_float32() -> None:
    texts = TEXTS + ["The company cut its dividend after a weak quarter."]
    exact, rounded = (
        encode("all-MiniLM-L6-v2", texts),
        encode("all-MiniLM-L6-v2", texts, precision="bfloat16"),
    )
    cosines = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosines.min() > 0.999
    assert rounded.dtype == np.float32
    assert not np.array_equal(exact, rounded)


def test_transform_gives_layers_in_the_order_asked(tiny_bert: Path) -> None:
    encoder = TransformerEncoder(tiny_bert, layers=(-1, 0, 2, -1), precision="float32", device="cpu")
    found = encoder.transform(TEXTS)
    assert encoder.widths_ == (32, 32, 32, 32)
    assert found.shape == (len(TEXTS), 128)
    for place, layer in enumerate((3, 0, 2, 3)):
        np.testing.assert_allclose(
            found[:, 32 * place : 32 * (place + 1)], encode(tiny_bert, layers=layer), atol=1e-6
        )


def test_transform_empty_text_gives_its_special_tokens(tiny: Path) -> None:
    assert np.isfinite(encode(tiny, [""])).all()


def test_transform_empty_text_without_special_tokens_is_one_token(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(tiny_llama, folder)
    rules = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(rules | {"post_processor": None}))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([[2]])).last_hidden_state[0].numpy()
    for pooling in ("mean", "last", "max"):
        found = encode(folder, ["", "gold"], pooling=pooling)
        np.testing.assert_allclose(found[:1], expected, rtol=0, atol=1e-5)


def test_transform_long_text_is_cut_at_max_length(tiny: Path) -> None:
    long = "gold rose " * 3000
    np.testing.assert_array_equal(
        encode(tiny, [long], max_length=20), encode(tiny, [long * 2], max_length=20)
    )
    expected = encode_slowly(tiny, [long], layer=-1, pooling="mean", max_length=20)
    np.testing.assert_allclose(encode(tiny, [long], max_length=20), expected, rtol=0, atol=1e-5)


def test_transform_missing_pad_token_leaves_the_vocabulary_alone(tiny_llama: Path) -> None:
    encode(tiny_llama)
    backbone = load_backbone(tiny_llama, precision="float32", device="cpu")
    assert backbone.tokenizer.pad_token is None
    assert backbone.model.get_input_embeddings().num_embeddings == len(backbone.tokenizer)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_transform_prefix_is_read_but_not_pooled(tiny: Path, pooling: str) -> None:
    prefix, text = "headline: ", "gold settles lower"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    model = transformers.AutoModel.from_pretrained(tiny).eval()
    encoded = tokenizer(prefix + text, return_offsets_mapping=True, return_special_tokens_mask=True)
    kept = [
        special == 1 or end > len(prefix)
        for special, (_, end) in zip(encoded["special_tokens_mask"], encoded["offset_mapping"], strict=True)
    ]
    with torch.inference_mode():
        hidden = model(input_ids=torch.tensor([encoded["input_ids"]])).last_hidden_state[0]
    own = hidden[torch.tensor(kept)]
    expected = (own.mean(0) if pooling == "mean" else own.amax(0)).numpy()
    found = encode(tiny, [text, "a longer text than that, by far"], pooling=pooling, prefix=prefix)
    assert 0 < sum(kept) < len(kept)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-5)
    assert np.abs(found[0] - encode(tiny, [text], pooling=pooling)[0]).max() > 0.01


def test_transform_prefix_that_fills_max_length_counts_itself(tiny_bert: Path) -> None:
    found = encode(tiny_bert, ["gold"], prefix="a b c d e f g h i j ", max_length=6)
    assert np.isfinite(found).all()


# How it is computed


def test_transform_runs_distinct_texts_once(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = count_rows(monkeypatch)
    encoder = TransformerEncoder(tiny_bert, precision="float32")
    found = encoder.transform(["gold", "silver", "gold", "gold"])
    assert sum(map(len, batches)) == encoder.last_n_computed_ == 2
    np.testing.assert_array_equal(found[0], found[2])
    assert encoder.last_seconds_ > 0
    assert encoder.n_parameters_ == load_backbone(tiny_bert, precision="float32").n_parameters


def test_transform_no_texts_gives_no_rows_and_loads_nothing(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformerEncoder, "_load", lambda self: pytest.fail("loaded"))
    assert encode(tiny_bert, [], layers=(0, 1)).shape == (0, 64)


def test_transform_reports_progress_in_texts(tiny_bert: Path) -> None:
    seen: list[Any] = []

    class Bar:
        def advance(self, n: int = 1) -> None:
            seen.append(n)

    @contextmanager
    def show(description: str, total: int, unit: str) -> Iterator[Bar]:
        seen.append((description, total, unit))
        yield Bar()

    with use_progress(show):
        encode(tiny_bert, batch_tokens=40)
    assert seen[0] == (f"embed with {tiny_bert.name}", len(TEXTS), "texts")
    assert sum(seen[1:]) == len(TEXTS)
    assert len(seen) > 3


def fail_above(monkeypatch: pytest.MonkeyPatch, n_rows: int) -> None:
    run = forward._run

    def fail(backbone: Any, batch: Any, **settings: Any) -> Any:
        if len(batch.ids) > n_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(backbone, batch, **settings)

    monkeypatch.setattr(forward, "_run", fail)


def test_transform_halves_batches_that_memory_does_not_hold(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encode(tiny_bert, layers="all")
    fail_above(monkeypatch, 1)
    np.testing.assert_allclose(encode(tiny_bert, layers="all"), expected, rtol=0, atol=1e-5)


def test_transform_remembers_the_size_that_memory_holds(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_backbones()
    tried: list[int] = []
    fail_above(monkeypatch, 3)
    run = forward._run

    def record(backbone: Any, batch: Any, **settings: Any) -> Any:
        tried.append(len(batch.ids))
        return run(backbone, batch, **settings)

    monkeypatch.setattr(forward, "_run", record)
    texts = [f"gold {number}" for number in range(32)]
    encode(tiny_bert, texts, batch_tokens=16 * 5)
    assert max(tried) > 3
    tried.clear()
    encode(tiny_bert, texts, batch_tokens=16 * 5)
    assert max(tried) <= 3
    release_backbones()


def test_transform_text_that_memory_does_not_hold_is_told(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_above(monkeypatch, 0)
    with pytest.raises(ResourceError) as caught:
        encode(tiny_bert, ["gold"])
    assert str(caught.value) == (
        "a text of 3 tokens does not fit into the memory of cpu: "
        "set max_length lower, precision to bfloat16, or device to cpu."
    )


def test_transform_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = build_tiny_bert(tmp_path / "broken")
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.bias[0] = float("inf")
    model.save_pretrained(folder)
    assert np.isfinite(encode(folder, layers=1)).all()
    with pytest.raises(BackboneError) as caught:
        encode(folder, layers=(1, 2))
    assert str(caught.value) == (
        "layer 2 of 'broken' gives values that aren't finite in float32: "
        "set precision to float32, or check the checkpoint."
    )


def test_transform_several_threads_share_a_backbone(tiny_llama: Path) -> None:
    expected = {layer: encode(tiny_llama, layers=layer) for layer in range(5)}
    with ThreadPoolExecutor(4) as pool:
        jobs = [(layer, pool.submit(encode, tiny_llama, layers=layer)) for layer in list(range(5)) * 4]
        for layer, job in jobs:
            np.testing.assert_array_equal(job.result(), expected[layer])


# As a scikit-learn transformer


@pytest.mark.parametrize(
    "kind", [list, tuple, np.array, pd.Series], ids=["list", "tuple", "ndarray", "Series"]
)
def test_transform_takes_every_kind_of_column(tiny_bert: Path, kind: Any) -> None:
    np.testing.assert_array_equal(encode(tiny_bert, kind(TEXTS)), encode(tiny_bert))


def test_transform_refuses_what_is_no_string(tiny_bert: Path) -> None:
    with pytest.raises(DataError) as caught:
        encode(tiny_bert, ["gold", None])
    assert str(caught.value) == (
        "text 1 is a NoneType (None), not a string: drop the row or convert it with str()."
    )


def test_encoder_clones_and_pickles_without_weights(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = TransformerEncoder(tiny_bert, layers=[1, 2], precision="float32", store=tmp_path)
    expected = encoder.fit_transform(TEXTS)
    copy = clone(encoder)
    assert copy.get_params() == encoder.get_params()
    assert not hasattr(copy, "last_n_computed_")
    dumped = pickle.dumps(encoder)
    assert len(dumped) < 2000
    np.testing.assert_array_equal(pickle.loads(dumped).transform(TEXTS), expected)
    np.testing.assert_array_equal(copy.set_params(layers=(2,)).transform(TEXTS), expected[:, 32:])


def test_encoder_works_in_pipelines_and_unions(tiny_bert: Path) -> None:
    labels = ["down", "flat", "up", "up", "flat", "up"]
    union = FeatureUnion(
        [("last", TransformerEncoder(tiny_bert)), ("first", TransformerEncoder(tiny_bert, layers=0))]
    )
    pipeline = make_pipeline(union, LogisticRegression(C=100))
    assert pipeline.fit(TEXTS, labels).score(TEXTS, labels) == 1.0
    assert pipeline[:-1].transform(TEXTS).shape == (len(TEXTS), 64)


def test_encoder_import_loads_no_torch_and_works_without_optional_packages(tiny_bert: Path) -> None:
    code = f"""
import sys
for name in ("lance", "datasets", "plotly", "pydantic", "skops", "datasketch", "pandas"):
    sys.modules[name] = None
import embedtune.embed.encoder, embedtune.embed.lexical, embedtune.embed.static
assert "torch" not in sys.modules and "transformers" not in sys.modules
encoder = embedtune.embed.encoder.TransformerEncoder({str(tiny_bert)!r}, precision="float32")
print(encoder.transform(["gold"]).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(1, 32)\n", done.stderr


# Settings that can't be used


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pooling": "average"},
            "pooling 'average' is unknown: choose one of mean, weighted_mean, cls, last, max, pooler, mean_padded.",
        ),
        (
            {"pooling": "pooler", "layers": (1, 3)},
            "pooling 'pooler' reads the last layer only, not (1, 3): set layers to (-1,).",
        ),
        ({"max_length": 129}, "max_length 129 is out of range for '{name}': set it to 1 to 128."),
        ({"max_length": 0}, "max_length 0 is out of range for '{name}': set it to 1 to 128."),
        (
            {"max_length": 2},
            "max_length 2 leaves no room for a text: set it to 3 or more "
            "(2 special tokens surround each text).",
        ),
        ({"batch_tokens": 0}, "batch_tokens 0 is not valid: set it to 'auto' or a positive number."),
        ({"batch_tokens": "big"}, "batch_tokens 'big' is not valid: set it to 'auto' or a positive number."),
    ],
)
def test_transform_bad_setting_is_told(tiny_bert: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        encode(tiny_bert, **settings)
    assert str(caught.value) == message.replace("{name}", tiny_bert.name)


def test_transform_layer_out_of_range_is_told(tiny_bert: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        encode(tiny_bert, layers="last5")
    assert str(caught.value) == (
        f"layer -5 does not exist in '{tiny_bert.name}': it has layers -4 to 3 "
        "(0 is the embedding layer). Set layers within them."
    )


def test_transform_pooler_of_a_model_without_one_is_told(tiny_llama: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        encode(tiny_llama, pooling="pooler")
    assert str(caught.value) == (
        f"'{tiny_llama.name}' has no trained pooler: set pooling to mean, cls or last."
    )
