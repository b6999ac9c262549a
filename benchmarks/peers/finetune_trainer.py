"""transformers' Trainer on all weights, as its documentation shows it: dynamic padding, a classification head."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from typing import Any

from sklearn.metrics import f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Train on a few rows once, so that what happens only the first time isn't counted."""
    seeds = itertools.count()
    fine_tune(job, n_rows=64, epochs=1, seed=0)
    return lambda: fine_tune(job, n_rows=len(job["texts"]), epochs=job["epochs"], seed=next(seeds))


def fine_tune(job: dict[str, Any], *, n_rows: int, epochs: int, seed: int) -> dict[str, Any]:
    """Train, and score the test rows; the seconds are those of loading, tokenizing and training."""
    started = time.perf_counter()
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=job["n_labels"])

    def encode(texts: list[str], labels: list[int]) -> list[dict[str, Any]]:
        encoded = tokenizer(texts, truncation=True, max_length=job["max_length"])
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": label}
            for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
        ]

    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            output_dir=place,
            num_train_epochs=epochs,
            learning_rate=1e-4,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            bf16=job["bfloat16"],
            use_cpu=True,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=encode(job["texts"][:n_rows], job["labels"][:n_rows]),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        seconds = time.perf_counter() - started
        logits = trainer.predict(encode(job["test_texts"], job["test_labels"])).predictions
    score = f1_score(job["test_labels"], logits.argmax(axis=1), average="macro")
    return {"training_seconds": seconds, "macro_f1": float(score)}
