"""Fake run folders, as a finished run leaves them, for the report's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedtune.evaluate.arms import ARMS, compare_arms, score_arm, write_verdict
from embedtune.evaluate.selective import measure_reliability, score_abstention, trace_risk

SHARES = {
    "majority": 0.0,
    "floor": 0.76,
    "frozen": 0.84,
    "frozen+": 0.855,
    "tuned": 0.875,
    "end-to-end": 0.93,
}
HEADLINES = (
    "Operating profit rose to EUR 13.1 mn from EUR 8.7 mn in the corresponding period",
    "Gold slips as the dollar firms ahead of the Fed's minutes",
    "The company will cut 120 jobs at its plant in the north",
    "Net sales were unchanged from a year earlier",
)


def write_run(
    run_dir: Path,
    *,
    labels: tuple[str, ...] = ("negative", "neutral", "positive"),
    texts: tuple[str, ...] = HEADLINES,
    task: str = "headlines",
    shares: dict[str, float] = SHARES,
    n_test: int = 400,
    n_seeds: int = 3,
    seed: int = 0,
) -> Path:
    """Write a run folder whose arms are right on about `shares` of the test rows; return it."""
    generator = np.random.default_rng(seed)
    n = 3 * n_test
    truth = generator.choice(len(labels), n, p=_draw_frequencies(len(labels)))
    part = np.repeat(["tune", "train", "test"], n_test)
    table = {
        "row_id": range(n),
        "text": [f"{texts[i % len(texts)]} ({i})" for i in range(n)],
        "label": [labels[i] for i in truth],
        "group": range(n),
        "part": part.tolist(),
    }
    (run_dir / "data").mkdir(parents=True)
    (run_dir / "predictions").mkdir()
    pq.write_table(
        pa.table({name: list(column) for name, column in table.items()}), run_dir / "data/splits.parquet"
    )

    y = truth[2 * n_test :]
    predictions = {
        name: _draw_predictions(y, len(labels), share, n_seeds, generator) for name, share in shares.items()
    }
    for name, probabilities in predictions.items():
        _write_predictions(
            run_dir / f"predictions/{name}.parquet", probabilities, y, labels, first_row=2 * n_test
        )
    _write_json(run_dir / "results.json", _make_results(task, labels, y, predictions, n_seeds))
    _write_json(run_dir / "data/audit.json", _make_audit(labels, texts))
    _write_json(run_dir / "probes.json", _make_probes())
    (run_dir / "config.yaml").write_text(f"name: {task}\nseeds: [0, 1, 2]\n", encoding="utf-8")
    return run_dir


def edit_results(run_dir: Path, edit: Any) -> None:
    """Read results.json, let `edit` change it, and write it back."""
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    edit(results)
    _write_json(run_dir / "results.json", results)


def _draw_frequencies(n_labels: int) -> np.ndarray:
    weights = 1 / (np.arange(n_labels) + 1.5)
    return weights / weights.sum()


def _draw_predictions(
    y: np.ndarray, n_labels: int, share: float, n_seeds: int, generator: np.random.Generator
) -> np.ndarray:
    logits = generator.normal(size=(n_seeds, len(y), n_labels))
    shared = generator.normal(size=len(y))  # rows hard for one seed are hard for all
    right = shared < np.quantile(shared, share) if share else np.zeros(len(y), dtype=bool)
    wrong = (y + 1) % n_labels
    logits[:, np.arange(len(y)), np.where(right, y, wrong)] += 4 if share else 0
    if not share:
        logits[:] = np.log(_draw_frequencies(n_labels))
    exp = np.exp(logits)
    return exp / exp.sum(axis=-1, keepdims=True)


def _write_predictions(
    path: Path, probabilities: np.ndarray, y: np.ndarray, labels: tuple[str, ...], *, first_row: int
) -> None:
    n_seeds, n, _ = probabilities.shape
    columns: dict[str, Any] = {
        "row_id": np.tile(np.arange(n) + first_row, n_seeds),
        "label": [labels[i] for i in np.tile(y, n_seeds)],
        "predicted": [labels[i] for i in probabilities.argmax(axis=2).ravel()],
        "seed": np.repeat(np.arange(n_seeds), n),
    }
    for i, label in enumerate(labels):
        columns[f"p:{label}"] = probabilities[:, :, i].ravel()
    pq.write_table(pa.table(columns), path)


def _make_results(
    task: str, labels: tuple[str, ...], y: np.ndarray, predictions: dict[str, np.ndarray], n_seeds: int
) -> dict[str, Any]:
    arms = {name: score_arm(y, p, labels, n_resamples=200) for name, p in predictions.items()}
    for name, arm in arms.items():
        arm["reliability"] = measure_reliability(y, predictions[name])
        arm["risk_coverage"] = trace_risk(y, predictions[name])
        arm["abstention"] = score_abstention(y, predictions[name], cost=0.25)
        arm["calibration"] = {"method": "temperature", "temperature": 1.37}
        arm["sets"] = {"coverage": 0.9, "covered": 0.912, "mean_size": 1.21, "single": 0.83}
        is_tuned = name in ARMS and ARMS[name].backbones == "tuned"
        arm["seeds"] = list(range(n_seeds))
        arm["cost"] = {
            "seconds": 410.2 if is_tuned else 12.34,
            "finetune_seconds": 312.0 if is_tuned else None,
            "rows_per_second": 483.1,
            "joules_per_1000": None,
            "trained_parameters": 22_713_216 if is_tuned else 5763,
            "peak_memory_bytes": 1_870_000_000,
        }
    comparisons = compare_arms(y, predictions, n_resamples=200)
    return {
        "schema": 1,
        "task": task,
        "labels": list(labels),
        "n": {"tune": len(y), "train": len(y), "test": len(y)},
        "arms": arms,
        "comparisons": comparisons,
        "verdict": write_verdict(arms, comparisons),
        "best": max(arms, key=lambda name: arms[name]["macro_f1"]["value"]),
        "environment": {
            "python": "3.11.2",
            "torch": "2.13.0",
            "cpu": "2 cores",
            "command": "embedtune run demo --out run",
            "seeds": [0, 1, 2],
            "started": "2026-01-02 03:04:05",
        },
    }


def _make_audit(labels: tuple[str, ...], texts: tuple[str, ...]) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "headlines",
        "fingerprint": "ae24194425eafb3717269ac4202745267ff938cf218fcb4852565e8cfd9b2db5",
        "settings": {"tune_fraction": 0.3, "max_rows": None},
        "own_test_rows": False,
        "rows": {
            "read": 12_345,
            "empty": 3,
            "conflicting": 2,
            "merged": 41,
            "leaked": 0,
            "sampled_out": 0,
            "kept": 12_299,
        },
        "classes": {label: {"tune": 1, "train": 1, "test": 1, "total": 3} for label in labels},
        "characters": {"min": 12, "median": 92.0, "mean": 91.8, "p95": 114.39999999999986, "max": 5000},
        "n_clusters": 1201,
        "n_conflicts": 1,
        "conflicts": [{"text": texts[0], "rows": [4, 17], "labels": list(labels[:2])}],
        "near_duplicates": {
            "threshold": 0.8,
            "n_clusters": 17,
            "largest": [{"size": 2, "rows": [5, 9], "labels": [labels[0]], "texts": list(texts[:2])}],
        },
        "leaks": [],
        "odd_key": dict.fromkeys(labels, 1),
    }


def _make_probes() -> dict[str, Any]:
    frozen = [0.52, 0.66, 0.71, 0.735, 0.75, 0.77, 0.748]
    tuned = [0.52, 0.66, 0.72, 0.78, 0.85, 0.9, 0.915]
    curves = [
        {"view": "minilm", "adapter": adapter, "layers": list(range(7)), "scores": scores}
        for adapter, scores in (("frozen", frozen), ("tuned", tuned))
    ]
    curves.append({"view": "qwen", "adapter": "frozen", "layers": list(range(29)), "scores": [0.6] * 29})
    return {"metric": "macro_f1", "curves": curves}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
