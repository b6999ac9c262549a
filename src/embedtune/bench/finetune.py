"""Fine-tuning on a CPU: upper layers on a cached trunk, beside transformers' Trainer on all weights.

A round is a seed: everybody trains once with it, in turns, on the same rows of one stratified split.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedtune.bench.contest import Contestant, Times, hold
from embedtune.bench.machine import describe_machine
from embedtune.bench.suite import Options, Report, Row
from embedtune.bench.texts import load_data
from embedtune.embed.backbone import describe_backbone
from embedtune.embed.precision import multiplies_bfloat16
from embedtune.errors import ConfigError, suggest_nearest

MODEL = "all-MiniLM-L6-v2"
HERE = Path(__file__).parent / "contestants"
MAX_LENGTH = 128
PEER_EPOCHS = 5

#: The suite's parts: a data set each.
DATA = ("phrasebank_allagree", "gold_sentiment")


@dataclass(frozen=True)
class _Setting:
    """How we train, what it has to reach, and how many points of macro-F1 it may lose."""

    settings: dict[str, Any]
    aim: float
    may_lose: float | None
    keeps_trunk: bool = False


FAST: dict[str, Any] = {"method": "upper", "n_upper_layers": 3, "epochs": 4, "learning_rate": 1.5e-4}
EXACT: dict[str, Any] = {"method": "upper", "n_upper_layers": 4, "epochs": 5, "learning_rate": 1e-4}

OURS = {
    "3 upper layers, 4 epochs": _Setting(FAST, aim=3.0, may_lose=1.0),
    "4 upper layers, 5 epochs": _Setting(EXACT, aim=1.6, may_lose=0.0),
    "3 upper layers, 4 epochs, trunk there": _Setting(FAST, aim=4.0, may_lose=None, keeps_trunk=True),
}


def run(options: Options) -> Report:
    """Measure fine-tuning; the parts of `only` are the names of `DATA`.

    Without the peers' folder there is no Trainer to compare with, and the rows are seconds.

    Raises
    ------
    ConfigError
        If a part is unknown.
    DataError
        If its data isn't there.
    """
    for part in options.only:
        if part not in DATA:
            raise ConfigError(
                f"part {part!r} is unknown{suggest_nearest(part, DATA)}: choose one of {', '.join(DATA)}."
            )
    machine = describe_machine()
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for name in ("sentiment",) if options.smoke else options.only or DATA:
        job = make_job(name, n_rows=60 if options.smoke else None)
        found = _hold(job, options)
        details[name] = {
            "n_training": len(job["texts"]),
            "n_test": len(job["test_texts"]),
            "times": {contestant: times.describe() for contestant, times in found.items()},
            "facts": {contestant: times.facts for contestant, times in found.items()},
        }
        rows += _judge(name, found)
    return Report(rows, machine, details)


def make_job(name: str, *, n_rows: int | None = None, seed: int = 42) -> dict[str, Any]:
    """Return a data set's rows, each text once, 80 % to train on and 20 % to test on, stratified.

    Of equal texts the first one's label counts. With `n_rows`, only that many are drawn.
    """
    from sklearn.model_selection import train_test_split

    data = load_data(name)
    labels_of: dict[str, str] = {}
    for text, label in zip(data.texts, data.labels, strict=True):
        labels_of.setdefault(text, label)
    texts = list(labels_of)
    names = sorted(set(labels_of.values()))
    labels = [names.index(label) for label in labels_of.values()]
    if n_rows is not None and n_rows < len(texts):
        texts, _, labels, _ = train_test_split(
            texts, labels, train_size=n_rows, stratify=labels, random_state=seed
        )
    texts, test_texts, labels, test_labels = train_test_split(
        texts, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    return {
        "model": MODEL,
        "texts": texts,
        "labels": labels,
        "test_texts": test_texts,
        "test_labels": test_labels,
        "n_labels": len(names),
        "max_length": MAX_LENGTH,
    }


def _hold(job: dict[str, Any], options: Options) -> dict[str, Times]:
    fewer = {"epochs": 1} if options.smoke else {}
    contestants = [
        Contestant(
            name,
            HERE / "tune.py",
            {**job, "settings": {**ours.settings, **fewer}, "keeps_trunk": ours.keeps_trunk},
        )
        for name, ours in OURS.items()
    ]
    if options.peers is not None:
        peer = {
            **job,
            "model": str(describe_backbone(MODEL).source),
            "bfloat16": multiplies_bfloat16(),
            "epochs": PEER_EPOCHS,
            **fewer,
        }
        # Our own Python has the Trainer too.
        contestants.append(Contestant("Trainer", options.peers / "finetune_trainer.py", peer))
    # They warm up while they prepare; a whole training would be a seed too many.
    return hold(contestants, rounds=1 if options.smoke else options.rounds, warm_up=False)


def _judge(data: str, found: dict[str, Times]) -> list[Row]:
    trained = {
        name: Times(seconds=[fact["training_seconds"] for fact in times.facts])
        for name, times in found.items()
    }
    scores = {name: [100 * fact["macro_f1"] for fact in times.facts] for name, times in found.items()}
    rows = []
    for name, ours in OURS.items():
        mean = statistics.fmean(scores[name])
        if "Trainer" not in found:
            seconds = trained[name].seconds
            low, high = round(min(seconds), 3), round(max(seconds), 3)
            note = f"macro-F1 {mean:.2f}"
            median = round(trained[name].median, 3)
            rows.append(Row(f"{data}: {name}", "alone", median, low, high, unit="s", note=note))
            continue
        gained = mean - statistics.fmean(scores["Trainer"])
        note = f"macro-F1 {mean:.2f}, Trainer's {mean - gained:.2f}"
        ratio = trained["Trainer"].over(trained[name])
        rows.append(Row.of(f"{data}: {name}", "Trainer, all weights", ratio, aim=ours.aim, note=note))
        if ours.may_lose is not None:
            gains = [a - b for a, b in zip(scores[name], scores["Trainer"], strict=True)]
            low, high = round(min(gains), 2), round(max(gains), 2)
            what = f"{data}: macro-F1 of {name}, mean over the seeds"
            rows.append(
                Row(what, "Trainer's", round(gained, 2), low, high, unit="points", aim=-ours.may_lose)
            )
    return rows
