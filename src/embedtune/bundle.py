"""Bundles: a classifier as a folder that can be shared and loaded without running anything it brings.

::

    bundle.json       schema, labels, views, head, the hash of every other file, and what the run said of it
    head.skops        the fitted head
    calibrator.skops  what its probabilities are worth, where that was learned
    view-NAME.json    the n-grams a lexical view learned; its projection, if it has one, in view-NAME.safetensors
    adapters/NAME/    fine-tuned weights of a backbone, as `fine_tune` wrote them; fold0/, fold1/ … if cross-fitted

Backbones themselves stay where they are: the bundle names each with the hash of its weights and refuses others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import embedtune
from embedtune.embed.backbone import describe_backbone
from embedtune.embed.checkpoints import hash_file
from embedtune.embed.crossfitted import CrossFittedEncoder
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.lexical import LexicalEncoder
from embedtune.embed.static import StaticEncoder
from embedtune.errors import BundleError
from embedtune.files import link_or_copy, replace_dir, write_json
from embedtune.finetune.saved import read_heads

SCHEMA = 1
CALIBRATOR = "calibrator.skops"

#: Parameters of a TransformerEncoder that are the reader's machine's business, not the classifier's.
_LOCAL_PARAMS = ("store", "adapter", "backend", "device", "device_map", "batch_tokens")
_TRUSTED_PREFIXES = ("embedtune.heads.", "sklearn.", "numpy.", "scipy.sparse.")

NamedEncoder = tuple[str, Any]


@dataclass(frozen=True)
class BundleParts:
    """What a bundle is made of.

    Attributes
    ----------
    views : sequence of (str, encoder)
        Fitted encoders, in the order the head's columns have.
    head : classifier
        Fitted, on the views' columns side by side.
    labels : sequence of str
        The head's classes, in its order.
    calibrator : Calibrator or None
        Fitted, on the head's probabilities.
    decision_weights : ndarray of shape (n_labels,) or None
        What probabilities are multiplied by before the highest names the label.
    normalizes : bool
        Whether vectors are scaled to norm one before the head reads them.
    notes : mapping
        JSON-able facts kept with it: the run's task, arm, figures.
    """

    views: Sequence[NamedEncoder]
    head: Any
    labels: Sequence[str]
    calibrator: Any = None
    decision_weights: NDArray[np.float64] | None = None
    normalizes: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


def write_bundle(parts: BundleParts, path: str | Path) -> Path:
    """Write a bundle folder, whole or not at all; one already there is replaced.

    Raises
    ------
    BundleError
        If `path` is a file, or a folder that isn't a bundle.
    """
    import skops.io

    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / "bundle.json").exists()):
        raise BundleError(f"{path} exists and is not a bundle: choose another path.")
    with replace_dir(path) as scratch:
        views = [_write_view(name, encoder, scratch) for name, encoder in parts.views]
        skops.io.dump(parts.head, scratch / "head.skops")
        if parts.calibrator is not None:
            skops.io.dump(parts.calibrator, scratch / CALIBRATOR)
        files = {str(file.relative_to(scratch).as_posix()): hash_file(file) for file in _list_files(scratch)}
        manifest = {
            "schema": SCHEMA,
            "embedtune": embedtune.__version__,
            "labels": [_plain(label) for label in parts.labels],
            "views": views,
            "decision_weights": None if parts.decision_weights is None else parts.decision_weights.tolist(),
            "normalizes": parts.normalizes,
            "head": {"kind": type(parts.head).__name__, "file": "head.skops"},
            "notes": dict(parts.notes),
            "files": files,
        }
        write_json(scratch / "bundle.json", manifest)
    return path


def read_bundle(path: str | Path, *, store: Any = None, device: str = "auto") -> BundleParts:
    """Read a bundle, checking its schema, the hash of every file, and each backbone's weights.

    Parameters
    ----------
    path : path
        A folder `write_bundle` made.
    store, device
        Given to its transformer views.

    Raises
    ------
    BundleError
        If it isn't a bundle, is of a newer schema, a file is missing or changed, a backbone has other weights than
        it was trained on, or it holds a type that is not on our short list.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"{path} lacks its file {name}: copy the whole bundle again.")
        if hash_file(file) != expected:
            raise BundleError(
                f"{name} in {path} is not the file that was saved: copy the bundle again, or build it anew."
            )
    views = [(view["name"], _read_view(view, path, store=store, device=device)) for view in manifest["views"]]
    head = _load_skops(path / manifest["head"]["file"])
    calibrator = _load_skops(path / CALIBRATOR) if CALIBRATOR in manifest["files"] else None
    weights = manifest["decision_weights"]
    return BundleParts(
        views,
        head,
        manifest["labels"],
        calibrator=calibrator,
        decision_weights=None if weights is None else np.array(weights),
        normalizes=manifest["normalizes"],
        notes=manifest["notes"],
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / "bundle.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{path} is not a bundle (no bundle.json): give the bundle folder of a run, "
            "such as runs/demo/sentiment/bundle."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise BundleError(f"{path / 'bundle.json'} is damaged: copy the bundle again.") from None
    schema = manifest.get("schema")
    if not isinstance(schema, int):
        raise BundleError(f"{path / 'bundle.json'} names no schema: it is not an embedtune bundle.")
    if schema > SCHEMA:
        raise BundleError(
            f"{path} has schema {schema}, written by embedtune {manifest.get('embedtune', '?')}; this embedtune "
            f"{embedtune.__version__} reads up to {SCHEMA}: upgrade embedtune."
        )
    return manifest


def _write_view(name: str, encoder: Any, folder: Path) -> dict[str, Any]:
    if isinstance(encoder, TransformerEncoder):
        params = {key: value for key, value in encoder.get_params().items() if key not in _LOCAL_PARAMS}
        view = {"name": name, "kind": "transformer", "params": _plain(params), "backbone": _identify(encoder)}
        if encoder.adapter is not None:
            view["adapter"] = f"adapters/{name}"
            shutil.copytree(
                encoder.adapter,
                folder / "adapters" / name,
                ignore=shutil.ignore_patterns("checkpoints", "logs"),
                copy_function=link_or_copy,
            )
        return view
    if isinstance(encoder, CrossFittedEncoder):
        if encoder.heads is not None and None in [fold.adapter for fold in encoder.encoders]:
            raise BundleError(
                f"view '{name}' has heads but an encoder without an adapter, where a bundle looks for them: leave "
                "heads out, or give each encoder its adapter."
            )
        folds = [_write_view(f"{name}/fold{k}", fold, folder) for k, fold in enumerate(encoder.encoders)]
        return {
            "name": name,
            "kind": "cross-fitted",
            "encoders": folds,
            "own_heads": encoder.heads is not None,
        }
    if isinstance(encoder, StaticEncoder):
        return {"name": name, "kind": "static", "params": _plain(encoder.get_params())}
    if isinstance(encoder, LexicalEncoder):
        write_json(folder / f"view-{name}.json", encoder.dump_vocabulary())
        if encoder.components_ is not None:
            save_file({"components": encoder.components_}, folder / f"view-{name}.safetensors")
        params = _plain(encoder.get_params())
        return {"name": name, "kind": "lexical", "params": params, "file": f"view-{name}.json"}
    raise BundleError(
        f"view '{name}' is a {type(encoder).__name__}, which a bundle can't hold: "
        "use TransformerEncoder, CrossFittedEncoder, StaticEncoder or LexicalEncoder."
    )


def _read_view(view: dict[str, Any], path: Path, *, store: Any, device: str) -> Any:
    if view["kind"] == "cross-fitted":
        encoders = [_read_view(fold, path, store=store, device=device) for fold in view["encoders"]]
        heads = read_heads([encoder.adapter for encoder in encoders]) if view["own_heads"] else None
        return CrossFittedEncoder(encoders, heads=heads)
    params: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in view["params"].items()
    }
    if view["kind"] == "lexical":
        vocabulary = json.loads((path / view["file"]).read_text(encoding="utf-8"))
        projects = params["n_components"] is not None
        components = load_file(path / f"view-{view['name']}.safetensors")["components"] if projects else None
        return LexicalEncoder(**params).load_vocabulary(vocabulary, components=components)
    if view["kind"] == "static":
        return StaticEncoder(**params).fit([])
    adapter = str(path / view["adapter"]) if "adapter" in view else None
    encoder = TransformerEncoder(**params, adapter=adapter, store=store, device=device)
    found = _identify(encoder)
    for key, expected in view["backbone"].items():
        if found[key] != expected:
            raise BundleError(
                f"the bundle's view '{view['name']}' was trained on {params['model']} with {key} {expected}, "
                f"and here it is {found[key]}: get the same model, or train again."
            )
    return encoder


def _identify(encoder: TransformerEncoder) -> dict[str, str]:
    """Return the hashes of all that makes an encoder's numbers what they are."""
    described = describe_backbone(
        encoder.model,
        adapter=encoder.adapter,
        revision=encoder.revision,
        trust_remote_code=encoder.trust_remote_code,
    )
    return {
        "weights": described.weights_hash,
        "config": described.config_hash,
        "tokenizer": described.tokenizer_hash,
        "adapter": described.adapter_hash,
    }


def _load_skops(path: Path) -> Any:
    import skops.io

    unknown = skops.io.get_untrusted_types(file=path)
    refused = [name for name in unknown if not name.startswith(_TRUSTED_PREFIXES)]
    if refused:
        raise BundleError(
            f"{path.name} holds types we don't load: {', '.join(sorted(refused))}. Get a bundle you trust."
        )
    return skops.io.load(path, trusted=unknown)


def _list_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _plain(value: Any) -> Any:
    """Turn tuples, paths and NumPy scalars into what JSON holds."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
