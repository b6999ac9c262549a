"""Writing a bundle's folder, and reading it with every file checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import embedtune
from embedtune.bundle.card import write_card
from embedtune.bundle.paths import check_files, find_inside, is_inside, list_files
from embedtune.bundle.views import NamedEncoder, Reading, as_json, read_view, write_view
from embedtune.errors import BundleError, EmbedtuneError
from embedtune.files import OtherRelease, hash_file, read_sealed, replace_dir, write_sealed, write_text
from embedtune.heads.decision import decide

SCHEMA = 1
_SHAPE = {
    "schema": int, "files": dict, "views": list, "labels": list, "head": dict, "notes": dict, "normalizes": bool
}  # fmt: skip
MANIFEST = "bundle.json"
CALIBRATOR = "calibrator.skops"

#: What a head may be made of, beside what skops itself trusts (scikit-learn's estimators, arrays, plain values): ours,
#: and parts of estimators that are plain Python. Compiled ones, trees above all, don't check the arrays they are given.
_TRUSTED = frozenset(
    (
        "embedtune.heads.auto.AutoHead",
        "embedtune.heads.calibration.Calibrator",
        "embedtune.heads.cooccurrence_head.CooccurrenceHead",
        "embedtune.heads.linear.LogisticHead",
        "embedtune.heads.linear.RidgeHead",
        "embedtune.heads.linear.SoftmaxHead",
        "embedtune.heads.stack.StackHead",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    )
)


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


def write_bundle(parts: BundleParts, path: str | Path, *, standalone: bool = False) -> Path:
    """Write a bundle folder, whole or not at all; one already there is replaced.

    Parameters
    ----------
    parts : BundleParts
    path : path
    standalone : bool
        Pack the backbones in, so that nothing else is needed to load it.

    Raises
    ------
    BundleError
        If `path` is a file, or a folder that isn't a bundle, or a view can't be held by one.
    """
    import skops.io

    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).exists()):
        raise BundleError(f"{path} exists and is not a bundle: choose another path.")
    with replace_dir(path) as scratch:
        views = [write_view(name, encoder, scratch, standalone=standalone) for name, encoder in parts.views]
        skops.io.dump(parts.head, scratch / "head.skops")
        if refused := _list_refused(scratch / "head.skops"):
            raise BundleError(
                f"the head {type(parts.head).__name__} holds types that a bundle can't ({', '.join(refused)}): choose "
                "another head."
            )
        if parts.calibrator is not None:
            skops.io.dump(parts.calibrator, scratch / CALIBRATOR)
        manifest = {
            "schema": SCHEMA,
            "embedtune": embedtune.__version__,
            "labels": [as_json(label) for label in parts.labels],
            "views": views,
            "decision_weights": None if parts.decision_weights is None else parts.decision_weights.tolist(),
            "normalizes": parts.normalizes,
            "head": {"kind": type(parts.head).__name__, "file": "head.skops"},
            "notes": dict(parts.notes),
            "files": {name: hash_file(scratch / name) for name in list_files(scratch)},
        }
        write_sealed(scratch / MANIFEST, manifest)
        write_card(scratch, manifest)
    return path


def read_bundle(path: str | Path, *, root: Path | None = None, reading: Reading | None = None) -> BundleParts:
    """Read a bundle, checking its schema, the hash of every file, and each backbone's weights.

    Parameters
    ----------
    path : path
        A folder `write_bundle` made.
    root : Path, optional
        A folder that links in it may lead into; by default the bundle itself.
    reading : Reading, optional

    Raises
    ------
    BundleError
        If it isn't a bundle, is of another schema, a file is missing, changed, or not listed, a backbone has other
        weights than it was trained on, or it holds a type that is not on our short list.
    BackboneError
        If a backbone isn't there.
    """
    path = Path(path)
    manifest = read_manifest(path)
    files = manifest["files"]
    check_files(path, files, root=root or path)
    for name, expected in files.items():
        if hash_file(path / name) != expected:
            raise BundleError(
                f"{name} in {path} is not the file that was saved: copy the bundle again, or build it anew."
            )
    reading = reading or Reading()
    try:
        views = [(view["name"], read_view(view, path, files, reading=reading)) for view in manifest["views"]]
        head_path = find_inside(path, manifest["head"]["file"], files)
        weights = _read_weights(manifest)
    except (EmbedtuneError, MemoryError):
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(
            f"{path / MANIFEST} was written by another release of embedtune ({error!r:.80}): train and save the "
            "bundle again, or use that release."
        ) from error
    except Exception as error:  # whatever readers of forged files meet
        raise _tell_damage(path, error) from error
    try:
        parts = BundleParts(
            views,
            _load_skops(head_path),
            manifest["labels"],
            calibrator=_load_skops(path / CALIBRATOR) if CALIBRATOR in files else None,
            decision_weights=weights,
            normalizes=manifest["normalizes"],
            notes=manifest["notes"],
        )
        _try_head(parts)
    except (EmbedtuneError, MemoryError):
        raise
    except Exception as error:  # whatever a forged head does
        raise _tell_damage(path, error) from error
    return parts


def _tell_damage(path: Path, error: Exception) -> BundleError:
    return BundleError(f"{path} is damaged ({error!r:.80}): copy the bundle again.")


def _try_head(parts: BundleParts) -> None:
    """Give the head an empty row: it is a classifier of these views' columns and labels, or fails here."""
    row = np.zeros(
        (1, sum(width for _, encoder in parts.views for width in encoder.widths_)), dtype=np.float32
    )
    probabilities = parts.head.predict_proba(row)
    if parts.calibrator is not None:
        probabilities = parts.calibrator.transform(probabilities)
    decide(probabilities, parts.decision_weights)
    if [as_json(label) for label in parts.head.classes_] != parts.labels:
        raise ValueError("the head has other labels")


