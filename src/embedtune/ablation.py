"""Ablations: a recipe's quirks, one by one, and settings of the user's, set against the recipe without any."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedtune.data.splits import read_splits
from embedtune.errors import ConfigError, RunFolderError
from embedtune.evaluate.arms import compare_arms, score_arm
from embedtune.files import write_json
from embedtune.predictions import read_predictions

#: What every variant is set against.
CORRECTED = "corrected"


def compare_variants(run_dirs: Mapping[str, Path], *, arm: str, output: Path) -> dict[str, Any]:
    """Set the same arm of several runs on the same test rows against the corrected one's.

    Parameters
    ----------
    run_dirs : mapping of str to Path
        Finished run folders by variant, `CORRECTED` among them.
    arm : str
    output : Path
        Where the result is written, as JSON.

    Returns
    -------
    dict
        ``arm``; ``variants``, each with ``accuracy`` and ``macro_f1`` as ``{"value", "low", "high"}``; ``comparisons``,
        as `compare_arms` gives them, p-values corrected for their number.

    Raises
    ------
    RunFolderError
        If the variants have other test rows.
    """
    splits = {name: read_splits(path / "data") for name, path in run_dirs.items()}
    reference = splits[CORRECTED]
    test = reference.rows("test")
    rows = [reference.row_ids[i] for i in test]
    for name, other in splits.items():
        if [other.row_ids[i] for i in other.rows("test")] != rows:
            raise RunFolderError(
                f"{run_dirs[name]} has other test rows than {run_dirs[CORRECTED]}: delete both and start again."
            )
    labels = list(reference.label_names)
    y = np.array([labels.index(reference.labels[i]) for i in test])
    groups = np.asarray(reference.groups)[test]
    probabilities: dict[str, Any] = {
        name: read_predictions(path / "predictions" / f"{arm}.parquet", splits[name])
        for name, path in run_dirs.items()
    }
    result = {
        "schema": 1,
        "arm": arm,
        "variants": {
            name: {
                metric: score[metric]
                for score in (score_arm(y, found, labels, groups=groups),)
                for metric in ("accuracy", "macro_f1")
            }
            for name, found in probabilities.items()
        },
        "comparisons": compare_arms(
            y,
            probabilities,
            pairs=[(name, CORRECTED) for name in run_dirs if name != CORRECTED],
            groups=groups,
        ),
    }
    write_json(output, result)
    return result


def list_variants(quirks: Sequence[str], own: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the variants of a recipe and the settings that make each.

    They are: no quirk, every quirk alone, all of them, and the user's `own`, written as ``NAME: KEY=VALUE …``.

    Raises
    ------
    ConfigError
        If one of `own` isn't written like that, or has a name that is taken.
    """
    variants = {
        CORRECTED: ["compat=corrected"],
        **{name: [f"compat=[{name}]"] for name in quirks},
        "published": ["compat=published"],
    }
    if not quirks:
        del variants["published"]
    for text in own:
        name, _, settings = text.partition(":")
        if not re.fullmatch(r"[\w.+-]+", name) or "=" not in settings:
            raise ConfigError(
                f"variant '{text}' isn't written as NAME: KEY=VALUE …, for example 'stack: fit.head=stack'."
            )
        if name in variants:
            raise ConfigError(f"variant '{name}' is there already: give yours another name.")
        variants[name] = shlex.split(settings)
    return variants
