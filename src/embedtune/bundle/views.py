"""Views in a bundle: what is written of an encoder, and the encoder read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import load_file, save_file

from embedtune.bundle.packing import pack_static, pack_transformer
from embedtune.bundle.paths import check_view_name, find_inside
from embedtune.embed.backbone import describe_backbone
from embedtune.embed.crossfitted import CrossFittedEncoder
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.lexical import LexicalEncoder
from embedtune.embed.static import StaticEncoder
from embedtune.errors import BundleError
from embedtune.files import link_or_copy, write_json
from embedtune.finetune.saved import read_heads

NamedEncoder = tuple[str, Any]

#: Parameters of a TransformerEncoder that are the reader's business, not the classifier's.
_LOCAL_PARAMS = ("store", "adapter", "backend", "device", "device_map", "batch_tokens", "trust_remote_code")

_KINDS: dict[str, Any] = {
    "transformer": TransformerEncoder,
    "static": StaticEncoder,
    "lexical": LexicalEncoder,
}


@dataclass(frozen=True)
class Reading:
    """How a bundle's views are to be read: what its reader decides."""

    store: Any = None
    device: str = "auto"
    trust_remote_code: bool = False
    models: Mapping[str, str | Path] = field(default_factory=dict)


def write_view(name: str, encoder: Any, folder: Path, *, standalone: bool) -> dict[str, Any]:
    """Write what a view learned into a bundle's folder, and return what the manifest says of it.

    Raises
    ------
    BundleError
        If it is of a kind, or has a name, that a bundle can't hold.
    """
    check_view_name(name)
    return _write_view(name, encoder, folder, standalone=standalone)


def _write_view(name: str, encoder: Any, folder: Path, *, standalone: bool) -> dict[str, Any]:
    if isinstance(encoder, TransformerEncoder):
        return _write_transformer(name, encoder, folder, standalone=standalone)
    if isinstance(encoder, CrossFittedEncoder):
        if encoder.heads is not None and None in [fold.adapter for fold in encoder.encoders]:
            raise BundleError(
                f"view '{name}' has heads but an encoder without an adapter, where a bundle looks for them: leave "
                "heads out, or give each encoder its adapter."
            )
        folds = [
            _write_view(f"{name}/fold{k}", fold, folder, standalone=standalone)
            for k, fold in enumerate(encoder.encoders)
        ]
        return {
            "name": name,
            "kind": "cross-fitted",
            "encoders": folds,
            "own_heads": encoder.heads is not None,
        }
    if isinstance(encoder, StaticEncoder):
        params = as_json(encoder.get_params())
        view = {"name": name, "kind": "static", "params": params}
        if standalone:
            view["packed"] = f"backbones/{name}"
            pack_static(encoder, folder / view["packed"])
        return view
    if isinstance(encoder, LexicalEncoder):
        view = {"name": name, "kind": "lexical", "params": as_json(encoder.get_params())}
        view["file"] = f"view-{name}.json"
        write_json(folder / view["file"], encoder.dump_vocabulary())
        if encoder.components_ is not None:
            view["components"] = f"view-{name}.safetensors"
            save_file({"components": encoder.components_}, folder / view["components"])
        return view
    raise BundleError(
        f"view '{name}' is a {type(encoder).__name__}, which a bundle can't hold: "
        "use TransformerEncoder, CrossFittedEncoder, StaticEncoder or LexicalEncoder."
    )


def _write_transformer(
    name: str, encoder: TransformerEncoder, folder: Path, *, standalone: bool
) -> dict[str, Any]:
    params = {key: value for key, value in encoder.get_params().items() if key not in _LOCAL_PARAMS}
    view: dict[str, Any] = {"name": name, "kind": "transformer"}
    if standalone:
        # folds of one view share their backbone
        view["packed"] = f"backbones/{name.partition('/')[0]}"
        if not (folder / view["packed"]).exists():
            pack_transformer(encoder, folder / view["packed"])
        params["revision"] = None
        found = identify(encoder, model=folder / view["packed"], revision=None)
    else:
        found = identify(encoder)
        described = describe_backbone(
            encoder.model, revision=encoder.revision, trust_remote_code=encoder.trust_remote_code
        )
        params["revision"] = described.revision or encoder.revision
    view |= {"params": as_json(params), "backbone": found}
    if encoder.adapter is not None:
        view["adapter"] = f"adapters/{name}"
        shutil.copytree(
            encoder.adapter,
            folder / view["adapter"],
            ignore=shutil.ignore_patterns("checkpoints", "logs", "README.md", ".lock", "*.lock"),
            copy_function=link_or_copy,
        )
    return view


