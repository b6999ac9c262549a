"""The bundled sample: schema, labels, groups that keep templates together, and how far words alone get."""

import json
import re
from collections import Counter, defaultdict
from importlib.resources import files

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline, make_union

FIELDS = {
    "sentiment": {"id", "text", "label", "group", "register"},
    "yes_no": {"id", "text", "label", "group", "headline", "question"},
}
LABELS = {"sentiment": {"negative", "neutral", "positive"}, "yes_no": {"yes", "no"}}
N_ROWS = {"sentiment": (1800, 2000), "yes_no": (1700, 2000)}
LEAST_SHARE = {"sentiment": 0.2, "yes_no": 0.35}
COMMODITIES = re.compile(
    r"\b(gold|silver|copper|oil|crude|wheat|corn|coffee|cocoa|sugar|cotton|gas|zinc|nickel|lead|tin|aluminium"
    r"|platinum|palladium|soybeans|rubber|uranium|lithium)\b",
    re.IGNORECASE,
)


def read_rows(task: str) -> list[dict[str, str]]:
    content = files("embedtune").joinpath("data", "sample", f"{task}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in content.splitlines()]


def mask_text(text: str) -> str:
    """Mask figures, tickers, commodities and capitalised names; a sentence's first word counts as a name."""
    text = re.sub(r"\$[A-Z]{2,}", "TICKER", text)
    text = re.sub(r"\d[\d.,]*", "0", text)
    text = COMMODITIES.sub("Commodity", text)
    return re.sub(r"\b[A-ZÄÖ][\w'-]*(\s[A-ZÄÖ][\w'-]*)*", "Name", text)


def find_straddling(rows: list[dict[str, str]], field: str) -> dict[str, set[str]]:
    """Return every masked form that stands in more than one group, with its groups."""
    groups = defaultdict(set)
    for row in rows:
        groups[mask_text(row[field])].add(row["group"])
    return {form: found for form, found in groups.items() if len(found) > 1}


def score_words(rows: list[dict[str, str]], seed: int) -> float:
    """Return TF-IDF's macro-F1 on a test part of 14 %: 80/20 of what 30 % tuning rows leave, by group."""
    texts = np.array([row["text"] for row in rows])
    labels = np.array([row["label"] for row in rows])
    groups = np.array([row["group"] for row in rows])
    folds = StratifiedGroupKFold(10, shuffle=True, random_state=seed).split(texts, labels, groups)
    rest = np.concatenate([fold for _, fold in list(folds)[3:]])
    inner = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    test = rest[next(inner.split(texts[rest], labels[rest], groups[rest]))[1]]
    fit = np.setdiff1d(np.arange(len(rows)), test)
    views = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    model = make_pipeline(views, LogisticRegression(C=10, max_iter=2000)).fit(texts[fit], labels[fit])
    return float(f1_score(labels[test], model.predict(texts[test]), average="macro"))


@pytest.fixture(scope="module", params=["sentiment", "yes_no"])
def sample(request):
    return request.param, read_rows(request.param)


def test_sample_rows_have_exactly_their_fields_filled(sample):
    task, rows = sample
    wrong = [
        row["id"] for row in rows if set(row) != FIELDS[task] or not all(v.strip() for v in row.values())
    ]
    assert wrong == []


def test_sample_counts_and_labels_are_as_described(sample):
    task, rows = sample
    low, high = N_ROWS[task]
    assert low <= len(rows) <= high
    counts = Counter(row["label"] for row in rows)
    assert set(counts) == LABELS[task]
    assert min(counts.values()) / len(rows) >= LEAST_SHARE[task]


def test_sample_has_no_duplicate_id_or_text(sample):
    _, rows = sample
    for field in ("id", "text"):
        folded = Counter(row[field].casefold() for row in rows)
        assert [value for value, count in folded.items() if count > 1] == []


def test_sample_templates_never_stand_in_two_groups(sample):
    task, rows = sample
    assert find_straddling(rows, "text" if task == "sentiment" else "headline") == {}


def test_find_straddling_template_in_two_groups_is_found():
    rows = [
        {"text": "Wexlund to open 3 shops", "group": "a"},
        {"text": "Old Mill to open 12 shops", "group": "b"},
    ]
    assert find_straddling(rows, "text") == {"Name to open 0 shops": {"a", "b"}}


def test_yes_no_text_is_headline_then_question():
    for row in read_rows("yes_no"):
        stop = "" if row["headline"][-1] in ".?!" else "."
        assert row["text"] == f"{row['headline']}{stop} {row['question']}"


def test_yes_no_headline_keeps_its_questions_in_one_group():
    groups, questions = defaultdict(set), defaultdict(list)
    for row in read_rows("yes_no"):
        groups[row["headline"]].add(row["group"])
        questions[row["headline"]].append(row["question"])
    assert len(groups) >= 500
    assert {len(found) for found in groups.values()} == {1}
    assert {len(asked) for asked in questions.values()} <= {3, 4}
    assert all(len(set(asked)) == len(asked) for asked in questions.values())


def test_sample_words_alone_neither_fail_nor_decide(sample):
    _, rows = sample
    mean = np.mean([score_words(rows, seed) for seed in range(3)])
    assert 0.65 <= mean <= 0.85
