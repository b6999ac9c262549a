"""Decoders as backbones: padding on either side, quantized weights, models spread by a device map."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from decoder_cases import FAMILIES, build_decoder, read_slowly
from embedtune.assemble import build_encoder
from embedtune.config import build_experiment
from embedtune.embed import backbone as backbone_module
from embedtune.embed import precision as precision_module
from embedtune.embed.backbone import load_backbone
from embedtune.embed.backend import name_reading
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.loading import load_weights
from embedtune.embed.precision import resolve_precision
from embedtune.embed.quantization import check_quantization, make_quantization
from embedtune.embed.store import EmbeddingStore
from embedtune.errors import ConfigError, MissingExtraError, ResourceError
from embedtune.finetune.lora import add_lora
from embedtune.plan import TaskRun
from embedtune.runfolder import RunFolder
from encoder_cases import TEXTS, encode
from tiny_models import build_tiny_llama

POOLINGS = ["mean", "weighted_mean", "last", "max"]
DECODERS = [*FAMILIES, "llama"]


@pytest.fixture(scope="module")
def decoders(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("decoders")
    built = {family: build_decoder(family, tiny_llama, folder / family) for family in FAMILIES}
    return {**built, "llama": tiny_llama}


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA whose layers' rows are whole NF4 blocks."""
    return build_tiny_llama(tmp_path_factory.mktemp("wide"), hidden=64)


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute in float32 whatever this processor has, so that references can be met closely."""
    monkeypatch.setattr(precision_module, "multiplies_bfloat16", lambda: False)
    backbone_module._loaded.clear()
    yield
    backbone_module._loaded.clear()


# Padding


@pytest.mark.parametrize("prefix", ["", "headline: "])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", DECODERS)
def test_padding_on_either_side_and_none_give_the_same(
    decoders: dict[str, Path], family: str, pooling: str, prefix: str
) -> None:
    folder = decoders[family]
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = read_slowly(model, tokenizer, TEXTS, pooling=pooling, prefix=prefix)
    on_the_left = read_slowly(model, tokenizer, TEXTS, pooling=pooling, prefix=prefix, side="left")
    np.testing.assert_allclose(on_the_left, expected, rtol=0, atol=1e-4)
    for batch_tokens in (1, 120, 10_000):
        found = encode(
            folder, layers="all", pooling=pooling, prefix=prefix, max_length=48, batch_tokens=batch_tokens
        )
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", DECODERS)
def test_tokenizers_own_padding_does_not_matter(
    decoders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    """Left or right, with end of text or unknown as the pad token or none at all; no token is added."""
    folder = decoders[family]
    expected = encode(folder, layers="all", pooling="weighted_mean", max_length=48)
    plain = load_backbone(folder, precision="float32", device="cpu")
    for place, changes in enumerate(
        [{"padding_side": "left"}, {"padding_side": "left", "pad_token": "</s>"}, {"pad_token": "<unk>"}]
    ):
        changed = tmp_path / str(place)
        changed.mkdir()
        for path in folder.iterdir():
            (changed / path.name).symlink_to(path)
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        (changed / "tokenizer_config.json").unlink()
        (changed / "tokenizer_config.json").write_text(json.dumps(settings | changes), encoding="utf-8")
        found = encode(changed, layers="all", pooling="weighted_mean", max_length=48)
        np.testing.assert_array_equal(found, expected)
        backbone = load_backbone(changed, precision="float32", device="cpu")
        assert backbone.tokenizer.pad_token == changes.get("pad_token", plain.tokenizer.pad_token)
        assert backbone.tokenizer.padding_side == changes.get("padding_side", "right")
        assert len(backbone.tokenizer) == len(transformers.AutoTokenizer.from_pretrained(changed))
        assert backbone.n_parameters == plain.n_parameters


# Quantized weights

quantized = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes: pip install 'embedtune[llm]'",
)


def round_linear_layers(model: nn.Module, kind: str) -> None:
    """Replace each linear layer's weights by what they are after quantizing, computed here from the definitions."""
    code = NF4 / NF4.abs().max()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or "lora" in name:
            continue
        weight = module.weight.data
        if kind == "int8":
            scale = weight.abs().amax(dim=1, keepdim=True) / 127
            module.weight.data = (weight / scale).round() * scale
        else:
            blocks = weight.reshape(-1, 64)
            scale = blocks.abs().amax(dim=1, keepdim=True)
            nearest = ((blocks / scale).unsqueeze(-1) - code).abs().argmin(dim=-1)
            module.weight.data = (code[nearest] * scale).reshape(weight.shape)


