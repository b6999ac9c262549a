"""Numbers that are none, and data that say nothing: refused or handled, and no NaN reaches a result."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np

from torture.rot import TEXTS, forget
from torture.runner import Case, Outcome
from torture.workshop import Workshop

TITLE = "numbers"


def judge(act: Callable[[], Any], said: str) -> Outcome:
    """Do it: probabilities that are some, a refusal in one line, or a loss."""
    from embedtune.errors import EmbedtuneError

    try:
        found = np.asarray(act(), dtype=np.float64)
    except EmbedtuneError as error:
        return Outcome("refused", "" if "\n" not in str(error) else f"{said}: {error}")
    except ValueError as error:  # what scikit-learn's own checks raise
        is_said = any(word in str(error) for word in ("NaN", "infinity", "class", "sample", "feature"))
        return Outcome("refused", "" if is_said else f"{said}: {error}")
    except Exception as error:
        return Outcome("traceback", f"{said}: {type(error).__name__}: {error}")
    if not np.isfinite(found).all():
        return Outcome("not finite", f"{said}: {int((~np.isfinite(found)).sum())} values aren't finite")
    return Outcome("handled")


MATRICES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "noise": lambda rng, n: rng.normal(size=(n, 12)),
    "a constant view": lambda rng, n: np.hstack([np.full((n, 6), 3.5), rng.normal(size=(n, 6))]),
    "a view of zeros": lambda rng, n: np.hstack([np.zeros((n, 6)), rng.normal(size=(n, 6))]),
    "nothing but zeros": lambda rng, n: np.zeros((n, 12)),
    "equal rows": lambda rng, n: np.tile(rng.normal(size=12), (n, 1)),
    "huge values": lambda rng, n: rng.normal(size=(n, 12)) * 1e30,
    "tiny values": lambda rng, n: rng.normal(size=(n, 12)) * 1e-38,
    "float16's largest": lambda rng, n: rng.choice([-65504.0, 65504.0], size=(n, 12)),
    "a NaN": lambda rng, n: _spoil(rng.normal(size=(n, 12)), np.nan),
    "an infinity": lambda rng, n: _spoil(rng.normal(size=(n, 12)), np.inf),
}
LABELS: dict[str, Callable[[np.random.Generator], Any]] = {
    "two classes": lambda rng: np.arange(60) % 2,
    "2 rows in a class": lambda rng: np.r_[np.arange(58) % 2, 2, 2],
    "1 row in a class": lambda rng: np.r_[np.arange(59) % 2, 2],
    "2 rows in every class": lambda rng: np.arange(24) // 2,
    "one class": lambda rng: np.zeros(40, dtype=np.int64),
    "1,000 classes": lambda rng: np.arange(3000) % 1000,
}


def _spoil(matrix: Any, value: float) -> Any:
    matrix[3, 2] = value
    return matrix


def fit_heads(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Every head on every matrix and every set of labels, with and without groups."""
    from embedtune.heads.table import HEADS, make_head

    combinations = [
        (head, matrix, labels)
        for head in HEADS
        for matrix in MATRICES
        for labels in LABELS
        if labels != "1,000 classes" or (head in ("ridge", "cooccurrence") and matrix == "noise")
    ]
    random.shuffle(combinations)
    for name, matrix, labels in combinations:
        rng = np.random.default_rng(random.randrange(1 << 30))
        y = LABELS[labels](rng)
        X = MATRICES[matrix](rng, len(y)).astype(np.float32)
        views = {"views": [[0], [1]], "sources": [None, None]} if HEADS[name][2] else {}

        def fit(name: str = name, views: Any = views, X: Any = X, y: Any = y) -> Any:
            head = make_head(name, widths=[6, 6], **views)
            return head.fit(X, y).predict_proba(X[:20])

        yield judge(fit, f"{name}, {matrix}, {labels}")


def read_bad_weights(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A backbone with NaN, infinite or huge weights, under a head, with and without a store."""
    from safetensors.numpy import load_file, save_file

    from embedtune import EmbedClassifier, TransformerEncoder

    texts, labels = [f"{text} {n}" for n in range(6) for text in TEXTS], ["up", "down"] * 18
    while True:
        folder = workshop.fresh("bad")
        shutil.copytree(workshop.backbone, folder)
        weights = load_file(folder / "model.safetensors")
        name = random.choice(sorted(key for key in weights if weights[key].ndim))
        value = random.choice((np.nan, np.inf, -np.inf, 3e38, 1e5, 0.0))
        if random.random() < 0.5:
            weights[name].reshape(-1)[random.randrange(weights[name].size)] = value
        else:
            weights[name][...] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        forget()
        store = workshop.fresh("store") if random.random() < 0.5 else None
        precision = random.choice(("float32", "bfloat16"))
        encoder = TransformerEncoder(folder, layers="all", store=store, precision=precision, max_length=32)

        def fit(encoder: Any = encoder) -> Any:
            return EmbedClassifier([encoder], "logistic").fit(texts, labels).predict_proba(texts)

        yield judge(fit, f"{name} {value} {precision} {'with' if store else 'without'} a store")
        shutil.rmtree(folder)


def tune_bad_weights(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Fine-tuning a backbone with such weights, or at a learning rate that can't be."""
    from safetensors.numpy import load_file, save_file

    from embedtune.finetune.train import fine_tune

    while True:
        folder = workshop.fresh("bad")
        shutil.copytree(workshop.backbone, folder)
        weights = load_file(folder / "model.safetensors")
        name = random.choice(sorted(key for key in weights if weights[key].ndim > 1))
        value = random.choice((np.nan, np.inf, 3e38, None))
        if value is not None:
            weights[name].reshape(-1)[0] = value
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        forget()
        rate = random.choice((1e-3, 1e6, 1e30))

        def tune(folder: Any = folder, rate: float = rate) -> Any:
            tuned = fine_tune(
                folder, TEXTS * 4, labels=["up", "down"] * 12, label_names=["down", "up"], epochs=1, device="cpu",
                method="full", learning_rate=rate, max_length=32, output_dir=workshop.fresh("tuned"),
            )  # fmt: skip
            return tuned.head_weight

        yield judge(tune, f"{name} {value}, learning rate {rate:g}")
        shutil.rmtree(folder)


CASES = (
    Case("heads on matrices and labels that say nothing", fit_heads, 400),
    Case("a backbone with NaN, infinite or huge weights", read_bad_weights, 300),
    Case("fine-tuning such a backbone, or at a huge learning rate", tune_bad_weights, 100),
)