def read_view(view: Mapping[str, Any], folder: Path, listed: Iterable[str], *, reading: Reading) -> Any:
    """Return the fitted encoder that a manifest's entry describes.

    Raises
    ------
    BundleError
        If a file of it is missing, or its backbone isn't the one it was trained on.
    BackboneError
        If its backbone isn't there, or runs code that isn't trusted.
    """
    if view["kind"] == "cross-fitted":
        encoders = [read_view(fold, folder, listed, reading=reading) for fold in view["encoders"]]
        heads = read_heads([encoder.adapter for encoder in encoders]) if view["own_heads"] else None
        return CrossFittedEncoder(encoders, heads=heads)
    params: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in view["params"].items()
    }
    if view["kind"] not in _KINDS:
        raise BundleError(f"{folder} has a view of the unknown kind '{view['kind']}': upgrade embedtune.")
    known = set(_KINDS[view["kind"]]().get_params()) - set(_LOCAL_PARAMS)
    if unknown := sorted(set(params) - known):
        raise BundleError(
            f"{folder} sets '{unknown[0]}' of its view '{view['name']}', which a bundle can't: get a bundle "
            "you trust, or upgrade embedtune."
        )
    _check_params(view, params, folder)
    packed = find_inside(folder, view["packed"], listed) if "packed" in view else None
    if view["kind"] == "lexical":
        vocabulary = json.loads(find_inside(folder, view["file"], listed).read_text(encoding="utf-8"))
        components = None
        if "components" in view:
            components = load_file(find_inside(folder, view["components"], listed))["components"]
        encoder = LexicalEncoder(**params).load_vocabulary(vocabulary, components=components)
        encoder.transform([""])  # what doesn't fit together is told here
        return encoder
    if view["kind"] == "static":
        return StaticEncoder(str(packed) if packed else params["source"]).fit([])
    return _read_transformer(view, params, folder, listed, packed=packed, reading=reading)


def _check_params(view: Mapping[str, Any], params: Mapping[str, Any], folder: Path) -> None:
    """Refuse settings of another type than the encoder takes."""
    hints = get_type_hints(_KINDS[view["kind"]].__init__, localns={"EmbeddingStore": object})
    for name, value in params.items():
        try:
            TypeAdapter(hints[name]).validate_python(value)
        except ValidationError:
            raise BundleError(
                f"{folder} sets '{name}' of its view '{view['name']}' to {str(value)[:40]!r}, which it can't be: get a "
                "bundle you trust."
            ) from None


def _read_transformer(
    view: Mapping[str, Any],
    params: dict[str, Any],
    folder: Path,
    listed: Iterable[str],
    *,
    packed: Path | None,
    reading: Reading,
) -> TransformerEncoder:
    told = params["model"]
    model = str(packed or reading.models.get(told, told))
    encoder = TransformerEncoder(
        **{**params, "model": model},
        adapter=str(find_inside(folder, view["adapter"], listed)) if "adapter" in view else None,
        store=reading.store,
        device=reading.device,
        trust_remote_code=reading.trust_remote_code,
    )
    found = identify(encoder)
    for key, expected in view["backbone"].items():
        # a copy of a Hub model in a folder has a hash where the other has a commit
        is_other = found[key] != expected and (key != "weights" or len(found[key]) == len(expected))
        if is_other:
            raise BundleError(
                f"the bundle's view '{view['name']}' was trained on {told} with {key} {expected}, "
                f"and here it is {found[key]}: get the same model, or train again."
            )
    return encoder


def identify(
    encoder: TransformerEncoder, *, model: str | Path | None = None, revision: str | None = None
) -> dict[str, str]:
    """Return the hashes of all that makes an encoder's numbers what they are; `model` takes its model's place."""
    described = describe_backbone(
        encoder.model if model is None else model,
        adapter=encoder.adapter,
        revision=encoder.revision if model is None else revision,
        trust_remote_code=encoder.trust_remote_code,
    )
    return {
        "weights": described.weights_hash,
        "config": described.config_hash,
        "tokenizer": described.tokenizer_hash,
        "adapter": described.adapter_hash,
    }


def as_json(value: Any) -> Any:
    """Turn tuples, paths and NumPy scalars into what JSON holds."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value.item() if hasattr(value, "item") else value
