"""Packing backbones into a bundle, so that it stands alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.numpy import save_file

from embedtune.embed.backbone import describe_backbone
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.static import StaticEncoder, load_table
from embedtune.errors import BundleError
from embedtune.files import link_or_copy, write_json

_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def pack_transformer(encoder: TransformerEncoder, folder: Path) -> None:
    """Copy a backbone's weights, config and tokenizer.

    Raises
    ------
    BundleError
        If its weights aren't safetensors, or it needs code of its own.
    """
    described = describe_backbone(
        encoder.model, revision=encoder.revision, trust_remote_code=encoder.trust_remote_code
    )
    source = described.source
    if encoder.trust_remote_code and getattr(described.config, "auto_map", None):
        raise BundleError(
            f"'{encoder.model}' runs Python code of its own, which a bundle can't hold: save it without standalone."
        )
    if isinstance(source, str):
        from huggingface_hub import snapshot_download

        source = Path(snapshot_download(source, revision=described.revision, allow_patterns=list(_WANTED)))
    files = sorted({file for pattern in _WANTED for file in source.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise BundleError(
            f"'{encoder.model}' has no safetensors, and a bundle holds no pickle: save it again with "
            "save_pretrained, or save the bundle without standalone."
        )
    folder.mkdir(parents=True)
    for file in files:
        link_or_copy(str(file.resolve()), str(folder / file.name))


def pack_static(encoder: StaticEncoder, folder: Path) -> None:
    """Write a token table as model2vec has it."""
    folder.mkdir(parents=True)
    if str(encoder.source) != "wordllama":
        source = Path(encoder.source).expanduser()
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            if (source / name).exists():
                shutil.copyfile(source / name, folder / name)
        return
    table = load_table(encoder.source)
    rules = json.loads(table.tokenizer.to_str())
    rules["model"]["unk_token"] = None  # else reading it would leave that token out, which the table doesn't
    save_file({"embeddings": table.vectors}, folder / "model.safetensors")
    write_json(folder / "tokenizer.json", rules)
    write_json(folder / "config.json", {"normalize": table.normalizes})
