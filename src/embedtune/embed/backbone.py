"""Backbones: pretrained transformers, frozen, with or without what fine-tuning wrote."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedtune.embed.batching import MemoryLimit
from embedtune.embed.checkpoints import (
    check_adapter,
    check_kinds,
    hash_adapter,
    hash_files,
    hash_settings,
    hash_tokenizer,
    is_lora,
    list_weights,
    name_model,
    resolve_model,
)
from embedtune.embed.hidden import find_stack
from embedtune.embed.loading import explain, load_config, load_tokenizer, load_weights
from embedtune.embed.precision import resolve_compute, resolve_device, resolve_precision
from embedtune.embed.quantization import (
    QUANTIZED,
    count_weights,
    hush_bitsandbytes,
    make_quantization,
    place_quantized,
    settle_on_cpu,
)
from embedtune.errors import BackboneError, ConfigError, suggest_nearest
from embedtune.memory import explain_out_of_memory

#: How a model may be spread over devices; see accelerate's `device_map`.
DEVICE_MAPS = (None, "auto", "balanced", "sequential")

#: Loaded backbones kept for the next encoder that asks for the same one, if `keep_backbones` doesn't say more.
_N_KEPT = 2


@dataclass(frozen=True)
class Description:
    """What can be told of a backbone without loading its weights.

    Attributes
    ----------
    model_id : str
        Hub name, or folder name.
    source : Path or str
        Where `from_pretrained` finds it.
    revision : str or None
        The resolved commit of a Hub model.
    weights_hash : str
        sha256 of the weight file (of names and hashes of several); a Hub model's commit.
    config_hash, tokenizer_hash : str
        sha256 of what shapes the results besides the weights.
    adapter : Path or None
    adapter_hash : str
        Empty without an adapter.
    n_layers, width : int
    max_positions : int or None
        Most tokens the model can read; None if it sets no bound.
    """

    model_id: str
    source: Path | str
    revision: str | None
    weights_hash: str
    config_hash: str
    tokenizer_hash: str
    adapter: Path | None
    adapter_hash: str
    n_layers: int
    width: int
    max_positions: int | None
    config: Any = field(repr=False, compare=False)
    tokenizer: Any = field(repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A loaded backbone in evaluation mode, without gradients and without any head.

    Attributes
    ----------
    model : nn.Module
    stack : nn.ModuleList or None
        The layers whose inputs are the hidden states; see `embed.hidden`.
    has_pooler : bool
        Whether the checkpoint brought a trained pooler.
    n_parameters : int
        Weights, each counted as one whatever it is stored in.
    precision : str
    device : str
        Where inputs go: of a model spread over several devices, the first.
    lock : threading.RLock
        Held while tokenizing or running: tokenizer settings and hooks belong to the object, not to a call.
    limit : MemoryLimit
        The largest pass, once memory ran out.
    """

    description: Description
    model: nn.Module
    stack: nn.ModuleList | None
    has_pooler: bool
    n_parameters: int
    precision: str
    device: str
    lock: Any = field(default_factory=threading.RLock, repr=False)
    limit: MemoryLimit = field(default_factory=MemoryLimit, repr=False)

    @property
    def tokenizer(self) -> Any:
        return self.description.tokenizer

    @property
    def n_layers(self) -> int:
        return self.description.n_layers

    @property
    def width(self) -> int:
        return self.description.width

    @property
    def model_id(self) -> str:
        return self.description.model_id

    @property
    def weights_hash(self) -> str:
        return self.description.weights_hash

    @property
    def adapter_hash(self) -> str:
        return self.description.adapter_hash

    @property
    def tokenizer_hash(self) -> str:
        return self.description.tokenizer_hash


_described: dict[tuple[Any, ...], Description] = {}
_loaded: OrderedDict[tuple[Any, ...], Backbone] = OrderedDict()
_n_kept = _N_KEPT
_lock = threading.RLock()
_held: ContextVar[dict[tuple[Any, ...], Description] | None] = ContextVar("embedtune_held", default=None)