#: Quantiles of the normal distribution, QLoRA (arXiv 2305.14314), appendix E.
NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.5250731, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
    + [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
)  # fmt: skip


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@quantized
@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize(("kind", "atol"), [("int8", 0.05), ("nf4", 0.02)])
def test_quantized_weights_are_read_as_their_definition_says(
    wide_llama: Path, kind: str, atol: float
) -> None:
    """NF4's scales are themselves kept in 8 bits, and LLM.int8() rounds activations too: hence the tolerance."""
    model = transformers.AutoModel.from_pretrained(wide_llama).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(wide_llama)
    exact = read_slowly(model, tokenizer, TEXTS, pooling="mean")
    round_linear_layers(model, kind)
    expected = read_slowly(model, tokenizer, TEXTS, pooling="mean")
    found = encode(wide_llama, backend="torch", layers="all", precision=kind, max_length=48).reshape(
        expected.shape
    )
    assert np.abs(found - expected).max() < atol * np.abs(expected).max()
    if kind == "nf4":
        assert np.abs(found - expected).max() < 0.2 * np.abs(exact - expected).max()


@quantized
@pytest.mark.parametrize(("kind", "stored"), [("int8", torch.int8), ("nf4", torch.uint8)])
def test_quantized_weights_stay_quantized_and_are_counted_whole(
    wide_llama: Path, kind: str, stored: torch.dtype
) -> None:
    full = load_backbone(wide_llama, precision="float32", device="cpu")
    backbone = load_backbone(wide_llama, precision=kind, device="cpu")
    linear = [module for module in backbone.model.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 4 * 7
    assert {module.weight.dtype for module in linear} == {stored}
    assert backbone.n_parameters == full.n_parameters
    assert backbone.stack is not None
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@quantized
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantized_text_does_not_depend_on_its_neighbours(wide_llama: Path, kind: str) -> None:
    alone = encode(wide_llama, backend="torch", precision=kind, batch_tokens=1)
    together = encode(wide_llama, backend="torch", precision=kind, batch_tokens=10_000)
    assert cosines(alone, together).min() > 0.999


@quantized
def test_quantized_reading_is_quiet(
    wide_llama: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    backbone_module._loaded.clear()
    encode(wide_llama, backend="torch", precision="int8")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@quantized
def test_quantized_embeddings_have_tables_of_their_own(wide_llama: Path, tmp_path: Path) -> None:
    vectors = [
        encode(wide_llama, backend="torch", precision=precision, store=tmp_path)
        for precision in ("float32", "int8", "nf4")
    ]
    tables = EmbeddingStore(tmp_path).list()
    compute = resolve_precision("auto", "cpu")
    assert sorted(table.key.precision for table in tables if table.key) == [
        "float32",
        f"int8+{compute}",
        f"nf4+{compute}",
    ]
    assert not np.array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(
        encode(wide_llama, backend="torch", precision="nf4", store=tmp_path), vectors[2]
    )


@quantized
@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_adapter_stays_beside_quantized_weights(wide_llama: Path, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    adapted = add_lora(
        transformers.AutoModel.from_pretrained(wide_llama),
        model_id="x",
        rank=4,
        alpha=8,
        dropout=0.0,
        targets="all-linear",
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    adapted.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(wide_llama)
    base = adapted.get_base_model()
    round_linear_layers(base, kind)
    expected = read_slowly(base, tokenizer, TEXTS, pooling="mean")
    found = encode(wide_llama, backend="torch", layers="all", precision=kind, adapter=tmp_path, max_length=48)
    assert np.abs(found.reshape(expected.shape) - expected).max() < 0.05 * np.abs(expected).max()
    backbone = load_backbone(wide_llama, adapter=tmp_path, precision=kind, device="cpu")
    assert backbone.stack is not None
    names = [name for name, _ in backbone.model.named_parameters() if "lora_A" in name]
    assert len(names) == 4 * 7
    plain = encode(wide_llama, backend="torch", layers="all", precision=kind, max_length=48)
    assert np.abs(found - plain).max() > 0.3 * np.abs(expected).max()


@quantized
def test_nf4_on_a_cpu_refuses_rows_that_are_no_whole_blocks(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        encode(tiny_llama, precision="nf4")
    assert str(caught.value) == (
        f"'{tiny_llama.name}' can't be read in nf4 on a CPU: its layer layers.0.self_attn.q_proj has rows of 32 "
        "weights, not a multiple of 64. Set device to cuda, or precision to int8 or float32."
    )


@quantized
def test_nf4_is_double_quantized_with_the_compute_precision_asked() -> None:
    settings = make_quantization("nf4", compute=torch.float16)
    assert settings.bnb_4bit_quant_type == "nf4"
    assert settings.bnb_4bit_use_double_quant
    assert settings.bnb_4bit_compute_dtype == torch.float16
    assert make_quantization("int8", compute=torch.float16).load_in_8bit


@quantized
@pytest.mark.parametrize(("has_bfloat16", "compute"), [(True, "bfloat16"), (False, "float16")])
def test_name_precision_of_quantized_weights_holds_what_is_computed_in(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, compute: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16)
    assert name_reading("nf4", "cuda", "torch") == f"nf4+{compute}"
    assert name_reading("float16", "cuda", "torch") == "float16"


def test_quantized_weights_without_bitsandbytes_tell_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, wide_llama: Path
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError) as caught:
        TransformerEncoder(wide_llama, precision="nf4", device="cpu").layers_  # noqa: B018
    assert str(caught.value) == "nf4 weights need bitsandbytes: pip install 'embedtune[llm]'."


def test_quantized_weights_on_an_apple_gpu_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        check_quantization("int8", "mps")
    assert str(caught.value) == (
        "int8 weights need a CUDA device or a CPU, not 'mps': keep the weights in another precision, "
        "or set device to cpu."
    )


# Spread over devices


@pytest.fixture
def without_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("spreads over CPU only where there is no CUDA device")


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_device_map_gives_the_same_values(tiny_llama: Path, device_map: str, pooling: str) -> None:
    settings: dict[str, Any] = {"layers": "all", "pooling": pooling, "precision": "float32"}
    found = TransformerEncoder(tiny_llama, device_map=device_map, **settings).transform(TEXTS)
    np.testing.assert_allclose(found, encode(tiny_llama, **settings), rtol=0, atol=1e-6)
    backbone = load_backbone(tiny_llama, precision="float32", device_map=device_map)
    assert backbone.device == "cpu"
    assert backbone.stack is not None


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("precision", ["float32", pytest.param("nf4", marks=quantized)])
def test_device_map_takes_adapters(wide_llama: Path, tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    adapted = add_lora(
        transformers.AutoModel.from_pretrained(wide_llama),
        model_id="x",
        rank=2,
        alpha=4,
        dropout=0.0,
        targets="attention",
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    settings: dict[str, Any] = {"layers": "all", "adapter": tmp_path, "precision": precision}
    found = TransformerEncoder(wide_llama, device_map="auto", **settings).transform(TEXTS)
    np.testing.assert_allclose(found, encode(wide_llama, **settings), rtol=0, atol=1e-5)


def test_device_map_unknown_or_beside_a_device_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError) as unknown:
        TransformerEncoder(tiny_llama, device_map="atuo").layers_  # noqa: B018
    assert str(unknown.value) == (
        "device_map 'atuo' is unknown (did you mean 'auto'?): choose one of auto, balanced, sequential, or None."
    )
    with pytest.raises(ConfigError) as both:
        load_backbone(tiny_llama, device="cpu", device_map="auto")
    assert str(both.value) == (
        "device 'cpu' and device_map 'auto' contradict each other: set device to auto, or device_map to None."
    )


def test_quantized_weights_that_fit_on_no_device_are_told(
    wide_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM"
        )

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", fail)
    with pytest.raises(ResourceError) as caught:
        load_weights("big", wide_llama, revision=None, trust_remote_code=False, dtype=torch.float32)
    assert str(caught.value) == (
        "model 'big' doesn't fit into the CUDA devices' memory, and quantized weights can't be kept anywhere else: "
        "set precision to nf4, or use larger devices."
    )


def test_view_may_have_a_precision_of_its_own(tiny_bert: Path, wide_llama: Path, tmp_path: Path) -> None:
    views = {
        "bert": {"kind": "transformer", "model": str(tiny_bert)},
        "llama": {"kind": "transformer", "model": str(wide_llama), "precision": "nf4"},
    }
    settings = {
        "name": "x",
        "tasks": {"t": {"source": "sujet_sentiment"}},
        "embed": {"views": views, "precision": "float32", "device_map": "auto"},
    }
    run = TaskRun(
        build_experiment(settings, where="here"), "t", RunFolder(tmp_path / "run", identity="x"), ""
    )
    encoders = {
        name: build_encoder(run, view, adapter=None) for name, view in run.experiment.embed.views.items()
    }
    assert {name: encoder.precision for name, encoder in encoders.items()} == {
        "bert": "float32",
        "llama": "nf4",
    }
    assert {encoder.device_map for encoder in encoders.values()} == {"auto"}