def copy_bundle(
    path: str | Path,
    out: str | Path,
    *,
    standalone: bool,
    root: Path | None = None,
    reading: Reading | None = None,
) -> Path:
    """Write a bundle anew, with its backbones in it if `standalone`; its notes and its card go with it.

    Raises
    ------
    BundleError, BackboneError
        As `read_bundle` and `write_bundle`.
    """
    copied = write_bundle(read_bundle(path, root=root, reading=reading), out, standalone=standalone)
    if (card := Path(path) / "README.md").is_file() and is_inside(card, root or Path(path)):
        write_text(copied / "README.md", card.read_text(encoding="utf-8"))
    return copied


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what a bundle says of itself.

    Raises
    ------
    BundleError
        If it isn't a bundle, is damaged, or of another schema.
    """
    if not (path / MANIFEST).is_file():  # a pipe or a device never ends
        raise BundleError(
            f"{path} is not a bundle (no bundle.json): give the bundle folder of a run, "
            "such as runs/demo/sentiment/bundle."
        )
    try:
        return read_sealed(path / MANIFEST, _SHAPE, schema=SCHEMA, again="train and save the bundle again")
    except OtherRelease as error:
        raise BundleError(f"{path / MANIFEST} {error}.") from None
    except (OSError, ValueError, RecursionError):
        raise BundleError(f"{path / MANIFEST} is damaged: copy the bundle again.") from None


def _read_weights(manifest: Mapping[str, Any]) -> NDArray[np.float64] | None:
    told = manifest.get("decision_weights")
    if told is None:
        return None
    weights = np.array(told, dtype=np.float64)
    if weights.shape != (len(manifest["labels"]),):
        raise ValueError(f"{weights.size} weights of {len(manifest['labels'])} labels")
    return weights


def _load_skops(path: Path) -> Any:
    import skops.io

    try:
        if refused := _list_refused(path):
            raise BundleError(
                f"{path.name} holds types we don't load: {', '.join(refused)}. Get a bundle you trust."
            )
        return skops.io.load(path, trusted=sorted(_TRUSTED))
    except (EmbedtuneError, MemoryError):
        raise
    except Exception as error:  # whatever a forged file makes of it
        raise BundleError(
            f"{path.name} in {path.parent} is no skops file: get a bundle you trust."
        ) from error


def _list_refused(path: Path) -> list[str]:
    """Return the types in a skops file that we don't load; nothing is made of them for that."""
    import skops.io

    return sorted(set(skops.io.get_untrusted_types(file=path)) - _TRUSTED)
