"""Ways to a text classifier that one would try first, each on the same training rows, choices made inside them."""

import tempfile
import time

import numpy as np
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV


def prepare(job):
    """Return the run of ``job["method"]``: it trains on ``job["train"]`` and gives the test rows' probabilities.

    What it needs is imported before, so no import is part of its seconds.
    """
    texts, labels = (list(column) for column in zip(*job["train"], strict=True))
    names = job["labels"]
    y = np.array([names.index(label) for label in labels])
    train = {
        "embedding + logistic": use_embedding,
        "Trainer": use_trainer,
        "SetFit": use_setfit,
        "TF-IDF + logistic": use_tfidf,
    }[job["method"]](job)

    def run():
        started = time.perf_counter()
        predict = train(texts, y)
        trained = time.perf_counter()
        probabilities = np.asarray(predict(job["test"]), np.float64)
        return {
            "probabilities": probabilities,
            "train_seconds": trained - started,
            "seconds": time.perf_counter() - started,
        }

    return run


def choose_logistic(X, y, *, seed):
    """Fit a logistic regression whose C five folds choose."""
    folds = min(5, int(np.bincount(y).min()))
    if folds < 2:
        return LogisticRegression(max_iter=2000).fit(X, y)
    head = LogisticRegressionCV(
        Cs=np.logspace(-3, 3, 7), cv=folds, max_iter=2000, scoring="neg_log_loss", random_state=seed, n_jobs=2
    )
    return head.fit(X, y)


def use_embedding(job):
    from sentence_transformers import SentenceTransformer

    def train(texts, y):
        model = SentenceTransformer(job["model"])
        head = choose_logistic(model.encode(texts, show_progress_bar=False), y, seed=job["seed"])
        return lambda rows: head.predict_proba(model.encode(rows, show_progress_bar=False))

    return train


def use_tfidf(job):
    from sklearn.feature_extraction.text import TfidfVectorizer

    def train(texts, y):
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), min_df=1 if len(texts) < 500 else 2, sublinear_tf=True
        )
        head = choose_logistic(vectorizer.fit_transform(texts), y, seed=job["seed"])
        return lambda rows: head.predict_proba(vectorizer.transform(rows))

    return train


def use_setfit(job):
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    def train(texts, y):
        model = SetFitModel.from_pretrained(job["model"])
        with tempfile.TemporaryDirectory() as place:
            arguments = TrainingArguments(
                output_dir=place,
                num_iterations=20,
                batch_size=16,
                num_epochs=1,
                max_steps=job["max_steps"],
                seed=job["seed"],
                report_to="none",
                save_strategy="no",
            )
            Trainer(
                model=model, args=arguments, train_dataset=Dataset.from_dict({"text": texts, "label": y})
            ).train()
        return model.predict_proba

    return train


def use_trainer(job):
    """Fine-tune all weights at two rates; rate and epoch are those of the best macro-F1 on a held-out part."""
    import torch
    from datasets import Dataset
    from sklearn.metrics import f1_score
    from sklearn.model_selection import train_test_split
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    tokenizer = AutoTokenizer.from_pretrained(job["model"])

    def encode(rows, labels=None):
        columns = dict(tokenizer(rows, truncation=True, max_length=128))
        return Dataset.from_dict(columns if labels is None else columns | {"labels": labels})

    def train(texts, y):
        seen, held_out = train_test_split(
            np.arange(len(y)), test_size=0.15, stratify=y, random_state=job["seed"]
        )
        parts = [encode([texts[i] for i in rows], y[rows]) for rows in (seen, held_out)]
        best = (-1.0, None)
        for rate in (5e-5, 1e-4):
            set_seed(job["seed"])
            model = AutoModelForSequenceClassification.from_pretrained(
                job["model"], num_labels=len(job["labels"])
            )
            with tempfile.TemporaryDirectory() as place:
                trainer = Trainer(
                    model=model,
                    args=TrainingArguments(
                        output_dir=place,
                        num_train_epochs=job["epochs"],
                        learning_rate=rate,
                        per_device_train_batch_size=32,
                        per_device_eval_batch_size=64,
                        warmup_ratio=0.1,
                        weight_decay=0.01,
                        eval_strategy="epoch",
                        save_strategy="epoch",
                        save_only_model=True,
                        load_best_model_at_end=True,
                        metric_for_best_model="macro_f1",
                        bf16=job["bf16"],
                        use_cpu=True,
                        seed=job["seed"],
                        report_to=[],
                        disable_tqdm=True,
                    ),
                    train_dataset=parts[0],
                    eval_dataset=parts[1],
                    data_collator=DataCollatorWithPadding(tokenizer),
                    compute_metrics=lambda found: {
                        "macro_f1": f1_score(found.label_ids, found.predictions.argmax(-1), average="macro")
                    },
                )
                trainer.train()
            if trainer.state.best_metric > best[0]:
                best = trainer.state.best_metric, trainer
        chosen = best[1]
        return lambda rows: torch.from_numpy(chosen.predict(encode(rows)).predictions).softmax(-1).numpy()

    return train
