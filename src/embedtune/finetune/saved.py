"""What a finished fine-tuning leaves in its folder, and reading it back.

::

    adapter_config.json + adapter_model.safetensors   a LoRA adapter, or
    config.json + model.safetensors                   the whole backbone
    head.safetensors                                  weight (n_labels, width), bias (n_labels,), float32; none is
                                                      left by instruction tuning
    finetune.json                                     the facts, written last: without it nothing counts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from embedtune.embed.checkpoints import SCHEMA, hash_adapter
from embedtune.errors import BundleError
from embedtune.files import OtherRelease, hash_file, read_sealed, write_sealed

FACTS = "finetune.json"
HEAD = "head.safetensors"
_SHAPE = {
    "schema": int, "key": dict, "backbone_sha256": str, "head_sha256": (str, type(None)), "model_id": str,
    "weights_hash": str, "method": str, "objective": str, "label_names": list, "pooling": str, "prefix": str,
    "max_length": int, "seed": int,
    "n_trained_parameters": int, "n_parameters": int, "best_epoch": int, "n_training": int, "n_validation": int,
    "macro_f1": (float, type(None)), "history": list, "seconds": float, "precision": str, "device": str,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A fine-tuned backbone on disk, with its classification head if it was tuned for classification.

    Attributes
    ----------
    path : Path
        The folder; give it to `TransformerEncoder` as ``adapter``.
    model_id, weights_hash : str
        The model it started from.
    objective, method : str
    label_names : tuple of str
        One per row of `head_weight`, or the answers it was tuned to give.
    pooling, prefix : str
    max_length : int
    head_weight, head_bias : ndarray of float32, shapes (n_labels, width) and (n_labels,), or None
        On the last layer's pooled vector: probabilities are softmax(weight @ vector + bias).
    seed : int
    n_trained_parameters, n_parameters : int
        Head included.
    best_epoch : int
        Whose weights were kept, from 1.
    n_validation : int
        Rows that were set aside to choose it.
    macro_f1 : float or None
        On those rows; None if there were none.
    history : tuple of dict
        Per epoch: step, epoch, macro_f1, log_loss on those rows.
    seconds : float
        Training time, evaluations, checkpoints and the trunk included.
    trunk_seconds : float
        What the trunk took of it; 0 where there is none, or an earlier training had left it.
    precision, device : str
        Of training.
    """

    path: Path
    model_id: str
    weights_hash: str
    method: str
    label_names: tuple[str, ...]
    pooling: str
    prefix: str
    max_length: int
    seed: int
    n_trained_parameters: int
    n_parameters: int
    best_epoch: int
    n_training: int
    n_validation: int
    macro_f1: float | None
    history: tuple[dict[str, float], ...]
    seconds: float
    precision: str
    device: str
    objective: str
    head_weight: NDArray[np.float32] | None = field(repr=False)
    head_bias: NDArray[np.float32] | None = field(repr=False)
    trunk_seconds: float = 0.0


def write_head(folder: Path, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    """Write a linear head."""
    save_file({"weight": np.ascontiguousarray(weight), "bias": np.ascontiguousarray(bias)}, folder / HEAD)


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Declare a fine-tuning finished: hashes of the files beside it, and everything `FineTuned` tells."""
    head = folder / HEAD
    hashes = {
        "head_sha256": hash_file(head) if head.exists() else None,
        "backbone_sha256": hash_adapter(folder),
    }
    write_sealed(folder / FACTS, {"schema": SCHEMA, **facts, **hashes})


def read_heads(
    paths: Sequence[str | Path],
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]] | None:
    """Return the (weight, bias) of each fine-tuned backbone's own head, None where instruction tuning left none.

    Raises
    ------
    BundleError
        As `read_finetuned`.
    """
    heads = [(tuned.head_weight, tuned.head_bias) for tuned in map(read_finetuned, paths)]
    found = [(weight, bias) for weight, bias in heads if weight is not None and bias is not None]
    return found if len(found) == len(heads) else None


def read_finetuned(path: str | Path) -> FineTuned:
    """Read what `fine_tune` left in a folder.

    Raises
    ------
    BundleError
        If the fine-tuning isn't finished, was written by another release, or a file isn't the one it wrote.
    """
    folder = Path(path).expanduser()
    facts = read_facts(folder)
    if facts is None:
        raise BundleError(f"folder '{folder}' holds no finished fine-tuning: run the fine-tuning again.")
    told = {name: facts[name] for name in FineTuned.__dataclass_fields__ if name in facts}
    told["label_names"], told["history"] = tuple(told["label_names"]), tuple(told["history"])
    head = {"weight": None, "bias": None} if facts["head_sha256"] is None else _read_head(folder, facts)
    return FineTuned(path=folder, head_weight=head["weight"], head_bias=head["bias"], **told)


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Return finetune.json, or None if there is none.

    Raises
    ------
    BundleError
        If it isn't what was written, or another release wrote it.
    """
    try:
        return read_sealed(folder / FACTS, _SHAPE, schema=SCHEMA, again="fine-tune again")
    except FileNotFoundError:
        return None
    except OtherRelease as error:
        raise BundleError(f"'{folder / FACTS}' {error}.") from error
    except ValueError as error:
        raise BundleError(f"'{folder / FACTS}' is damaged ({error}): fine-tune again.") from error


def _read_head(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    _check_hash(folder, HEAD, facts["head_sha256"])
    try:
        head: dict[str, Any] = load_file(folder / HEAD)
    except SafetensorError as error:
        raise BundleError(f"'{folder / HEAD}' can't be read ({error}): fine-tune again.") from error
    return head


def _check_hash(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    found = hash_file(path) if path.exists() else "no file"
    if found != expected:
        raise BundleError(
            f"'{path}' has sha256 {found}, finetune.json says {expected}: it was changed; fine-tune again."
        )
