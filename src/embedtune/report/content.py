"""RunContent: what a run folder holds, read and checked; optional files that are missing stay empty."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from embedtune.errors import RunFolderError
from embedtune.files import OtherRelease, check_release
from embedtune.runfolder import check_outputs, read_output

N_MISTAKES = 20
RESULTS_SCHEMA = 1
_SHAPE = {
    "schema": int, "task": str, "labels": list, "n": dict, "arms": dict, "comparisons": list, "verdict": str
}  # fmt: skip


class Mistake(NamedTuple):
    """A test row that the best arm got wrong; `confidence` is the probability of the wrong label."""

    row_id: int
    text: str
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class RunContent:
    """One run folder's content.

    Attributes
    ----------
    results : dict
        results.json, schema 1.
    audit : dict
        data/audit.json, or empty.
    class_counts : dict of str to dict
        Rows by label and part, or empty.
    curves : dict
        probes.json, or empty.
    learning : dict
        curve.json, or empty.
    suspects : tuple of dict
        The first rows of suspects.csv, by its columns.
    mistakes : tuple of Mistake
        Of the best arm's first seed, most confident first.
    config : str
        config.yaml's text, or empty.
    """

    results: dict[str, Any]
    audit: dict[str, Any]
    class_counts: dict[str, dict[str, int]]
    curves: dict[str, Any]
    learning: dict[str, Any]
    suspects: tuple[dict[str, str], ...]
    mistakes: tuple[Mistake, ...]
    config: str


def read_run(run_dir: Path) -> RunContent:
    """Read a finished run folder.

    Raises
    ------
    RunFolderError
        If results.json is missing or of another schema, or a file isn't the one that was written.
    """
    results_path = run_dir / "results.json"
    if not results_path.exists():
        raise RunFolderError(f"{run_dir} has no results.json: finish the run's compare stage first.")
    check_outputs(
        run_dir, "results.json", "probes.json", "curve.json", "data/splits.parquet", "data/audit.json"
    )
    results = _read_json(results_path)
    try:
        check_release(results, _SHAPE, schema=RESULTS_SCHEMA, again="run the compare stage again")
    except OtherRelease as error:
        raise RunFolderError(f"{results_path} {error}.") from None
    config_path = run_dir / "config.yaml"
    splits_path = run_dir / "data" / "splits.parquet"
    best = f"predictions/{results.get('best')}.parquet"
    check_outputs(run_dir, best)
    return RunContent(
        results=results,
        audit=_read_json(run_dir / "data" / "audit.json"),
        class_counts=_count_classes(splits_path),
        curves=_read_json(run_dir / "probes.json"),
        learning=_read_json(run_dir / "curve.json"),
        suspects=_read_suspects(run_dir / "suspects.csv"),
        mistakes=_find_mistakes(run_dir / best, splits_path),
        config=config_path.read_text(encoding="utf-8") if config_path.exists() else "",
    )


def hide_texts(run: RunContent) -> RunContent:
    """Return a run folder's content without the texts of its rows."""
    return replace(
        run,
        audit=_drop_texts(run.audit),
        suspects=tuple({**row, "text": ""} for row in run.suspects),
        mistakes=tuple(mistake._replace(text="") for mistake in run.mistakes),
    )


def _drop_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_texts(entry) for key, entry in value.items() if key not in ("text", "texts")}
    return [_drop_texts(entry) for entry in value] if isinstance(value, list) else value


def _read_suspects(path: Path) -> tuple[dict[str, str], ...]:
    if not path.exists():
        return ()
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(itertools.islice(csv.DictReader(file), N_MISTAKES))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = read_output(path)
    return value if isinstance(value, dict) else {"entries": value}


def _count_classes(splits_path: Path) -> dict[str, dict[str, int]]:
    import pyarrow.parquet as pq

    if not splits_path.exists():
        return {}
    columns = pq.read_table(splits_path, columns=["label", "part"]).to_pydict()
    counts = Counter(zip(columns["label"], columns["part"], strict=True))
    parts = [part for part in ("tune", "train", "test") if part in set(columns["part"])]
    by_size = [label for label, _ in Counter(columns["label"]).most_common()]
    return {label: {part: counts[label, part] for part in parts} for label in by_size}


def _find_mistakes(predictions_path: Path, splits_path: Path) -> tuple[Mistake, ...]:
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not predictions_path.exists() or not splits_path.exists():
        return ()
    table = pq.read_table(predictions_path)
    if table.num_rows == 0:
        return ()
    table = table.filter(pc.equal(table["seed"], table["seed"][0]))
    columns = [name for name in table.column_names if name.startswith("p:")]
    names = np.array([name.removeprefix("p:") for name in columns], dtype=object)
    probabilities = np.column_stack([table[name].to_numpy() for name in columns])
    predicted = np.array(table["predicted"].to_pylist(), dtype=object)
    confidence = probabilities[names == predicted[:, None]]
    labels, row_ids = table["label"].to_pylist(), table["row_id"].to_pylist()
    wrong = np.flatnonzero(predicted != np.array(labels, dtype=object))
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:N_MISTAKES]

    wanted = [row_ids[i] for i in worst]
    if not wanted:
        return ()
    found = pq.read_table(
        splits_path, columns=["row_id", "text"], filters=[("row_id", "in", wanted)]
    ).to_pydict()
    texts = dict(zip(found["row_id"], found["text"], strict=True))
    return tuple(
        Mistake(row_ids[i], texts.get(row_ids[i], ""), labels[i], str(predicted[i]), float(confidence[i]))
        for i in worst
    )
