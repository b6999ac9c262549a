"""OpenVINO as the backend: the same numbers as torch, in every family, pooling and layer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from embedtune.embed import backend as module
from embedtune.embed import openvino
from embedtune.embed.backbone import release_backbones
from embedtune.embed.backend import name_reading, resolve_backend
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.precision import multiplies_bfloat16
from embedtune.errors import BackboneError, ConfigError, MissingExtraError, ResourceError
from encoder_cases import TEXTS, encode

POOLINGS = ("mean", "weighted_mean", "cls", "last", "max")
#: Enough texts of different lengths for several batches.
MANY = [f"{text} {number} {'rose ' * (number % 7)}" for number in range(40) for text in TEXTS]


def min_cosine(left: np.ndarray, right: np.ndarray) -> float:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / norms).min())


@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "qwen3"])
def test_float32_equals_torch_in_every_layer_and_pooling(family: str, tmp_path: Path) -> None:
    model = getattr(tiny_models, f"build_tiny_{family}")(tmp_path / family)
    settings = {"layers": "all", "pooling": POOLINGS}
    expected = encode(model, backend="torch", **settings)
    found = encode(model, backend="openvino", **settings)
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.999), ("int8", 0.98)])
def test_half_precision_and_int8_stay_close_on_the_real_model(precision: str, least: float) -> None:
    if precision == "bfloat16" and not multiplies_bfloat16():
        pytest.skip("this processor has no bfloat16 instructions")
    texts = [text for text in MANY if text.strip()]
    exact = encode("all-MiniLM-L6-v2", texts, layers=(-1, 3))
    found = encode("all-MiniLM-L6-v2", texts, layers=(-1, 3), precision=precision, backend="openvino")
    assert least < min_cosine(found, exact) < 1.0


def test_family_whose_padding_overflows_is_told_and_never_chosen(tmp_path: Path) -> None:
    model = tiny_models.build_tiny_modernbert(tmp_path / "modernbert")
    assert "openvino" not in TransformerEncoder(model, precision="bfloat16").reading_
    with pytest.raises(BackboneError, match="aren't finite in OpenVINO's float32: set backend to torch"):
        encode(model, backend="openvino")


def test_prefix_is_left_out_as_in_torch(tiny_bert: Path) -> None:
    settings = {"prefix": "query: ", "pooling": ("mean", "cls", "max")}
    expected = encode(tiny_bert, backend="torch", **settings)
    np.testing.assert_allclose(encode(tiny_bert, backend="openvino", **settings), expected, atol=1e-5)


def test_rows_do_not_depend_on_the_batches(tiny_bert: Path) -> None:
    expected = encode(tiny_bert, MANY, backend="openvino")
    for batch_tokens in (1, 64, 100_000):
        found = encode(tiny_bert, MANY, backend="openvino", batch_tokens=batch_tokens)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_tuned_weights_are_read(tiny_bert: Path, tmp_path: Path) -> None:
    other = tiny_models.build_tiny_bert(tmp_path / "other", seed=1)
    first, second = (encode(model, backend="openvino") for model in (tiny_bert, other))
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_allclose(second, encode(other, backend="torch"), atol=1e-5)


def test_store_keeps_backends_apart(tiny_bert: Path, tmp_path: Path) -> None:
    for backend in ("torch", "openvino", "torch"):
        encoder = TransformerEncoder(
            tiny_bert, precision="float32", backend=backend, store=tmp_path / "store"
        )
        encoder.transform(TEXTS)
    assert encoder.last_n_computed_ == 0
    encoder = TransformerEncoder(tiny_bert, precision="float32", backend="openvino", store=tmp_path / "store")
    assert encoder.reading_ == "float32+openvino"
    encoder.transform([*TEXTS, "one more"])
    assert encoder.last_n_computed_ == 1


def test_usage_is_not_reported(tiny_bert: Path) -> None:
    """OpenVINO reports each import to its makers in a forked process, where its telemetry is found."""
    assert metadata.version("openvino_telemetry"), "nothing is tested without it"
    code = f"""
import os, sys
os.register_at_fork(before=lambda: os._exit(7))
from embedtune import TransformerEncoder
TransformerEncoder({str(tiny_bert)!r}, backend="openvino").transform(["a text"])
assert "openvino" in sys.modules and sys.modules["openvino_telemetry"] is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_model_that_cannot_be_converted_is_told_in_one_line(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openvino.frontend.pytorch import ts_decoder

    def refuse(*args: object, **settings: object) -> None:
        raise RuntimeError("no such operation\nand much more")

    monkeypatch.setattr(ts_decoder.TorchScriptPythonDecoder, "__init__", refuse)
    with pytest.raises(BackboneError, match=r"converted for OpenVINO \(no such operation\): set"):
        encode(tiny_bert, backend="openvino", layers=(0, 1))


@pytest.fixture
def described(tiny_bert: Path) -> object:
    return TransformerEncoder(tiny_bert)._describe()


@pytest.mark.parametrize(
    ("precision", "device", "pooling", "expected"),
    [
        ("bfloat16", "cpu", "mean", "openvino"),
        ("int8", "cpu", "mean", "openvino"),
        ("float32", "cpu", "mean", "torch"),
        ("nf4", "cpu", "mean", "torch"),
        ("bfloat16", "cuda", "mean", "torch"),
        ("bfloat16", "cpu", "mean_padded", "torch"),
    ],
)
def test_auto_takes_openvino_where_it_pays_and_may_round(
    described: object, precision: str, device: str, pooling: str, expected: str
) -> None:
    found = resolve_backend(
        "auto", precision=precision, device=device, pooling=(pooling,), description=described
    )
    assert found == expected


def test_auto_without_the_package_is_torch_and_asking_is_refused(
    described: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    settings = {"precision": "bfloat16", "device": "cpu", "pooling": ("mean",), "description": described}
    assert resolve_backend("auto", **settings) == "torch"
    with pytest.raises(MissingExtraError, match=r"pip install 'embedtune\[openvino\]'"):
        resolve_backend("openvino", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "onnx"}, "backend 'onnx' is unknown"),
        ({"pooling": ("pooler",)}, "set backend to torch"),
        ({"precision": "nf4"}, "does not compute in 'nf4'"),
        ({"device": "cuda"}, "set backend to torch"),
    ],
)
def test_what_openvino_cannot_do_is_refused(settings: dict[str, object], message: str) -> None:
    asked = {"backend": "openvino", "precision": "auto", "device": "cpu", "pooling": ("mean",), **settings}
    backend = str(asked.pop("backend"))
    with pytest.raises(ConfigError, match=message):
        resolve_backend(backend, **asked, description=None)  # type: ignore[arg-type]


