"""The audit adds up, says why, and fits into JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from embedtune.data.audit import describe_lengths
from embedtune.data.prepare import fingerprint, prepare_splits
from embedtune.data.sources import load_dataset
from test_prepare import make_dataset, make_texts
from test_tasks import REAL_DATA, needs_real_data


def make_audit() -> dict[str, Any]:
    data = make_dataset(split=("train",) * 200 + ("test",) * 100)
    assert data.split is not None
    texts = (*data.texts, "  ", data.texts[0].upper(), data.texts[1], data.texts[260], "empty label")
    labels = (*data.labels, "a", "a", "c", data.labels[260], " ")
    data = replace(data, texts=texts, labels=labels, split=(*data.split, *["train"] * 5), n_dropped=4)
    return prepare_splits(data, max_rows=150)[1]


def test_audit_rows_add_up() -> None:
    rows = make_audit()["rows"]
    kept = rows.pop("kept")
    sampled_out = rows.pop("sampled_out")
    assert rows == {"read": 309, "refused": 0, "empty": 6, "conflicting": 2, "merged": 1, "leaked": 1}
    assert kept + sampled_out == 299
    assert 240 <= kept <= 250


def test_audit_counts_agree_with_each_other() -> None:
    audit = make_audit()
    assert sum(audit["parts"].values()) == audit["rows"]["kept"]
    for part, n in audit["parts"].items():
        assert sum(counts[part] for counts in audit["classes"].values()) == n
    assert all(c["total"] == c["tune"] + c["train"] + c["test"] for c in audit["classes"].values())


def test_audit_is_json() -> None:
    audit = make_audit()
    assert json.loads(json.dumps(audit, allow_nan=False)) == audit


def test_audit_says_which_data_and_settings() -> None:
    data = make_dataset()
    audit = prepare_splits(data, seed=3)[1]
    assert audit["fingerprint"] == fingerprint(data)
    assert audit["settings"] == {
        "by_time": False,
        "tune_fraction": 0.3,
        "test_fraction": 0.2,
        "near_duplicate": 0.8,
        "max_rows": None,
        "keep_together": True,
        "seed": 3,
    }
    assert audit["own_test_rows"] is False


def test_audit_lists_the_largest_near_duplicate_clusters_first() -> None:
    data = make_dataset(90, 3)
    base = make_texts(2, seed=5, n_words=40)
    extra = (*(f"{base[0]} {k}" for k in range(4)), *(f"{base[1]} {k}" for k in range(2)))
    data = replace(data, texts=data.texts + extra, labels=(*data.labels, *"aaabcc"))
    near = prepare_splits(data)[1]["near_duplicates"]
    assert (near["n_clusters"], near["n_rows"], near["n_clusters_of_several_labels"]) == (2, 6, 1)
    assert [(c["size"], c["rows"], c["labels"]) for c in near["largest"]] == [
        (4, [90, 91, 92, 93], ["a", "b"]),
        (2, [94, 95], ["c"]),
    ]
    assert len(near["largest"][0]["texts"]) == 3


def test_audit_counts_rows_of_one_compared_text_as_no_near_duplicates() -> None:
    headlines = make_texts(60)
    data = make_dataset(120, 2)
    both = tuple(h for h in headlines for _ in range(2))
    data = replace(
        data, texts=tuple(f"{h} {q}" for h in headlines for q in ("up?", "down?")), compared=both, groups=both
    )
    assert prepare_splits(data)[1]["near_duplicates"]["n_clusters"] == 0


def test_audit_names_source_rows_where_the_reader_dropped_some() -> None:
    data = make_dataset(100, 2)
    data = replace(
        data,
        texts=(*data.texts[:99], data.texts[0]),
        row_ids=tuple(range(10, 110)),
        n_dropped=10,
    )
    assert prepare_splits(data)[1]["conflicts"][0]["rows"] == [10, 109]


def test_describe_lengths_in_characters() -> None:
    assert describe_lengths(["a", "abc", "abcde"]) == {
        "min": 1,
        "median": 3.0,
        "mean": 3.0,
        "p95": 4.8,
        "max": 5,
    }


@pytest.mark.realdata
@needs_real_data
def test_audit_of_phrasebank_finds_its_repeated_and_conflicting_sentences() -> None:
    rows = load_dataset(REAL_DATA / "financial_phrasebank" / "Sentences_50Agree.txt")
    audit = prepare_splits(rows)[1]
    assert audit["n_conflicts"] == 2
    assert audit["rows"] == {
        "read": 4846, "refused": 0, "empty": 0, "conflicting": 4, "merged": 6, "leaked": 0, "sampled_out": 0,
        "kept": 4836,
    }  # fmt: skip


@pytest.mark.realdata
@needs_real_data
def test_prepare_splits_of_real_questions_keeps_headlines_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDTUNE_DATA", str(REAL_DATA))
    splits, audit = prepare_splits(load_dataset("gold_yes_no"))
    part_of_headline: dict[int, set[str]] = {}
    for row_id, part in zip(splits.row_ids, splits.part, strict=True):
        part_of_headline.setdefault(row_id // 4, set()).add(part)
    assert all(len(parts) == 1 for parts in part_of_headline.values())
    shares = [audit["classes"]["yes"][part] / n for part, n in audit["parts"].items()]
    assert max(shares) - min(shares) < 0.01
