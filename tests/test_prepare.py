"""Cleaning, clustering and splitting: nothing leaks, classes are spread, the same seed gives the same rows."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedtune.data.assign import assign_clusters
from embedtune.data.dataset import TextDataset
from embedtune.data.duplicates import SHINGLE_LENGTH, find_near_duplicates, fold_text, join_clusters
from embedtune.data.prepare import (
    Splits,
    fingerprint,
    prepare_splits,
    read_splits,
    split_by_time,
    write_splits,
)
from embedtune.data.sources import load_dataset
from embedtune.errors import DataError

WORDS = (
    *("gold", "profit", "fell", "rose", "sharply", "bank", "quarter", "sales", "euro", "plant"),
    *("order", "new", "unit", "share", "bid", "deal", "oil", "tax", "rate", "week"),
)


def make_texts(n: int, *, seed: int = 0, n_words: int = 12) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=n_words)) + f" {i}" for i in range(n)]


def make_dataset(n: int = 300, n_classes: int = 3, **columns: tuple[str, ...]) -> TextDataset:
    labels = tuple("abcdefgh"[i % n_classes] for i in range(n))
    return replace(TextDataset(texts=tuple(make_texts(n)), labels=labels, name="news"), **columns)  # type: ignore[arg-type]


def refuse(dataset: TextDataset, **options: float) -> str:
    with pytest.raises(DataError) as caught:
        prepare_splits(dataset, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shingle(text: str) -> set[str]:
    text = text.ljust(SHINGLE_LENGTH)
    return {text[i : i + SHINGLE_LENGTH] for i in range(len(text) - SHINGLE_LENGTH + 1)}


def measure_jaccard(a: str, b: str) -> float:
    return len(shingle(a) & shingle(b)) / len(shingle(a) | shingle(b))


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("  Gold\t rose\n5 %", "gold rose 5 %"),
        ("Ｇｏｌｄ ﬁrm", "gold firm"),
        ("Straße", "strasse"),
        ("a\u00a0b", "a b"),
        ("cafe\u0301", "café"),
    ],
)
def test_fold_text_makes_equal_texts_one(text: str, folded: str) -> None:
    assert fold_text(text) == folded


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
def test_find_near_duplicates_agrees_with_comparing_all_pairs(threshold: float, seed: int) -> None:
    generator = random.Random(seed)
    texts = make_texts(60, seed=seed)
    for text in list(texts):
        for _ in range(3):
            words = text.split()
            words[generator.randrange(len(words))] = generator.choice(WORDS)
            texts.append(" ".join(words))
        texts.append(text + "x")
    texts = list(dict.fromkeys([*texts, "a", "ab", "abcde", "abcdef"]))
    sets = [shingle(text) for text in texts]
    slow = [
        (a, b)
        for a, b in itertools.combinations(range(len(texts)), 2)
        if len(sets[a] & sets[b]) >= threshold * len(sets[a] | sets[b])
    ]
    fast = find_near_duplicates(texts, threshold=threshold)
    assert len(slow) > 10
    assert {tuple(pair) for pair in fast.tolist()} <= set(slow)
    n = len(texts)
    expected = join_clusters(n, [np.array(slow, dtype=np.int64).reshape(-1, 2)])
    np.testing.assert_array_equal(join_clusters(n, [fast]), expected)


def test_find_near_duplicates_figures_alone_count_by_similarity() -> None:
    short = ["rose 5 %", "rose 7 %"]
    long = [
        f"net sales of the whole group rose by {n} % in the third quarter from a year earlier, it said"
        for n in "57"
    ]
    assert find_near_duplicates(short, threshold=0.8).tolist() == []
    assert find_near_duplicates(long, threshold=0.8).tolist() == [[0, 1]]
    assert measure_jaccard(*long) >= 0.8 > measure_jaccard(*short)


@pytest.mark.slow
def test_find_near_duplicates_of_forty_thousand_texts_takes_seconds() -> None:
    import time

    texts = [fold_text(text) for text in make_texts(40_000, n_words=15)]
    start = time.perf_counter()
    find_near_duplicates(texts, threshold=0.8)
    assert time.perf_counter() - start < 60


def test_prepare_splits_merges_copies_that_differ_in_case_space_and_width() -> None:
    data = make_dataset()
    copies = tuple(f" {text.upper()}  " for text in data.texts[:5])
    data = replace(data, texts=data.texts + copies, labels=data.labels + data.labels[:5])
    splits, audit = prepare_splits(data)
    assert audit["rows"]["merged"] == 5
    assert splits.row_ids == tuple(range(300))


def test_prepare_splits_drops_and_reports_conflicting_labels() -> None:
    data = make_dataset()
    data = replace(data, texts=(*data.texts, data.texts[0].title()), labels=(*data.labels, "b"))
    splits, audit = prepare_splits(data)
    assert audit["n_conflicts"] == 1
    assert audit["conflicts"] == [{"text": data.texts[0], "rows": [0, 300], "labels": ["a", "b"]}]
    assert audit["rows"]["conflicting"] == 2
    assert not {0, 300} & set(splits.row_ids)


def test_prepare_splits_keeps_near_duplicates_in_one_part() -> None:
    stories = make_texts(100, n_words=30)
    texts = tuple(f"{story} number {k}" for story in stories for k in range(3))
    data = TextDataset(texts=texts, labels=tuple("ab"[i // 3 % 2] for i in range(300)), name="news")
    splits, audit = prepare_splits(data)
    assert audit["near_duplicates"]["n_clusters"] == 100
    for story in range(100):
        assert len(set(splits.groups[3 * story : 3 * story + 3])) == 1
        assert len(set(splits.part[3 * story : 3 * story + 3])) == 1


def test_prepare_splits_looks_for_no_near_duplicates_at_one() -> None:
    stories = make_texts(100, n_words=30)
    texts = tuple(f"{story} number {k}" for story in stories for k in range(3))
    data = TextDataset(texts=texts, labels=tuple("ab"[i // 3 % 2] for i in range(300)), name="news")
    splits, _ = prepare_splits(data, near_duplicate=1)
    assert len(set(splits.groups)) == 300


def test_prepare_splits_keeps_groups_in_one_part() -> None:
    data = make_dataset(400, 2, groups=tuple(f"g{i // 8}" for i in range(400)))
    splits, _ = prepare_splits(data)
    for start in range(0, 400, 8):
        assert len(set(splits.part[start : start + 8])) == 1


def test_prepare_splits_joins_groups_through_a_merged_copy() -> None:
    data = make_dataset(100, 2, groups=tuple(f"g{i}" for i in range(100)))
    assert data.groups is not None
    # The copy of text 0 is merged away, but row 101 shares its group: rows 0 and 101 belong together.
    data = replace(
        data,
        texts=(*data.texts, data.texts[0], "quite another text altogether"),
        labels=(*data.labels, data.labels[0], "b"),
        groups=(*data.groups, "extra", "extra"),
    )
    splits, _ = prepare_splits(data)
    assert splits.groups[splits.row_ids.index(0)] == splits.groups[splits.row_ids.index(101)]


def test_prepare_splits_compares_what_the_source_names() -> None:
    question = " and does this headline talk about the price going up or down or staying where it was before?"
    headlines = make_texts(60, n_words=1)
    texts = tuple(h + question for h in headlines)
    data = TextDataset(texts=texts, labels=("yes", "no") * 30, name="news")
    joined, _ = prepare_splits(replace(data, compared=tuple(headlines)))
    assert len(set(joined.groups)) > 50
    assert "near-duplicates and groups stay together" in refuse(data)


def test_prepare_splits_gives_each_part_its_share_of_every_class() -> None:
    labels = tuple("a" * 800 + "b" * 150 + "c" * 50)
    data = TextDataset(texts=tuple(make_texts(1000)), labels=labels, name="news")
    splits, audit = prepare_splits(data)
    assert audit["parts"] == {"tune": 300, "train": 560, "test": 140}
    assert audit["classes"]["b"] == {"tune": 45, "train": 84, "test": 21, "total": 150}
    assert audit["classes"]["c"] == {"tune": 15, "train": 28, "test": 7, "total": 50}
    assert len(splits) == 1000


def test_prepare_splits_spreads_classes_within_a_point_over_uneven_groups() -> None:
    generator = random.Random(3)
    groups = tuple(sorted(f"g{int(generator.expovariate(1 / 150))}" for _ in range(3000)))
    labels = tuple(generator.choices("abc", weights=(5, 3, 2), k=3000))
    data = TextDataset(texts=tuple(make_texts(3000)), labels=labels, groups=groups, name="news")
    splits, audit = prepare_splits(data)
    shares = {label: counts["total"] / len(splits) for label, counts in audit["classes"].items()}
    for part, n in audit["parts"].items():
        for label, counts in audit["classes"].items():
            assert abs(counts[part] / n - shares[label]) < 0.01
    assert abs(audit["parts"]["tune"] / 3000 - 0.3) < 0.01
    assert abs(audit["parts"]["test"] / 3000 - 0.14) < 0.01


def test_prepare_splits_of_five_rows_in_a_class_reaches_every_part() -> None:
    labels = tuple("a" * 100 + "b" * 5)
    _, audit = prepare_splits(TextDataset(texts=tuple(make_texts(105)), labels=labels, name="news"))
    assert min(audit["classes"]["b"].values()) >= 1


def test_prepare_splits_respects_the_datas_own_test_rows() -> None:
    data = make_dataset(split=("train",) * 200 + ("test",) * 100)
    splits, audit = prepare_splits(data)
    assert audit["parts"] == {"tune": 60, "train": 140, "test": 100}
    assert {splits.row_ids[i] for i in splits.rows("test")} == set(range(200, 300))
    assert audit["settings"]["test_fraction"] is None


def test_prepare_splits_drops_training_rows_that_stand_in_the_test_rows() -> None:
    data = make_dataset(split=("train",) * 200 + ("test",) * 100)
    assert data.split is not None
    long = make_texts(1, seed=9, n_words=40)[0]
    data = replace(
        data,
        texts=(*data.texts, data.texts[250].upper(), long + " one", long + " two"),
        labels=(*data.labels, "a", "b", "c"),
        split=(*data.split, "train", "train", "test"),
    )
    splits, audit = prepare_splits(data)
    assert not {300, 301} & set(splits.row_ids)
    assert splits.part[splits.row_ids.index(302)] == "test"
    assert audit["rows"]["leaked"] == 2
    assert audit["leaks"] == [
        {"row": 300, "test_row": 250, "text": data.texts[300]},
        {"row": 301, "test_row": 302, "text": data.texts[301][:200] + "…" * (len(data.texts[301]) > 200)},
    ]


def test_prepare_splits_no_text_stands_in_two_parts() -> None:
    texts = make_texts(150)
    data = TextDataset(texts=tuple(texts * 2), labels=("a", "b", "c") * 100, name="news")
    splits, _ = prepare_splits(data)
    parts = [{fold_text(splits.texts[i]) for i in splits.rows(part)} for part in ("tune", "train", "test")]
    assert not any(a & b for a, b in itertools.combinations(parts, 2))
    assert sum(map(len, parts)) == 150


@pytest.mark.parametrize("own_test", [False, True])
def test_prepare_splits_samples_whole_clusters_by_class(own_test: bool) -> None:
    groups = tuple(f"g{i // 4}" for i in range(1000))
    split = ("train",) * 800 + ("test",) * 200 if own_test else None
    data = replace(make_dataset(1000, 2), groups=groups, split=split)
    splits, audit = prepare_splits(data, max_rows=300)
    n_sampled = len(splits) - (200 if own_test else 0)
    assert 290 <= n_sampled <= 300
    assert audit["rows"]["sampled_out"] == 1000 - len(splits)
    assert abs(Counter(splits.labels)["a"] - len(splits) / 2) <= 4
    whole = Counter(groups[i] for i in splits.row_ids)
    assert set(whole.values()) == {4}
    if own_test:
        assert audit["parts"]["test"] == 200


def test_prepare_splits_without_keeping_together_lets_copies_and_groups_straddle() -> None:
    data = make_dataset(300)
    twice = replace(
        data,
        texts=data.texts * 2,
        labels=data.labels * 2,
        groups=tuple(f"g{i // 5}" for i in range(300)) * 2,
        split=None,
    )
    splits, audit = prepare_splits(twice, keep_together=False)
    assert len(splits) == 600
    assert audit["rows"]["merged"] == 0
    parts = [{splits.texts[i] for i in splits.rows(part)} for part in ("train", "test")]
    assert len(parts[0] & parts[1]) > 20


def test_prepare_splits_max_rows_above_the_count_changes_nothing() -> None:
    data = make_dataset()
    assert prepare_splits(data, max_rows=300)[0] == prepare_splits(data)[0]


def test_prepare_splits_same_seed_same_rows_other_seed_other_rows() -> None:
    data = make_dataset()
    assert prepare_splits(data, seed=4)[0] == prepare_splits(data, seed=4)[0]
    assert prepare_splits(data, seed=4)[0].part != prepare_splits(data, seed=5)[0].part


def test_prepare_splits_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_prepare import make_dataset\n"
        "from embedtune.data.prepare import prepare_splits\n"
        "data = make_dataset(200, 3, groups=tuple(f'g{i // 3}' for i in range(200)))\n"
        "splits, audit = prepare_splits(data, max_rows=150); print(splits, audit)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert "g0" not in printed.pop()


def test_assign_clusters_balances_one_large_cluster_with_the_rest() -> None:
    clusters = np.array([0] * 60 + list(range(1, 141)))
    labels = np.array([0, 1] * 100)
    part = assign_clusters(labels, clusters, shares=(0.3, 0.56, 0.14), seed=0)
    assert len(set(part[:60])) == 1
    np.testing.assert_array_equal(np.bincount(part), [60, 112, 28])


def test_splits_round_trip_through_parquet(tmp_path: Path) -> None:
    data = make_dataset()
    data = replace(data, texts=("Zürich “quoted”\nline\ttab 😀", *data.texts[1:]))
    splits, audit = prepare_splits(data)
    write_splits(splits, audit, tmp_path / "run" / "data")
    assert read_splits(tmp_path / "run" / "data") == splits
    assert sorted(path.name for path in (tmp_path / "run" / "data").iterdir()) == [
        "audit.json",
        "splits.parquet",
    ]


def test_write_splits_killed_midway_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits, audit = prepare_splits(make_dataset())
    write_splits(splits, audit, tmp_path)
    other, other_audit = prepare_splits(make_dataset(), seed=1)

    def fail(table: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("pyarrow.parquet.write_table", fail)
    with pytest.raises(KeyboardInterrupt):
        write_splits(other, other_audit, tmp_path)
    assert read_splits(tmp_path) == splits


def test_read_splits_missing_and_damaged(tmp_path: Path) -> None:
    path = tmp_path / "splits.parquet"
    with pytest.raises(DataError) as caught:
        read_splits(tmp_path)
    assert str(caught.value) == f"{path} doesn't exist: prepare the data first."
    path.write_bytes(b"PAR1 half a file")
    with pytest.raises(DataError) as caught:
        read_splits(tmp_path)
    assert (
        str(caught.value)
        == f"{path} is damaged or wasn't written here: delete it and prepare the data again."
    )


def test_splits_rows_gives_indices_of_parts_ascending() -> None:
    splits = Splits(("a", "b", "c"), ("x", "y", "x"), (0, 1, 2), ("test", "tune", "train"), (5, 6, 7))
    assert splits.rows("train", "tune").tolist() == [1, 2]
    assert splits.rows("test").dtype == np.int64
    assert splits.label_names == ("x", "y")


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ("aa", "b", "d")},
        {"labels": ("x", "x", "x")},
        {"groups": ("1", "1", "2")},
        {"split": ("train", "train", "test")},
        {"texts": ("ab", "", "c")},
    ],
)
def test_fingerprint_changes_with_every_column(change: dict[str, tuple[str, ...]]) -> None:
    data = TextDataset(texts=("a", "b", "c"), labels=("x", "y", "x"))
    assert fingerprint(data) == fingerprint(replace(data, name="other"))
    assert fingerprint(data) != fingerprint(replace(data, **change))  # type: ignore[arg-type]


def test_prepare_splits_one_class() -> None:
    assert refuse(make_dataset(50, 1)) == (
        "news has one class as read, 'a': two or more are needed. Check the label column."
    )


def test_prepare_splits_small_class() -> None:
    data = TextDataset(texts=tuple(make_texts(24)), labels=tuple("a" * 17 + "b" * 4 + "c" * 3), name="news")
    assert refuse(data) == (
        "news has fewer than 5 rows as read in classes 'b' (4), 'c' (3): add rows, merge classes or drop them."
    )


def test_prepare_splits_class_small_after_merging() -> None:
    texts = make_texts(24)
    data = TextDataset(texts=(*texts, texts[23].upper()), labels=tuple("a" * 20 + "b" * 5), name="news")
    assert refuse(data) == (
        "news has fewer than 5 rows after merging copies and dropping conflicts in class 'b' (4): "
        "add rows, merge classes or drop them."
    )


def test_prepare_splits_class_small_in_the_sample() -> None:
    data = TextDataset(texts=tuple(make_texts(200)), labels=tuple("a" * 190 + "b" * 10), name="news")
    assert refuse(data, max_rows=50) == (
        "news has fewer than 5 rows in the sample of max_rows=50 in class 'b' (3): "
        "add rows, merge classes or drop them."
    )


def test_prepare_splits_class_in_one_group() -> None:
    groups = tuple("one" if i % 2 else f"g{i}" for i in range(60))
    assert refuse(make_dataset(60, 2, groups=groups)) == (
        "news: no row of 'b' is left for the tune rows, for near-duplicates and groups stay together. "
        "Add rows of other origin, raise near_duplicate towards 1, or drop the class."
    )


def test_prepare_splits_no_rows() -> None:
    assert refuse(TextDataset((), (), name="news")) == (
        "news has no rows as read: give rows with a text and a label."
    )


def test_prepare_splits_too_many_labels() -> None:
    texts = tuple(make_texts(501))
    assert refuse(TextDataset(texts, texts, name="news")) == (
        "news has 501 distinct labels as read, more than 500 classes: is this the text column? "
        "Name the label column with label_column."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune_fraction": 0}, "tune_fraction is 0: give a share between 0 and 1, such as 0.3."),
        ({"test_fraction": 1.5}, "test_fraction is 1.5: give a share between 0 and 1, such as 0.3."),
        (
            {"near_duplicate": 0},
            "near_duplicate is 0: give a similarity above 0, up to 1 (1 looks for none).",
        ),
        ({"max_rows": 0}, "max_rows is 0: give a number of rows, or leave it out to keep all."),
    ],
)
def test_prepare_splits_setting_out_of_range(options: dict[str, float], message: str) -> None:
    assert refuse(make_dataset(30), **options) == message


def test_prepare_splits_all_texts_conflicting() -> None:
    data = TextDataset(texts=("Up", "up") * 10, labels=("a", "b") * 10, name="news")
    assert refuse(data) == (
        "news has no rows after merging copies and dropping conflicts: give rows with a text and a label."
    )


# Time


def test_latest_rows_are_the_test_rows(tmp_path: Path) -> None:
    days = [f"2024-{1 + i // 28:02d}-{1 + i % 28:02d}" for i in range(200)]
    order = np.random.default_rng(0).permutation(200)
    lines = [f"report {i} of plant {i * 37 % 91},{'up' if i % 2 else 'down'},{days[i]}" for i in order]
    path = tmp_path / "dated.csv"
    path.write_text("\n".join(["text,label,day", *lines]) + "\n")
    dataset = load_dataset(path, time_column="day")
    splits, audit = prepare_splits(dataset, near_duplicate=1)
    day_of = dict(zip(dataset.row_ids or (), dataset.times or (), strict=True))
    times = np.array([day_of[row] for row in splits.row_ids])
    test = splits.rows("test")
    assert len(test) == 28  # 20 % of the 70 % that aren't for tuning
    assert times[test].min() > times[splits.rows("tune", "train")].max()
    assert audit["settings"]["by_time"]
    assert len(splits.rows("tune")) == pytest.approx(0.3 * 172, abs=2)


def test_earlier_copies_of_later_rows_leave_the_training_part() -> None:
    texts = [f"plant {i} reports number {i * 7919 % 104729} today" for i in range(100)]
    texts[3] = texts[99] + "!"
    dataset = TextDataset(
        texts=tuple(texts), labels=("a", "b") * 50, times=tuple(float(i) for i in range(100))
    )
    splits, audit = prepare_splits(dataset)
    assert 99 in splits.row_ids
    assert 3 not in splits.row_ids
    assert audit["rows"]["leaked"] == 1


def test_rows_of_one_time_stay_together_and_bad_times_are_refused(tmp_path: Path) -> None:
    dataset = TextDataset(
        texts=tuple(map(str, range(60))), labels=("a", "b") * 30, times=(1.0,) * 50 + (2.0,) * 10
    )
    assert split_by_time(dataset, share=0.3).split == ("train",) * 50 + ("test",) * 10
    with pytest.raises(DataError, match="are of one time"):
        split_by_time(replace(dataset, times=(1.0,) * 60), share=0.3)
    with pytest.raises(DataError, match="test rows of its own and a time column"):
        split_by_time(replace(dataset, split=("train", "test") * 30), share=0.3)
    path = tmp_path / "dated.csv"
    path.write_text("text,label,day\na,up,2024-01-01\nb,down,soon\n")
    with pytest.raises(
        DataError, match=r"column 'day' of dated\.csv holds 'soon' in row 2, which is no time"
    ):
        load_dataset(path, time_column="day")
