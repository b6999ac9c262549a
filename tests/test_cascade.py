"""A cheap classifier before a dear one."""

from __future__ import annotations

import numpy as np
import pytest

from embedtune import CascadeClassifier, EmbedClassifier, LexicalEncoder
from embedtune.errors import ConfigError
from embedtune.evaluate.selective import trace_cascade

TEXTS = [
    f"{word} {place}"
    for place in "abcdefgh"
    for word in ("sales rose", "sales fell", "sales stood", "rose fell")
]
LABELS = ["up", "down", "flat", "flat"] * 8


class Asked(EmbedClassifier):
    """Notes what it is asked."""

    def predict_proba(self, texts):
        self.asked = list(texts)
        return super().predict_proba(texts)


def fit(kind: type[EmbedClassifier], labels: list[str], **options: object) -> EmbedClassifier:
    return kind([LexicalEncoder()], "logistic", **options).fit(TEXTS * 4, labels)


def test_dear_classifier_is_asked_about_open_texts_only() -> None:
    random = np.random.default_rng(0)
    pairs = zip(TEXTS * 4, LABELS * 4, strict=True)
    noisy = [str(random.choice(["up", "down"])) if "sales rose" in text else label for text, label in pairs]
    cheap, dear = fit(EmbedClassifier, noisy), fit(Asked, LABELS * 4)
    cascade = CascadeClassifier(cheap, dear, coverage=0.95)
    found = cascade.predict_proba(TEXTS)
    asked = [row for row, text in enumerate(TEXTS) if text in dear.asked]
    assert 0 < len(asked) == cascade.last_n_dear_ < len(TEXTS)
    sizes = [len(one) for one in cheap.predict_sets(TEXTS, coverage=0.95)]
    assert asked == [row for row, size in enumerate(sizes) if size > 1]
    rest = np.setdiff1d(np.arange(len(TEXTS)), asked)
    np.testing.assert_allclose(found[asked], dear.predict_proba([TEXTS[row] for row in asked]))
    np.testing.assert_allclose(found[rest], cheap.predict_proba([TEXTS[row] for row in rest]))
    right = [np.mean(one.predict(TEXTS) == LABELS) for one in (cheap, cascade, dear)]
    assert right[0] <= right[1] <= right[2]
    assert cascade.predict([]).tolist() == []


def test_classifiers_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="train both on the same labels"):
        CascadeClassifier(
            fit(EmbedClassifier, LABELS * 4), fit(EmbedClassifier, [label.upper() for label in LABELS * 4])
        )
    with pytest.raises(ConfigError, match="has no sets of labels"):
        CascadeClassifier(
            fit(EmbedClassifier, LABELS * 4, calibration="none"), fit(EmbedClassifier, LABELS * 4)
        )


def test_curve_goes_from_the_cheap_ones_score_to_the_dear_ones() -> None:
    y = np.array([0, 1, 0, 1])
    cheap = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])  # wrong where it is least sure
    dear = np.eye(2)[y]
    found = trace_cascade(y, cheap, dear, n_points=4)
    assert found["share"] == [0, 0.25, 0.5, 0.75, 1]
    assert found["threshold"] == [0.6, 0.7, 0.8, 0.9, 1]
    assert found["macro_f1"][1:] == [1, 1, 1, 1]
    assert found["macro_f1"][0] == pytest.approx((0.8 + 2 / 3) / 2)
