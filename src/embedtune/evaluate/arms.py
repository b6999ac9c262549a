"""The arms, which of them are compared, and the verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedtune.evaluate.metrics import check_predictions, confusion, per_class
from embedtune.evaluate.significance import (
    LEVEL,
    Resamples,
    bootstrap_intervals,
    compare_resamples,
    holm,
    mcnemar_p,
    resample_metrics,
)
from embedtune.progress import track

#: Comparisons resample at least this often: fewer could not bring a corrected p-value below LEVEL.
MIN_RESAMPLES = 1000


class Arm(NamedTuple):
    """One way to use labels and backbones.

    Attributes
    ----------
    name : str
        Key in results.json and file name under predictions/.
    title : str
        What people read.
    backbones : str
        ``"none"``, ``"frozen"``, ``"tuned"`` or ``"prompted"``.
    trained_on : str
        The rows whose labels it has seen.
    question : str
        What it is there to answer.
    """

    name: str
    title: str
    backbones: str
    trained_on: str
    question: str


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("majority", "Most frequent label", "none", "tune + train", "What does no reading at all score?"),
        Arm("floor", "Words only", "none", "tune + train", "Is a language model needed at all?"),
        Arm("frozen", "Frozen backbones", "frozen", "train", "How good are the models as downloaded?"),
        Arm(
            "frozen+",
            "Frozen backbones, all labels",
            "frozen",
            "tune + train",
            "What would the fine-tuning labels be worth if they only trained the head?",
        ),
        Arm(
            "tuned",
            "Fine-tuned backbones, new head",
            "tuned",
            "tune (backbones), train (head)",
            "Does fine-tuning make better embeddings?",
        ),
        Arm(
            "tuned+",
            "Fine-tuned backbones, cross-fitted",
            "tuned",
            "tune + train",
            "Does fine-tuning make better embeddings, when both see every label?",
        ),
        Arm(
            "end-to-end",
            "Fine-tuned with its own head",
            "tuned",
            "tune + train",
            "What does the usual recipe, everything fine-tuned at once, score?",
        ),
        Arm(
            "prompt",
            "A decoder asked for the label",
            "prompted",
            "those of the examples in its prompt",
            "Would asking a language model, without training anything, do as well?",
        ),
    )
}

#: Which arms are set against each other, `a` minus `b`.
PAIRS = (
    ("tuned", "frozen"),
    ("tuned", "frozen+"),
    ("tuned+", "frozen+"),
    ("end-to-end", "frozen+"),
    ("end-to-end", "floor"),
    ("frozen+", "floor"),
    ("frozen+", "frozen"),
    ("frozen+", "prompt"),
)


def score_arm(
    y: ArrayLike,
    probabilities: ArrayLike,
    label_names: Sequence[str],
    *,
    predicted: NDArray[np.int64] | None = None,
    groups: ArrayLike | None = None,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what results.json says of an arm's quality.

    Parameters
    ----------
    y : array-like of int, shape (n,)
    probabilities : array-like of float, shape (n_seeds, n, n_labels)
    label_names : sequence of str
        Sorted, one per column.
    predicted : ndarray of int, shape (n_seeds, n), optional
        The labels named; by default the likeliest ones.
    groups, n_resamples, confidence, seed
        As `embedtune.evaluate.significance.bootstrap_intervals`.

    Returns
    -------
    dict
        Each metric as ``{"value", "low", "high", "seed_sd"}``; ``per_class``, means over seeds (so that the mean F1 is
        macro_f1); ``confusion``, counts of the first seed's predictions, rows true, columns predicted.
    """
    y, probabilities = check_predictions(y, probabilities)
    seeds = probabilities.reshape(-1, *probabilities.shape[-2:])
    named = seeds.argmax(axis=2) if predicted is None else predicted
    scores: dict[str, Any] = dict(
        bootstrap_intervals(
            y,
            seeds,
            predicted=named,
            groups=groups,
            n_resamples=n_resamples,
            confidence=confidence,
            seed=seed,
        )
    )
    by_seed = [per_class(y, one, label_names, own) for one, own in zip(seeds, named, strict=True)]
    scores["per_class"] = {
        name: {
            "precision": float(np.mean([one[name]["precision"] for one in by_seed])),
            "recall": float(np.mean([one[name]["recall"] for one in by_seed])),
            "f1": float(np.mean([one[name]["f1"] for one in by_seed])),
            "support": by_seed[0][name]["support"],
        }
        for name in label_names
    }
    scores["confusion"] = confusion(y, named[0], len(label_names)).tolist()
    return scores


