"""A bundle in another form: with its backbones in it, or its backbones as ONNX graphs."""

from __future__ import annotations

from pathlib import Path

from embedtune.bundle import Reading, copy_bundle, find_bundle, read_bundle
from embedtune.embed.crossfitted import list_backbones
from embedtune.errors import BundleError
from embedtune.files import replace_dir, write_json


def export_standalone(bundle: str | Path, out: str | Path, *, trust_remote_code: bool = False) -> Path:
    """Copy a bundle with its backbones packed in, so that nothing else is needed to load it.

    Raises
    ------
    BundleError, BackboneError
        As `load_bundle`; or if `out` exists, or a backbone has no safetensors.
    """
    folder, root = find_bundle(bundle)
    target = _check_target(out)
    reading = Reading(trust_remote_code=trust_remote_code)
    return copy_bundle(folder, target, standalone=True, root=root, reading=reading)


def export_onnx(bundle: str | Path, out: str | Path, *, trust_remote_code: bool = False) -> Path:
    """Write each backbone of a bundle as ``NAME.onnx``, its tokenizer beside it, and onnx.json, which describes them.

    Graphs put out what the views read of a backbone, in float32; head and calibration aren't part of them.

    Raises
    ------
    BundleError
        As `load_bundle`; or if `out` exists, or there is no backbone in it.
    BackboneError, MissingExtraError
        As `write_onnx`.
    """
    from embedtune.embed.onnx import write_onnx

    folder, root = find_bundle(bundle)
    target = _check_target(out)
    parts = read_bundle(folder, root=root, reading=Reading(trust_remote_code=trust_remote_code))
    encoders = dict(list_backbones(parts.views))
    if not encoders:
        raise BundleError(f"{bundle} reads no backbone, and there is nothing to write as ONNX.")
    with replace_dir(target) as scratch:
        facts = [
            {"view": name, **write_onnx(encoder, scratch / f"{name}.onnx")}
            for name, encoder in encoders.items()
        ]
        write_json(scratch / "onnx.json", {"graphs": facts})
    return target


def _check_target(out: str | Path) -> Path:
    target = Path(out).expanduser()
    if target.exists():
        raise BundleError(f"{target} exists and is not written over: choose another -o, or delete it.")
    if not target.parent.is_dir():
        raise BundleError(f"the folder {target.parent} doesn't exist: make it, or choose another -o.")
    return target
