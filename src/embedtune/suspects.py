"""The fit stage's last step: rows whose label or text looks wrong, as suspects.csv for a reader to correct."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedtune.assemble import build_encoder
from embedtune.config import TransformerView
from embedtune.data.corrections import write_suspects
from embedtune.data.splits import Splits
from embedtune.evaluate.suspects import Suspect, find_disagreements, find_label_errors, find_outliers
from embedtune.plan import TaskRun, arm_key, list_head_parts, list_views, out_of_fold_path, predictions_path
from embedtune.predictions import read_predictions
from embedtune.runfolder import digest, read_output

STEP = "fit.suspects"


def list_suspects(run: TaskRun, splits: Splits) -> None:
    """Write suspects.csv, by the arm that judged its training rows best among those that judged the most."""
    arms = [
        arm
        for arm in run.experiment.compare.arms
        if out_of_fold_path(run, arm).exists() and "test" not in list_head_parts(run.experiment, arm)
    ]
    path = run.path / "suspects.csv"

    def compute() -> dict[str, Any]:
        arm, seen, probabilities = max(
            (_read_opinions(run, splits, arm) for arm in arms),
            key=lambda found: (len(found[1]), _measure(splits.codes[found[1]], found[2])),
        )
        y = splits.codes[seen]
        found = find_label_errors(y, probabilities)
        found += find_disagreements(y, probabilities, _list_near_duplicates(run, splits, seen))
        found += find_outliers(_read_vectors(run, [splits.texts[i] for i in seen]))
        write_suspects(path, [_describe(splits, seen, probabilities, one) for one in found])
        reasons = [one.reason for one in found]
        return {"arm": arm, "n": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}}

    if not arms:
        run.folder.forget(STEP)
        return
    run.folder.run_step(STEP, digest([arm_key(run, arm) for arm in arms]), compute, outputs=[path])


def _read_opinions(
    run: TaskRun, splits: Splits, arm: str
) -> tuple[str, NDArray[np.int64], NDArray[np.float64]]:
    """Return an arm, the rows it judged without having seen them, and its probabilities: test rows are among them."""
    table = pq.read_table(out_of_fold_path(run, arm))
    own = np.column_stack([table[f"p:{name}"].to_numpy() for name in splits.label_names])
    rows = np.concatenate([splits.rows(*list_head_parts(run.experiment, arm)), splits.rows("test")])
    test = read_predictions(predictions_path(run, arm), splits)[0]
    return arm, rows, np.concatenate([own, test])


def _measure(y: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    return float(np.log(np.maximum(probabilities[np.arange(len(y)), y], 1e-12)).mean())


def _list_near_duplicates(run: TaskRun, splits: Splits, rows: NDArray[np.int64]) -> list[list[int]]:
    audit = read_output(run.path / "data" / "audit.json")
    places = {splits.row_ids[row]: place for place, row in enumerate(rows.tolist())}
    return [
        [places[row_id] for row_id in cluster if row_id in places]
        for cluster in audit["near_duplicates"]["conflicting"]
    ]


def _read_vectors(run: TaskRun, texts: list[str]) -> NDArray[np.float32]:
    """Return the highest layer of the first backbone that is read; no columns where there is none."""
    views = [view for _, view in list_views(run, "frozen") if isinstance(view, TransformerView)]
    if not views:
        return np.empty((0, 0), np.float32)
    highest = max(build_encoder(run, views[0], adapter=None).layers_)
    encoder = build_encoder(run, views[0].model_copy(update={"layers": (highest,)}), adapter=None)
    vectors: NDArray[np.float32] = encoder.transform(texts)
    return vectors


def _describe(
    splits: Splits, rows: NDArray[np.int64], probabilities: NDArray[np.float64], one: Suspect
) -> dict[str, Any]:
    row = int(rows[one.place])
    suggested = one.suggested
    return {
        "row": splits.row_ids[row],
        "part": splits.part[row],
        "reason": one.reason,
        "label": splits.labels[row],
        "suggested": "" if suggested is None else splits.label_names[suggested],
        "confidence": "" if suggested is None else f"{probabilities[one.place, suggested]:.3f}",
        "text": splits.texts[row],
    }