def test_reading_names_precision_and_backend() -> None:
    assert name_reading("float32", "cpu", "openvino") == "float32+openvino"
    compute = "bfloat16" if multiplies_bfloat16() else "float32"
    assert name_reading("int8", "cpu", "openvino") == f"int8+{compute}+openvino"


def test_importing_the_encoder_brings_in_no_openvino() -> None:
    code = "import sys, embedtune; embedtune.TransformerEncoder(); print('openvino' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_several_poolings_are_those_of_single_passes(tiny_bert: Path) -> None:
    both = encode(tiny_bert, layers=(1, 3), pooling=("cls", "mean"))
    apart = [encode(tiny_bert, layers=(1, 3), pooling=pooling) for pooling in ("cls", "mean")]
    np.testing.assert_array_equal(both, np.concatenate(apart, axis=1))
    encoder = TransformerEncoder(tiny_bert, layers=(1, 3), pooling=("cls", "mean"))
    assert sum(encoder.widths_) == both.shape[1]


@pytest.mark.parametrize("pooling", [(), ("mean", "mean"), ("mean", "pooler"), ("mean", "average")])
def test_poolings_that_do_not_go_together_are_refused(tiny_bert: Path, pooling: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="pooling"):
        encode(tiny_bert, layers=(-1,), pooling=pooling)


def test_interrupt_while_a_model_is_converted_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO catches what its decoder raises, and calls the model one that can't be converted."""
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    original = TorchScriptPythonDecoder.get_op_type

    def get_op_type(self: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return original(self)

    monkeypatch.setattr(TorchScriptPythonDecoder, "get_op_type", get_op_type)
    # a model of its own, whose graph no other test has compiled
    model = tiny_models.build_tiny_bert(tmp_path / "bert", n_layers=6)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            encode(model, backend="openvino", precision="float32", layers=(2,))
    finally:
        signal.signal(signal.SIGINT, before)


def test_batch_that_this_machine_does_not_hold_is_read_in_parts_and_the_size_remembered(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_backbones()
    texts = [f"sales {n} rose in the north" for n in range(32)]
    settings: dict[str, Any] = {
        "precision": "float32",
        "batch_tokens": 256,
        "layers": (-3,),
        "pooling": "last",
    }
    encoder = TransformerEncoder(tiny_bert, backend="openvino", **settings)
    expected = TransformerEncoder(tiny_bert, backend="torch", **settings).transform(texts)
    compile_all, tried, compiled = openvino._compile, [], []

    class Small:
        """A request that has room for few texts; one that failed fails ever after, as its stream's shapes do."""

        def __init__(self, request: Any, shared: dict[str, bool]) -> None:
            self.request, self.shared = request, shared

        def __getattr__(self, name: str) -> Any:
            return getattr(self.request, name)

        def start_async(self, inputs: list[Any]) -> None:
            tried.append(len(inputs[0]))
            self.shared["failed"] |= tried[-1] > 5
            self.request.start_async(inputs)

        def wait(self) -> None:
            self.request.wait()
            if self.shared["failed"]:
                raise RuntimeError("[CPU] Add node can't alloc\n")

    def compile_small(key: Any, backbone: Any) -> Any:
        if key not in openvino._compiled:
            compiled.append(key)
            shared = {"failed": False}
            requests = compile_all(key, backbone)
            openvino._compiled[key] = tuple(Small(request, shared) for request in requests)
        return openvino._compiled[key]

    monkeypatch.setattr(openvino, "_compile", compile_small)
    np.testing.assert_allclose(encoder.transform(texts), expected, rtol=0, atol=1e-5)
    assert max(tried) > 5
    assert 2 <= len(compiled) <= 4  # for 16 and 8 texts, and for what ran beside them
    tried.clear()
    np.testing.assert_allclose(encoder.transform(texts), expected, rtol=0, atol=1e-5)
    assert max(tried) <= 5
    release_backbones()
    n_compiled = len(compiled)
    with monkeypatch.context() as short:
        short.setattr(Small, "wait", lambda self: (_ for _ in ()).throw(RuntimeError("can't alloc")))
        with pytest.raises(
            ResourceError, match=r"^a text of \d+ tokens does not fit into the memory of cpu: set max"
        ):
            encoder.transform(texts)
    np.testing.assert_allclose(encoder.transform(texts), expected, rtol=0, atol=1e-5)
    assert len(compiled) > n_compiled  # what failed isn't used again
    release_backbones()
