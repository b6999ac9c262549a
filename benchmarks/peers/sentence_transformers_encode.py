"""sentence-transformers' `encode` on a list of texts, in whatever setting the job names."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Load the model in the job's backend and precision; exporting is not timed."""
    setting, texts = job["setting"], job["texts"]
    model = load(job["model"], setting)
    options = {"batch_size": setting["batch_size"]} if "batch_size" in setting else {}

    def run() -> dict[str, Any]:
        return {"vectors": model.encode(texts, **options)}

    return run


def load(folder: str, setting: dict[str, Any]) -> SentenceTransformer:
    """Return the model; an exported one lies in a new folder, so the package's own stays as it is."""
    backend = setting.get("backend", "torch")
    if backend == "torch":
        dtype = {"torch_dtype": torch.bfloat16} if setting.get("precision") == "bfloat16" else {}
        return SentenceTransformer(folder, device="cpu", model_kwargs=dtype)
    place = Path(tempfile.mkdtemp(prefix="exported-"))
    exported = SentenceTransformer(folder, device="cpu", backend=backend)
    exported.save_pretrained(str(place))
    options: dict[str, Any] = {}
    if setting.get("precision") == "int8":
        from sentence_transformers.backend import export_dynamic_quantized_onnx_model

        export_dynamic_quantized_onnx_model(exported, "avx512_vnni", str(place))
        options = {"file_name": "onnx/model_qint8_avx512_vnni.onnx"}
    if setting.get("precision") == "bfloat16":
        options = {"ov_config": {"INFERENCE_PRECISION_HINT": "bf16"}}
    return SentenceTransformer(str(place), device="cpu", backend=backend, model_kwargs=options)