def describe_backbone(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Description:
    """Read a backbone's config, tokenizer and hashes, but not its weights.

    Parameters
    ----------
    model : str or Path
        A folder, a Hub name or a packaged model's name.
    adapter : str or Path, optional
        Folder written by `embedtune.finetune`: a LoRA adapter or whole weights.
    revision : str, optional
        Branch, tag or commit on the Hub.
    trust_remote_code : bool
        Run the model's own Python code.

    Raises
    ------
    BackboneError
        If model or adapter is missing, gated, incomplete or needs code that isn't trusted.
    MissingExtraError
        If it is a packaged model whose package isn't installed, and the Hub can't be reached.
    """
    held = _held.get()
    asked = (str(model), adapter, revision, trust_remote_code)
    if held is not None and asked in held:
        return held[asked]
    source = resolve_model(model)
    folder = Path(adapter).expanduser() if adapter is not None else None
    if folder is not None and not folder.is_dir():
        raise BackboneError(
            f"adapter folder '{folder}' does not exist: give a folder that fine-tuning finished."
        )
    key = (str(source), revision, trust_remote_code, folder, _stamp(source), _stamp(folder))
    with _lock:
        if key not in _described:
            with explain(str(model), source):
                _described[key] = _describe(str(model), source, folder, revision, trust_remote_code)
        if held is not None:
            held[asked] = _described[key]
        return _described[key]


@contextmanager
def hold_descriptions() -> Iterator[None]:
    """Describe each backbone once inside the block, as if its files stayed as they are, rather than look every time."""
    token = _held.set({})
    try:
        yield
    finally:
        _held.reset(token)


def load_backbone(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    precision: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> Backbone:
    """Load a backbone, or return the one already loaded; the last two are kept, or as many as `keep_backbones` says.

    Parameters are those of `describe_backbone`, with `precision` and `device` as in `embed.precision`. A LoRA
    adapter is merged in the checkpoint's own precision before anything is rounded; beside int8 and nf4 weights it
    stays what it is.

    Parameters
    ----------
    device_map : {None, "auto", "balanced", "sequential"}
        Spread the layers over all CUDA devices, and the CPU if they don't suffice, as accelerate does.

    Raises
    ------
    ConfigError
        If precision, device or device_map is unknown or can't be had here.
    BackboneError, MissingExtraError
        As `describe_backbone` does, and if weights are missing from the checkpoint.
    ResourceError
        If the model doesn't fit into the device's memory.
    """
    check_device_map(device_map, device)
    device = resolve_device(device)
    precision = resolve_precision(precision, device)
    description = describe_backbone(
        model, adapter=adapter, revision=revision, trust_remote_code=trust_remote_code
    )
    key = (description, precision, device, device_map)
    with _lock:
        if key not in _loaded:
            while len(_loaded) >= _n_kept:
                _loaded.popitem(last=False)
            with explain(str(model), description.source):
                _loaded[key] = _load(description, precision, device, device_map, trust_remote_code)
        _loaded.move_to_end(key)
        return _loaded[key]


def check_device_map(device_map: str | None, device: str) -> None:
    """Refuse an unknown way to spread a model, or one beside a device of its own.

    Raises
    ------
    ConfigError
    """
    if device_map not in DEVICE_MAPS:
        named = [name for name in DEVICE_MAPS if name]
        raise ConfigError(
            f"device_map {device_map!r} is unknown{suggest_nearest(str(device_map), named)}: "
            f"choose one of {', '.join(named)}, or None."
        )
    if device_map is not None and device != "auto":
        raise ConfigError(
            f"device {device!r} and device_map {device_map!r} contradict each other: set device to auto, or "
            "device_map to None."
        )


def keep_backbones(n_backbones: int) -> None:
    """Keep so many loaded backbones, and no fewer than before, so that who reads with all in turn loads each once."""
    global _n_kept
    with _lock:
        _n_kept = max(_n_kept, n_backbones)


def count_kept() -> int:
    """Return how many loaded backbones are kept."""
    return _n_kept


def release_backbones() -> None:
    """Let go of the backbones kept for the next encoder, so that something else fits into memory."""
    with _lock:
        _loaded.clear()


def resolve_layers(
    layers: int | str | Sequence[int], n_layers: int, *, name: str = "the backbone"
) -> tuple[int, ...]:
    """Return hidden-state numbers from 0 (the embedding layer) to `n_layers` (the last), in the order asked.

    Parameters
    ----------
    layers : int, sequence of int, or str
        Negative numbers count from the end; ``"all"`` is 0 to the last, ``"lastK"`` the last K, last first.
    n_layers : int
        Transformer layers in the backbone.
    name : str
        The backbone, for the message.

    Raises
    ------
    BackboneError
        If a layer doesn't exist or none is asked for.
    """
    if isinstance(layers, str):
        last = re.fullmatch(r"last([1-9]\d*)", layers)
        if layers != "all" and last is None:
            raise BackboneError(
                f"layers {layers!r} is unknown: give 'all', 'last5' (any number) or numbers such as (-1, 6)."
            )
        asked = tuple(range(n_layers + 1)) if last is None else tuple(range(-1, -int(last[1]) - 1, -1))
    else:
        asked = (layers,) if isinstance(layers, int) else tuple(int(layer) for layer in layers)
    if not asked:
        raise BackboneError("no layer is asked for: set layers to 'all', 'last5' or numbers such as (-1, 6).")
    for layer in asked:
        if not -n_layers - 1 <= layer <= n_layers:
            raise BackboneError(
                f"layer {layer} does not exist in '{name}': it has layers {-n_layers - 1} to {n_layers} "
                "(0 is the embedding layer). Set layers within them."
            )
    return tuple(layer % (n_layers + 1) for layer in asked)


def _stamp(folder: Path | str | None) -> tuple[tuple[str, int, int], ...]:
    if not isinstance(folder, Path):
        return ()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)


def _describe(
    name: str, source: Path | str, adapter: Path | None, revision: str | None, trust_remote_code: bool
) -> Description:
    for folder in (source, adapter):
        if isinstance(folder, Path):
            check_kinds(folder)
    config = load_config(name, source, revision=revision, trust_remote_code=trust_remote_code)
    commit = getattr(config, "_commit_hash", None)
    pinned = None if isinstance(source, Path) else (commit or revision)
    tokenizer = load_tokenizer(name, source, revision=pinned, trust_remote_code=trust_remote_code)
    if isinstance(source, Path):
        if not list_weights(source):
            raise BackboneError(f"model folder '{source}' holds no weights: add model.safetensors to it.")
        weights_hash = hash_files(list_weights(source))
    else:
        weights_hash = str(pinned or "main")
    if adapter is not None:
        check_adapter(adapter, weights_hash, name=name)
    text_config = config.get_text_config(decoder=False)
    return Description(
        model_id=name_model(name),
        source=source,
        revision=pinned,
        weights_hash=weights_hash,
        config_hash=hash_settings(config.to_dict()),
        tokenizer_hash=hash_tokenizer(tokenizer),
        adapter=adapter,
        adapter_hash=hash_adapter(adapter) if adapter is not None else "",
        n_layers=int(text_config.num_hidden_layers),
        width=int(text_config.hidden_size),
        max_positions=_find_max_positions(text_config),
        config=config,
        tokenizer=tokenizer,
    )


def _find_max_positions(config: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return None
    # RoBERTa-like models number positions from pad_token_id + 1; their tables are that much longer.
    offset_families = ("roberta", "camembert", "xlm-roberta", "longformer", "mpnet")
    offset = (config.pad_token_id or 0) + 1 if any(f in config.model_type for f in offset_families) else 0
    return int(positions) - offset


def _load(
    description: Description, precision: str, device: str, device_map: str | None, trust_remote_code: bool
) -> Backbone:
    quantized = precision in QUANTIZED
    dtype = getattr(torch, resolve_compute(precision, device))
    adapter = description.adapter
    lora = adapter is not None and is_lora(adapter)
    with explain_out_of_memory(
        f"'{description.model_id}' in {precision} does not fit into the memory of {device}: set precision to "
        "bfloat16, float16, int8 or nf4, device_map to auto, or device to cpu."
    ):
        model, missing = load_weights(
            description.model_id,
            description.source if adapter is None or lora else adapter,
            revision=description.revision,
            trust_remote_code=trust_remote_code,
            dtype="auto" if lora and not quantized else dtype,
            lora=adapter if lora else None,
            quantization=make_quantization(precision, compute=dtype) if quantized else None,
            device_map=device_map or (place_quantized(device) if quantized else None),
        )
        has_pooler = getattr(model, "pooler", None) is not None
        if has_pooler and any(name.startswith("pooler.") for name in missing):
            model.pooler = None  # transformers would have filled it with random numbers
            has_pooler = False
        model.eval().requires_grad_(False)
        if quantized:
            settle_on_cpu(model, name=description.model_id)
        else:
            for parameter in model.parameters():
                # Not model.to(dtype): that would round buffers too, such as rotary frequencies.
                parameter.data = parameter.data.to(dtype)
            if device_map is None:
                model.to(torch.device(device))
    if device_map is not None:
        device = _find_first_device(model)
    with hush_bitsandbytes():
        stack = find_stack(model, description.n_layers, device=device)
    return Backbone(
        description=description,
        model=model,
        stack=stack,
        has_pooler=has_pooler,
        n_parameters=sum(map(count_weights, model.parameters())),
        precision=precision,
        device=device,
    )


def _find_first_device(model: Any) -> str:
    """Return the device of a spread model's first part."""
    # A map that came to one device isn't kept, and then no weight is elsewhere.
    placed = getattr(model, "hf_device_map", None) or {"": model.device}
    first = next(iter(placed.values()))
    if isinstance(first, int):
        return f"cuda:{first}"
    # Weights that are kept on disk are computed with by the CPU, or by a device that accelerate brings the input to.
    return "cpu" if str(first) == "disk" else str(first)