def compare_arms(
    y: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    *,
    predicted: Mapping[str, NDArray[np.int64]] | None = None,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    groups: ArrayLike | None = None,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compare those pairs of arms that were run, on accuracy and on macro-F1.

    Differences and intervals come from the paired bootstrap over the means of all seeds, and so does
    macro-F1's p-value. Accuracy's p-value is McNemar's exact test on the first seed's predictions; where
    `groups` has several rows in a group it is the bootstrap over groups, since McNemar's test needs
    independent rows. p-values are corrected together, over every row returned.

    Parameters
    ----------
    y : array-like of int, shape (n,)
    predictions : mapping of str to array-like of float, shape (n_seeds, n, n_labels)
        Probabilities by arm. Arms that no pair names are left out.
    predicted : mapping of str to ndarray of int, shape (n_seeds, n), optional
        The labels that arms name; by default the likeliest ones.
    pairs : sequence of (str, str)
        Differences are the first's score minus the second's.
    groups, n_resamples, confidence, seed
        As `embedtune.evaluate.significance.bootstrap_intervals`; at least `MIN_RESAMPLES` are drawn.

    Returns
    -------
    list of dict
        ``a, b, metric, difference, low, high, p, p_holm, detectable, test, verdict``; verdict is ``"better"``,
        ``"worse"`` or ``"not distinguishable"`` and speaks of a.
    """
    pairs = [pair for pair in pairs if pair[0] in predictions and pair[1] in predictions]
    names = dict.fromkeys(name for pair in pairs for name in pair)
    resamples: dict[str, Resamples] = {}
    first_seed: dict[str, Any] = {}
    n_resamples = max(n_resamples, MIN_RESAMPLES)
    with track("Resampling test rows", len(names), unit="arms") as bar:
        for name in names:
            labels, probabilities = check_predictions(y, predictions[name])
            seeds = probabilities.reshape(-1, *probabilities.shape[-2:])
            named = seeds.argmax(axis=2) if predicted is None else predicted[name]
            resamples[name] = resample_metrics(
                labels, seeds, predicted=named, groups=groups, n_resamples=n_resamples, seed=seed
            )
            first_seed[name] = named[0]
            bar.advance()

    is_grouped = groups is not None and len(np.unique(groups)) < len(np.asarray(y))
    rows: list[dict[str, Any]] = []
    for a, b in pairs:
        for metric in ("accuracy", "macro_f1"):
            row = compare_resamples(
                resamples[a], resamples[b], metric=metric, confidence=confidence
            )._asdict()
            test = "paired bootstrap"
            if metric == "accuracy" and not is_grouped:
                test, row["p"] = "McNemar", mcnemar_p(y, first_seed[a], first_seed[b])
            rows.append({"a": a, "b": b, "metric": metric, **row, "test": test})
    for row, p_holm in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p_holm
        row["verdict"] = say_verdict(row["difference"], p_holm)
    return rows


def write_verdict(
    arms: Mapping[str, Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    *,
    metric: str = "macro_f1",
    confidence: float = 0.95,
    n_test: int | None = None,
    faults: Sequence[str] = (),
) -> str:
    """Say in a sentence whether fine-tuning is worth it on this task.

    The best of tuned, tuned+ and end-to-end is set against frozen+, the control that has the same labels, or
    against frozen, with a warning, where frozen+ wasn't run.

    Parameters
    ----------
    arms : mapping of str to mapping
        results.json's "arms": each holds ``metric`` as ``{"value", …}`` and may hold
        ``cost["finetune_seconds"]``.
    comparisons : sequence of mapping
        From `compare_arms`.
    metric : str
        The metric the verdict is about.
    confidence : float
        Coverage the comparisons' intervals were made with.
    n_test : int, optional
        Test rows; with them it says which differences they could not show.
    faults : sequence of str
        What makes these scores no answer; named before anything else is said.
    """
    if faults:
        verdict = write_verdict(arms, comparisons, metric=metric, confidence=confidence, n_test=n_test)
        return f"Not an answer: {' and '.join(faults)}. {verdict}"
    tuned = [name for name in ("tuned", "tuned+", "end-to-end") if name in arms]
    if not tuned:
        return "No verdict on fine-tuning: no fine-tuned arm was run."
    rows = {(row["a"], row["b"]): row for row in comparisons if row["metric"] == metric}
    for control in ("frozen+", "frozen"):
        against = [rows[name, control] for name in tuned if (name, control) in rows]
        if against:
            row = max(against, key=lambda row: float(arms[row["a"]][metric]["value"]))
            seconds = _finetune_seconds(arms[row["a"]])
            sentence = _say_comparison(row, metric=metric, confidence=confidence, seconds=seconds)
            return sentence if n_test is None else f"{sentence} {_say_power(row, n_test)}"
    return "No verdict on fine-tuning: no frozen arm was run to set it against."


def say_verdict(difference: float, p: float) -> str:
    """Return ``"better"``, ``"worse"`` or ``"not distinguishable"``, by a corrected p-value."""
    if p >= LEVEL or difference == 0:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"


def _say_comparison(row: Mapping[str, Any], *, metric: str, confidence: float, seconds: float | None) -> str:
    opening = {"better": "Worth it", "worse": "Worse"}.get(row["verdict"], "Not distinguishable")
    points = 100 * row["difference"]
    side = "above" if points >= 0 else "below"
    name = {"macro_f1": "macro-F1"}.get(metric, metric)
    sentence = (
        f"{opening}: {row['a']} scores {abs(points):.1f} points of {name} {side} {row['b']} "
        f"({100 * confidence:g} % interval {_signed(100 * row['low'])} to {_signed(100 * row['high'])})"
    )
    if seconds is not None:
        sentence += f", for {_say_seconds(seconds)} of fine-tuning"
    if row["b"] == "frozen":
        sentence += "; it also had more labels, and frozen+, which would tell, was not run"
    return sentence + "."


def _say_power(row: Mapping[str, Any], n_test: int) -> str:
    return f"Differences under {100 * row['detectable']:.1f} points could hardly be seen with {n_test:,} test rows."


def _finetune_seconds(arm: Mapping[str, Any]) -> float | None:
    seconds = (arm.get("cost") or {}).get("finetune_seconds")
    return None if seconds is None else float(seconds)


def _signed(points: float) -> str:
    """Format points with their sign, a real minus, and no negative zero."""
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def _say_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
