from pathlib import Path

import pytest
import torch

from embedtune.embed import precision as module
from embedtune.embed.precision import multiplies_bfloat16, resolve_device, resolve_precision
from embedtune.errors import ConfigError


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu sse2 avx512f avx512_bf16 avx512_vnni", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu sse2 avx512f", False),
        ("model name\t: avx512_bf16", False),
    ],
)
def test_multiplies_bfloat16_reads_the_processors_flags(tmp_path: Path, line: str, expected: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\n{line}\n")
    assert multiplies_bfloat16(path) is expected


def test_multiplies_bfloat16_without_cpuinfo_is_false(tmp_path: Path) -> None:
    assert multiplies_bfloat16(tmp_path / "none") is False


@pytest.mark.parametrize(("has_instructions", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_resolve_precision_auto_on_cpu_follows_the_instructions(
    monkeypatch: pytest.MonkeyPatch, has_instructions: bool, expected: str
) -> None:
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: has_instructions)
    assert resolve_precision("auto", "cpu") == expected


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_resolve_precision_auto_on_cuda_is_half_precision(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16)
    assert resolve_precision("auto", "cuda:0") == expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_resolve_precision_keeps_what_is_asked(precision: str) -> None:
    assert resolve_precision(precision, "cpu") == precision


def test_resolve_precision_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_precision("float3", "cpu")
    assert str(caught.value) == (
        "precision 'float3' is unknown (did you mean 'float32'?): "
        "choose one of auto, float32, bfloat16, float16, int8, nf4."
    )


def test_resolve_device_auto_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"


def test_resolve_device_unknown_or_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as unknown:
        resolve_device("gpu")
    assert str(unknown.value) == "device 'gpu' is unknown: choose auto, cpu, cuda, cuda:N or mps."
    with pytest.raises(ConfigError) as absent:
        resolve_device("cuda:1")
    assert str(absent.value) == (
        "device 'cuda:1' isn't there: torch sees no CUDA device. Set device to auto or cpu."
    )
