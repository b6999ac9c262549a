"""Is our answer the better classifier? Every arm beside what one would try first, on the same rows.

    python benchmarks/quality.py [DATA ...] [--seeds 0 1 2 3 4] [--methods …] [--labels-per-class 8 16]
        --peers-python PYTHON --work FOLDER

A seed splits the rows anew; everyone trains on tune + train of that split and predicts its test rows. Each figure is
written as soon as it is there (benchmarks/results/quality.jsonl), and what is there is not computed again, so
the same command goes on. `--draw` prints the tables of docs/quality.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline

from embedtune import EmbedClassifier, StaticEncoder, TransformerEncoder
from embedtune.bench.contest import Contestant, hold
from embedtune.data.splits import Splits, read_splits
from embedtune.embed.checkpoints import resolve_model
from embedtune.evaluate.metrics import compute_metrics
from embedtune.finetune.train import fine_tune
from embedtune.predictions import read_predictions

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PHRASEBANK, TWITTER = "financial_phrasebank", "twitter_financial_news_sentiment"
#: Data: what `embedtune run` is told.
DATA = {
    "phrasebank_allagree": ["--data", f"{PHRASEBANK}/Sentences_AllAgree.txt"],
    "phrasebank_50agree": ["--data", f"{PHRASEBANK}/Sentences_50Agree.txt"],
    "gold_sentiment": ["--data", "gold_sentiment"],
    "twitter": [
        *("--data", f"{TWITTER}/sent_train.csv", "--test-data", f"{TWITTER}/sent_valid.csv"),
        *("--label-names", "0=bearish,1=bullish,2=neutral"),
    ],
    "sst2": ["--data", "sst2", "prepare.max_rows=10000"],
    "r8": ["--data", "r8"],
}
ARMS = ("floor", "frozen+", "tuned+", "end-to-end")
#: One choice for all data, made without looking at any of their test rows.
SETTINGS = [
    f"compare.arms=[{', '.join(ARMS)}]",
    "compare.probe_layers=false",
    "finetune.method=upper",
    "finetune.n_upper_layers=4",
]
PEERS = ("embedding + logistic", "TF-IDF + logistic", "static + MLP", "Trainer", "SetFit")
#: Methods that run in this process; the last is what model2vec trains, on WordLlama's table.
OURS = {
    "embedtune, frozen": lambda seed: EmbedClassifier(random_state=seed),
    "embedtune, contrastive": lambda seed: Contrastive(seed),
    "static + MLP": lambda seed: make_pipeline(
        StaticEncoder(), MLPClassifier((512,), early_stopping=True, max_iter=200, random_state=seed)
    ),
}
#: The arm that the training rows favour.
CHOSEN = "embedtune, chosen"
FEW = ("embedtune, contrastive", "embedtune, frozen", "embedding + logistic", "SetFit")


class Contrastive:
    """The three upper layers fine-tuned by contrast, a head fitted after it; settings from other rows."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        tuned = fine_tune(
            MODEL,
            texts,
            labels=labels,
            label_names=sorted(set(labels)),
            output_dir=self._folder.name,
            objective="contrastive",
            method="upper",
            n_upper_layers=3,
            learning_rate=3e-4,
            epochs=15,
            seed=self.seed,
        )
        encoder = TransformerEncoder(MODEL, layers=(-1,), adapter=self._folder.name)
        self.classifier = EmbedClassifier.from_finetuned(
            encoder, weight=tuned.head_weight, bias=tuned.head_bias, labels=tuned.label_names
        )
        return self

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return self.classifier.predict_proba(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", default=list(DATA))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="*", default=["arms", *PEERS])
    parser.add_argument("--labels-per-class", type=int, nargs="*", default=[])
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--work", type=Path, default=Path("quality"))
    parser.add_argument("--draw", action="store_true")
    given = parser.parse_args()
    if given.draw:
        sys.stdout.write(draw([row for row in read_results() if row["seed"] in given.seeds]) + "\n")
        return
    done = {(row["data"], row["seed"], row["method"], row["labels_per_class"]) for row in read_results()}
    for seed in given.seeds:
        for data in given.data:
            run = run_until("prepare", data, seed, given.work)
            if "arms" in given.methods and (data, seed, "frozen+", None) not in done:
                note_arms(data, seed, run_until("report", data, seed, given.work))
            splits = read_splits(run / "data")
            for method in given.methods:
                if method != "arms" and (data, seed, method, None) not in done:
                    note_method(data, seed, method, splits, None, given.peers_python)
            for n in given.labels_per_class:
                for method in FEW:
                    if (data, seed, method, n) not in done:
                        note_method(data, seed, method, splits, n, given.peers_python)


def run_until(stage: str, data: str, seed: int, work: Path) -> Path:
    """Run our arms up to a stage, or go on with it, and return the run folder."""
    out = work / f"{data}-{seed}"
    root = os.environ.get("EMBEDTUNE_DATA", "../shared/data")
    options = [f"{root}/{word}" if "/" in word else word for word in DATA[data]]
    command = [sys.executable, "-m", "embedtune", "run", *options, *SETTINGS, f"seeds=[{seed}]"]
    subprocess.run(
        [*command, "--until", stage, "--out", str(out), "-q"],
        check=True,
        env=os.environ | {"EMBEDTUNE_DATA": root},
        stdout=subprocess.DEVNULL,
    )
    return out


def note_arms(data: str, seed: int, run: Path) -> None:
    """Note every arm, and which of them the training rows favour: by out-of-fold log loss, as a stack takes views."""
    splits = read_splits(run / "data")
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    judged = {arm: score_out_of_fold(run / "predictions" / "out-of-fold" / f"{arm}.parquet") for arm in ARMS}
    for arm in ARMS:
        probabilities = read_predictions(run / "predictions" / f"{arm}.parquet", splits)
        found = results["arms"][arm]
        facts = {
            "seconds": found["cost"]["seconds"],
            "sets": found["sets"],
            "calibration_error_by_chance": expect_calibration_error(probabilities[0]),
            "out_of_fold": judged[arm],
            "is_chosen": arm == min(judged, key=lambda arm: judged[arm]["log_loss"]),
        }
        note(data, seed, arm, None, splits, probabilities, facts)


def expect_calibration_error(probabilities: NDArray[np.float64], *, n_draws: int = 200) -> float:
    """Return the mean calibration error of these rows if labels were drawn by their very probabilities, (n, K)."""
    random = np.random.default_rng(0)
    cumulative = probabilities.cumsum(axis=1) / probabilities.sum(axis=1, keepdims=True)
    drawn = (random.random((n_draws, len(probabilities), 1)) > cumulative).sum(axis=2)
    errors = [compute_metrics(labels, probabilities)["calibration_error"] for labels in drawn]
    return float(np.mean(errors))


def score_out_of_fold(path: Path) -> dict[str, float]:
    """Return the macro-F1 and the log loss, in nats, of an arm's out-of-fold probabilities."""
    table = pq.read_table(path).to_pandas()
    names = sorted(set(table["label"]))
    probabilities = table[[f"p:{name}" for name in names]].to_numpy()
    scores = compute_metrics([names.index(label) for label in table["label"]], probabilities)
    return {metric: scores[metric] for metric in ("macro_f1", "log_loss")}


def note_method(data: str, seed: int, method: str, splits: Splits, n: int | None, python: str) -> None:
    """Train one method on the split's training rows, or on `n` of each class, and note how it does on the test rows."""
    rows = splits.rows("tune", "train")
    if n is not None:
        random = np.random.default_rng(seed)
        codes = splits.codes[rows]
        rows = np.concatenate(
            [random.choice(rows[codes == k], n, replace=False) for k in range(len(splits.label_names))]
        )
    texts, labels = [splits.texts[i] for i in rows], [splits.labels[i] for i in rows]
    test = [splits.texts[i] for i in splits.rows("test")]
    if method in OURS:
        importlib.import_module("embedtune.finetune.loop")  # no import is part of the seconds, nor of peers'
        started = time.perf_counter()
        classifier = OURS[method](seed).fit(texts, labels)
        trained = time.perf_counter()
        probabilities = classifier.predict_proba(test)
        facts = {"train_seconds": trained - started, "seconds": time.perf_counter() - started}
    else:
        job = {
            "method": method,
            "train": list(zip(texts, labels, strict=True)),
            "test": test,
            "labels": list(splits.label_names),
            "model": str(resolve_model(MODEL)),
            "epochs": 5,
            "max_steps": -1 if n is not None else 500,
            "bf16": True,
            "seed": seed,
        }
        script = Path(__file__).parent / "peers" / "classify.py"
        (times,) = hold([Contestant(method, script, job, python)], rounds=1, warm_up=False).values()
        probabilities = times.arrays["probabilities"]
        facts = {key: times.facts[-1][key] for key in ("train_seconds", "seconds")}
    note(data, seed, method, n, splits, probabilities, facts)


def note(
    data: str,
    seed: int,
    method: str,
    n: int | None,
    splits: Splits,
    probabilities: Any,
    facts: dict[str, Any],
) -> None:
    scores = compute_metrics(
        splits.codes[splits.rows("test")], np.asarray(probabilities).reshape(-1, len(splits.label_names))
    )
    row = {"data": data, "seed": seed, "method": method, "labels_per_class": n, **scores, **facts}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    shown = f"macro-F1 {100 * scores['macro_f1']:.2f}, {facts['seconds'] or 0:.0f} s"
    sys.stderr.write(f"{data} {seed} {method} {n or ''}: {shown}\n")


def read_results() -> list[dict[str, Any]]:
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def draw(rows: list[dict[str, Any]]) -> str:
    """Return the tables: macro-F1 and seconds by method and data, and what the shipped probabilities are worth."""
    lines: list[str] = []
    for n in sorted({row["labels_per_class"] for row in rows}, key=lambda n: n or 10**9):
        cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if row["labels_per_class"] == n:
                cells[row["method"], row["data"]].append(row)
                if row.get("is_chosen"):
                    cells[CHOSEN, row["data"]].append(row)
        data = [name for name in DATA if any(name == key[1] for key in cells)]
        methods = sorted(dict.fromkeys(method for method, _ in cells), key=lambda method: method == CHOSEN)
        title = "All labels" if n is None else f"{n} labels per class"
        shown = {method: [_say_scores(cells[method, name]) for name in data] for method in methods}
        lines += _draw_table(f"{title}: macro-F1, %, mean and standard deviation over seeds", data, shown)
        if n is None:
            losses = {
                method: [_say_mean([row["log_loss"] for row in cells[method, name]]) for name in data]
                for method in methods
            }
            lines += _draw_table(f"{title}: log loss, nats, mean over seeds", data, losses)
        seconds = {method: [_say_seconds(cells[method, name]) for name in data] for method in methods}
        lines += _draw_table(f"{title}: seconds to train and to label the test rows", data, seconds)
        if n is not None:
            seconds = {
                method: [_say_seconds(cells[method, name], "train_seconds") for name in data]
                for method in methods
            }
            lines += _draw_table(f"{title}: seconds to train", data, seconds)
        else:
            worth = {
                "calibration error": [
                    _say_mean([row["calibration_error"] for row in cells[CHOSEN, d]]) for d in data
                ],
                "of a perfect one with so many rows": [
                    _say_mean([row["calibration_error_by_chance"] for row in cells[CHOSEN, d]]) for d in data
                ],
                "coverage of 90 % sets": [
                    _say_mean([row["sets"]["covered"] for row in cells[CHOSEN, d]]) for d in data
                ],
                "labels in a set": [
                    _say_mean([row["sets"]["mean_size"] for row in cells[CHOSEN, d]]) for d in data
                ],
            }
            lines += _draw_table("What the chosen arm's probabilities are worth", data, worth)
    return "\n".join(lines)


def _draw_table(title: str, columns: list[str], rows: dict[str, list[str]]) -> list[str]:
    head = ["", title, "", "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return head + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]


def _say_scores(rows: list[dict[str, Any]]) -> str:
    scores = [100 * row["macro_f1"] for row in rows]
    if len(scores) < 2:
        return f"{scores[0]:.1f}" if scores else "–"
    return f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f} ({len(scores)})"


def _say_seconds(rows: list[dict[str, Any]], key: str = "seconds") -> str:
    # not where an earlier call had a part
    measured = [row[key] for row in rows if row.get(key) is not None]
    return f"{np.median(measured):.0f}" if measured else "–"


def _say_mean(values: list[float]) -> str:
    return f"{np.mean(values):.3f}" if values else "–"


if __name__ == "__main__":
    main()
