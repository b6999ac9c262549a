"""The arms of a run as one would write them: sentence-transformers, transformers' Trainer and scikit-learn."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from sentence_transformers import SentenceTransformer, models
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

STRENGTHS = np.logspace(-3, 3, 7)


def choose(*steps):
    """Return a pipeline whose logistic regression is chosen by five folds."""
    pipeline = make_pipeline(*steps, LogisticRegression(max_iter=2000))
    return GridSearchCV(
        pipeline, {"logisticregression__C": STRENGTHS}, cv=5, scoring="neg_log_loss", n_jobs=-1
    )


def fine_tune(job, texts, y, folder):
    """Train all weights under a classification head; return the trainer."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=int(y.max()) + 1)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=job["epochs"],
            learning_rate=job["learning_rate"],
            per_device_train_batch_size=job["batch_size"],
            per_device_eval_batch_size=64,
            warmup_steps=job["warmup_steps"],
            weight_decay=0.01,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=encode(tokenizer, texts, y),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(folder))
    return trainer


def encode(tokenizer, texts, y):
    """Return a list of tokenised rows."""
    rows = tokenizer(list(texts), truncation=True, max_length=128)
    return [{**{name: rows[name][i] for name in rows}, "labels": int(y[i])} for i in range(len(y))]


def interval(y, predicted, random):
    """Return a bootstrap interval of macro-F1."""
    found = []
    for _ in range(1000):
        rows = random.integers(len(y), size=len(y))
        found.append(f1_score(y[rows], predicted[rows], average="macro", zero_division=0))
    return np.quantile(found, [0.025, 0.975]).tolist()


def difference(y, first, second, random):
    """Return a paired bootstrap interval of a difference in macro-F1, and McNemar's exact p."""
    found = []
    for _ in range(1000):
        rows = random.integers(len(y), size=len(y))
        scores = [f1_score(y[rows], part[rows], average="macro", zero_division=0) for part in (first, second)]
        found.append(scores[0] - scores[1])
    only_first, only_second = (
        int(((a == y) & (b != y)).sum()) for a, b in ((first, second), (second, first))
    )
    n = only_first + only_second
    return [*np.quantile(found, [0.025, 0.975]).tolist(), binomtest(only_first, n).pvalue if n else 1.0]


def prepare(job):
    """Return the run of all arms on ``job["rows"]``, a JSON file of [text, label] pairs."""
    torch.manual_seed(0)

    def run():
        rows = list(dict(json.loads(Path(job["rows"]).read_text(encoding="utf-8"))).items())
        texts = np.array([text for text, _ in rows], dtype=object)
        names, y = np.unique([label for _, label in rows], return_inverse=True)
        tune, rest = train_test_split(np.arange(len(y)), train_size=0.3, stratify=y, random_state=0)
        train, test = train_test_split(rest, test_size=0.2, stratify=y[rest], random_state=0)
        both = np.concatenate([tune, train])
        predicted = {"majority": DummyClassifier().fit(texts[both], y[both]).predict(texts[test])}
        predicted["floor"] = (
            choose(TfidfVectorizer(ngram_range=(1, 2))).fit(texts[both], y[both]).predict(texts[test])
        )

        encoder = SentenceTransformer(job["model"], device="cpu")
        for arm, part in (("frozen", train), ("frozen+", both)):
            head = choose(StandardScaler()).fit(encoder.encode(list(texts[part])), y[part])
            predicted[arm] = head.predict(encoder.encode(list(texts[test])))

        with tempfile.TemporaryDirectory() as folder:
            fine_tune(job, texts[tune], y[tune], Path(folder) / "tuned")
            transformer = models.Transformer(str(Path(folder) / "tuned"))
            tuned = SentenceTransformer(
                modules=[transformer, models.Pooling(transformer.get_word_embedding_dimension())],
                device="cpu",
            )
            head = choose(StandardScaler()).fit(tuned.encode(list(texts[train])), y[train])
            predicted["tuned"] = head.predict(tuned.encode(list(texts[test])))
            trainer = fine_tune(job, texts[both], y[both], Path(folder) / "end-to-end")
            logits = trainer.predict(encode(trainer.processing_class, texts[test], y[test])).predictions
            predicted["end-to-end"] = logits.argmax(axis=1)

        random = np.random.default_rng(0)
        scores = {arm: float(f1_score(y[test], found, average="macro")) for arm, found in predicted.items()}
        intervals = {arm: interval(y[test], found, random) for arm, found in predicted.items()}
        compared = {
            arm: difference(y[test], found, predicted["frozen+"], random)
            for arm, found in predicted.items()
            if arm != "frozen+"
        }
        return {"macro_f1": scores, "intervals": intervals, "compared": compared, "classes": names.tolist()}

    return run
