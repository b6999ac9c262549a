"""What is said of a text, and the columns that say it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedtune.classifier import EmbedClassifier
from embedtune.embed.texts import find_distinct
from embedtune.errors import ConfigError

#: Answers of so many bytes together are remembered, the texts that came last.
MEMORY_BYTES = 64_000_000


@dataclass(frozen=True)
class LabelSettings:
    """Which columns are added beside ``prediction`` and probabilities.

    Attributes
    ----------
    coverage : float or None
        The share of texts whose ``set`` holds the true label.
    abstain_below : float or None
        ``abstain`` is true where the probability of the label named is lower.
    """

    coverage: float | None = None
    abstain_below: float | None = None

    def list_columns(self, classifier: EmbedClassifier) -> list[str]:
        """Return the names of the columns added; raise ConfigError if the classifier has no sets of labels."""
        if self.coverage is not None:
            classifier.list_sets(np.empty((0, len(classifier.classes_))), coverage=self.coverage)
        return [
            "prediction",
            *(f"p:{label}" for label in classifier.classes_),
            *(["set"] if self.coverage is not None else []),
            *(["abstain"] if self.abstain_below is not None else []),
        ]


def check_settings(
    coverage: float | None, abstain_below: float | None, abstain_cost: float | None
) -> LabelSettings:
    """Return the settings; a cost of leaving a text undecided, where an error costs 1, becomes a probability.

    Raises
    ------
    ConfigError
        If two of them contradict each other, or one is out of range.

    References
    ----------
    Chow 1970, "On Optimum Recognition Error and Reject Tradeoff".
    """
    if abstain_below is not None and abstain_cost is not None:
        raise ConfigError("--abstain-below and --abstain-cost say the same in two ways: give one of them.")
    for name, value in (
        ("coverage", coverage),
        ("abstain-below", abstain_below),
        ("abstain-cost", abstain_cost),
    ):
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"--{name} {value} is out of range: give a number between 0 and 1.")
    return LabelSettings(coverage, abstain_below if abstain_cost is None else 1 - abstain_cost)


class Answers(NamedTuple):
    """What a classifier says of some texts.

    Attributes
    ----------
    probabilities : ndarray of float64, shape (n, n_classes)
    is_cut : ndarray of bool, shape (n,)
        Which texts are longer than a backbone reads.
    """

    probabilities: NDArray[np.float64]
    is_cut: NDArray[np.bool_]

    def take(self, rows: Any) -> Answers:
        return Answers(self.probabilities[rows], self.is_cut[rows])


class Labeller:
    """A classifier that runs a text once: among those given together, and among the last ones.

    Parameters
    ----------
    classifier : EmbedClassifier
    memory_bytes : int
        For what is remembered.
    """

    def __init__(self, classifier: EmbedClassifier, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self.classifier = classifier
        n_classes = len(classifier.classes_)
        self._n_kept = memory_bytes // (8 * n_classes + 250)  # Python's own share is some 250 bytes
        self._kept: OrderedDict[bytes, tuple[NDArray[np.float64], bool]] = OrderedDict()

    def label(self, texts: Sequence[str], known: Answers | None = None) -> Answers:
        """Return what the classifier says of texts.

        With `known`, answers that an earlier process came to, nothing is run, but as much remembered. The texts that
        are run together are then those of an undisturbed process, and so are the last bits of what follows.
        """
        distinct, index = find_distinct(texts)
        keys = [_hash(text) for text in distinct]
        missing = [i for i, key in enumerate(keys) if key not in self._kept]
        probabilities = np.empty((len(distinct), len(self.classifier.classes_)))
        is_cut = np.zeros(len(distinct), dtype=np.bool_)
        for i, key in enumerate(keys):
            if key in self._kept:
                self._kept.move_to_end(key)
                probabilities[i], is_cut[i] = self._kept[key]
        if missing:
            if known is not None:
                _, first = np.unique(index, return_index=True)
                found = known.take(first[missing])
            else:
                run = [distinct[i] for i in missing]
                found = Answers(self.classifier.predict_proba(run), self.classifier.find_cut(run))
            probabilities[missing], is_cut[missing] = found
            for i in missing:
                self._kept[keys[i]] = (probabilities[i].copy(), bool(is_cut[i]))
            while len(self._kept) > self._n_kept:
                self._kept.popitem(last=False)
        return Answers(probabilities, is_cut).take(index)

    def make_columns(self, answers: Answers, settings: LabelSettings) -> dict[str, pa.Array]:
        """Return the columns that are added to texts' rows."""
        probabilities = answers.probabilities
        classes = self.classifier.classes_
        named = self.classifier.decide(probabilities)
        columns = {"prediction": pa.array([str(label) for label in named], pa.string())}
        columns |= {f"p:{label}": pa.array(probabilities[:, k]) for k, label in enumerate(classes)}
        if settings.coverage is not None:
            sets = self.classifier.list_sets(probabilities, coverage=settings.coverage)
            labels = [[str(label) for label in chosen] for chosen in sets]
            columns["set"] = pa.array(labels, pa.list_(pa.string()))
        if settings.abstain_below is not None:
            place = {label: k for k, label in enumerate(classes)}
            confidence = probabilities[np.arange(len(named)), [place[label] for label in named]]
            columns["abstain"] = pa.array(confidence < settings.abstain_below)
        return columns


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
