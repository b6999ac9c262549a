"""Fine-tuning by contrast on few labels: how many layers, how fast and how long, with and without labels' names.

    python benchmarks/few_labels.py SOURCE ... [--labels-per-class 8 16] [--draws 3] [--rows 500] [--ways …]

A source is a file or a built-in task. Labels are drawn from tune + train of seed 0 and judged on other rows of them;
test rows aren't looked at.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from embedtune import EmbedClassifier, TransformerEncoder, load_dataset
from embedtune.data.prepare import prepare_splits
from embedtune.finetune.train import fine_tune

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
#: What is tried, by name; None trains nothing.
WAYS: dict[str, dict[str, Any] | None] = {
    "frozen": None,
    "10 epochs, no names": {"epochs": 10, "label_templates": ()},
    "15 epochs, no names": {"epochs": 15, "label_templates": ()},
    "15 epochs": {"epochs": 15},
    "30 epochs": {"epochs": 30},
    "15 epochs, 1e-4": {"epochs": 15, "learning_rate": 1e-4},
    "15 epochs, 2 layers": {"epochs": 15, "n_upper_layers": 2},
    "15 epochs, all layers, 1e-4": {"epochs": 15, "method": "full", "learning_rate": 1e-4},
}
#: What all that train share.
SHARED = {"method": "upper", "n_upper_layers": 3, "learning_rate": 3e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--labels-per-class", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    given = parser.parse_args()
    for source in given.sources:
        splits, _ = prepare_splits(load_dataset(source))
        pool = splits.rows("tune", "train")
        for n in given.labels_per_class:
            for name in given.ways:
                scores = [
                    try_way(splits, pool, n, WAYS[name], seed, given.rows) for seed in range(given.draws)
                ]
                sys.stdout.write(
                    f"{source.rpartition('/')[2]}, {n} labels per class, {name}: {100 * np.mean(scores):.1f}\n"
                )
                sys.stdout.flush()


def try_way(splits: Any, pool: Any, n: int, way: dict[str, Any] | None, seed: int, n_rows: int) -> float:
    """Return the macro-F1 of one way, on `n_rows` rows, after `n` rows of each class."""
    random = np.random.default_rng(seed)
    codes = splits.codes[pool]
    seen = np.concatenate(
        [random.choice(pool[codes == k], n, replace=False) for k in range(len(splits.label_names))]
    )
    unseen = random.permutation(np.setdiff1d(pool, seen))[:n_rows]
    texts, labels = [splits.texts[row] for row in seen], [splits.labels[row] for row in seen]
    asked = [splits.texts[row] for row in unseen]
    with tempfile.TemporaryDirectory() as folder:
        if way is None:
            encoder = TransformerEncoder(MODEL)
            classifier = EmbedClassifier([encoder], "logistic").fit(texts, labels)
        else:
            tuned = fine_tune(
                MODEL,
                texts,
                labels=labels,
                label_names=splits.label_names,
                output_dir=folder,
                objective="contrastive",
                seed=seed,
                **SHARED | way,
            )
            encoder = TransformerEncoder(MODEL, layers=(-1,), adapter=folder)
            classifier = EmbedClassifier.from_finetuned(
                encoder, weight=tuned.head_weight, bias=tuned.head_bias, labels=tuned.label_names
            )
        named = classifier.predict(asked)
    return float(f1_score([splits.labels[row] for row in unseen], named, average="macro", zero_division=0))


if __name__ == "__main__":
    main()
