"""The built-in tasks, on small files of the same make and, where they are at hand, on the real ones."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from embedtune.data.sources import load_dataset
from embedtune.data.tasks import TASKS, name_fiqa_score
from embedtune.errors import DataError

REAL_DATA = Path(os.environ.get("EMBEDTUNE_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")
needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason="EMBEDTUNE_DATA names no folder of real data sets"
)

GOLD_HEADER = (
    "Dates\tURL\tNews\tPrice Direction Up\tPrice Direction Constant\tPrice Direction Down\tAsset Comparision\t"
    "Past Information\tFuture Information\tPrice Sentiment"
)


def write_gold(folder: Path) -> Path:
    path = folder / "gold-dataset-sinha-khandait.csv"
    lines = [
        GOLD_HEADER,
        '01-02-2016\thttp://a\t"gold slips, 10 cents"\t0\t0\t1\t0\t1\t0\tnegative',
        "02-02-2016\thttp://b\tgold beats silver\t1\t0\t0\t1\t1\t0\tpositive",
    ]
    path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    return path


def write_fiqa(folder: Path, name: str, entries: list[tuple[str, str, str]]) -> None:
    content = {
        str(i): {"sentence": sentence, "info": [{"target": target, "sentiment_score": score}]}
        for i, (sentence, target, score) in enumerate(entries)
    }
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("task", ["sentiment", "yes_no"])
def test_load_dataset_bundled_task_has_labels_and_groups(task: str) -> None:
    rows = load_dataset(task)
    assert rows.name == task
    assert rows.n_dropped == 0
    assert rows.groups is not None
    expected = {"negative", "neutral", "positive"} if task == "sentiment" else {"no", "yes"}
    assert set(rows.label_names) == expected
    assert min(Counter(rows.labels).values()) >= 100


def test_load_dataset_bundled_yes_no_compares_headlines_without_questions() -> None:
    rows = load_dataset("yes_no")
    assert rows.compared is not None
    assert all(text.startswith(headline) for text, headline in zip(rows.texts, rows.compared, strict=True))
    assert "?" not in rows.compared[0]


def test_load_dataset_gold_sentiment(tmp_path: Path) -> None:
    rows = load_dataset(write_gold(tmp_path), task="gold_sentiment")
    assert rows.texts == ("gold slips, 10 cents", "gold beats silver")
    assert rows.labels == ("negative", "positive")


def test_load_dataset_gold_yes_no_asks_four_questions_per_headline(tmp_path: Path) -> None:
    rows = load_dataset(write_gold(tmp_path), task="gold_yes_no")
    assert len(rows) == 8
    assert rows.texts[0] == "gold slips, 10 cents Does the news headline talk about price going up?"
    assert rows.labels == ("no", "no", "yes", "no", "yes", "no", "no", "yes")
    assert rows.groups == ("gold slips, 10 cents",) * 4 + ("gold beats silver",) * 4
    assert rows.compared == rows.groups
    assert rows.row_ids == tuple(range(8))


def test_load_dataset_gold_yes_no_of_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("News,Price\na b,1\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_dataset(path, task="gold_yes_no")
    assert str(caught.value) == "a.csv has no column 'Price Direction Up'. Its columns: 'News', 'Price'."


def test_load_dataset_fiqa_names_targets_and_thresholds_scores(tmp_path: Path) -> None:
    write_fiqa(
        tmp_path, "task1_headline_ABSA_train.json", [("A beats B", "A", "0.5"), ("A beats B", "B", "-0.4")]
    )
    write_fiqa(tmp_path, "task1_post_ABSA_test.json", [("C waits", "C", "0.05")])
    rows = load_dataset(tmp_path, task="fiqa")
    assert rows.texts == ("A beats B Target: A", "A beats B Target: B", "C waits Target: C")
    assert rows.labels == ("positive", "negative", "neutral")
    assert rows.groups == ("A beats B", "A beats B", "C waits")
    assert rows.split == ("train", "train", "test")


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (-1, "negative"),
        (-0.101, "negative"),
        (-0.1, "neutral"),
        (0.099, "neutral"),
        (0.1, "positive"),
        (1, "positive"),
    ],
)
def test_name_fiqa_score_at_its_thresholds(score: float, name: str) -> None:
    assert name_fiqa_score(score) == name


def test_load_dataset_fiqa_of_another_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"}]', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path / "a.json", task="fiqa")
    assert str(caught.value) == (
        "a.json isn't a FiQA task 1 file: an object of entries with sentence and info is needed."
    )


def test_load_dataset_sst2_folder_takes_dev_rows_as_test(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('label\tsentence\n1\t" fun\n0\tdull\n', encoding="utf-8")
    (tmp_path / "dev.tsv").write_text("label\tcontent\n1\tgood\n", encoding="utf-8")
    rows = load_dataset(tmp_path, task="sst2")
    assert rows.texts == ('" fun', "dull", "good")
    assert rows.labels == ("positive", "negative", "positive")
    assert rows.split == ("train", "train", "test")


def test_load_dataset_mr_folder_has_a_file_per_class(tmp_path: Path) -> None:
    (tmp_path / "rt-polarity.pos").write_text("fun \ngood\n", encoding="utf-8")
    (tmp_path / "rt-polarity.neg").write_text("dull\n", encoding="utf-8")
    rows = load_dataset(tmp_path, task="mr")
    assert (rows.texts, rows.labels, rows.row_ids) == (
        ("fun", "good", "dull"),
        ("pos", "pos", "neg"),
        (0, 1, 2),
    )


def test_load_dataset_task_found_under_embedtune_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r8").mkdir()
    for name, label in (("r8_train", "earn"), ("r8_test", "acq")):
        line = json.dumps({"id": 1, "label": label, "text": "some text"})
        (tmp_path / "r8" / f"{name}.jsonl").write_text(line, encoding="utf-8")
    monkeypatch.setenv("EMBEDTUNE_DATA", str(tmp_path))
    rows = load_dataset("r8")
    assert (rows.name, rows.labels, rows.split) == ("r8", ("earn", "acq"), ("train", "test"))


def test_load_dataset_task_without_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDTUNE_DATA", raising=False)
    with pytest.raises(DataError) as caught:
        load_dataset("fiqa")
    assert str(caught.value) == (
        "task 'fiqa' needs its data: give the file or folder as source with task='fiqa', or set EMBEDTUNE_DATA to a "
        "folder that holds fiqa2018_task1."
    )


def test_load_dataset_task_whose_data_is_not_under_embedtune_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDTUNE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_dataset("mr")
    assert str(caught.value) == f"{tmp_path / 'mr'} doesn't exist: task 'mr' reads its data there."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"source": "a.csv", "task": "gold_yesno"},
            f"task 'gold_yesno' is unknown (did you mean 'gold_yes_no'?). Tasks: {', '.join(TASKS)}.",
        ),
        (
            {"source": "a.csv", "task": "sentiment"},
            "task 'sentiment' comes with the package and takes no file: give one of the two.",
        ),
        (
            {"source": "sentiment", "text_column": "text"},
            "task 'sentiment' knows its own columns: leave out text_column, label_column, group_column, "
            "time_column and source_column, or leave out the task.",
        ),
        (
            {"source": "sentiment", "test_source": "b.csv"},
            "test_source goes with a plain file, not with a built-in task: a task knows its own test rows.",
        ),
    ],
)
def test_load_dataset_task_with_options_that_do_not_fit(options: dict[str, str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(**options)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.realdata
@needs_real_data
@pytest.mark.parametrize(
    ("task", "n_rows", "classes"),
    [
        ("gold_sentiment", 10_570, {"positive": 4412, "negative": 3814, "none": 1968, "neutral": 376}),
        ("gold_yes_no", 42_280, {"yes": 4412 + 444 + 3912 + 2001, "no": 42_280 - 4412 - 444 - 3912 - 2001}),
        ("fiqa", 1173, {"positive": 719, "negative": 363, "neutral": 91}),
        ("sst2", 67_349 + 872, {"positive": 37_569 + 444, "negative": 29_780 + 428}),
        ("mr", 10_662, {"pos": 5331, "neg": 5331}),
    ],
)
def test_load_dataset_real_task(
    monkeypatch: pytest.MonkeyPatch, task: str, n_rows: int, classes: dict[str, int]
) -> None:
    monkeypatch.setenv("EMBEDTUNE_DATA", str(REAL_DATA))
    rows = load_dataset(task)
    assert len(rows) == n_rows
    assert Counter(rows.labels) == classes
    assert rows.n_dropped == 0


@pytest.mark.realdata
@needs_real_data
def test_load_dataset_real_r8_keeps_its_test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDTUNE_DATA", str(REAL_DATA))
    rows = load_dataset("r8")
    assert Counter(rows.split or ()) == {"train": 5485, "test": 2189}
    assert len(rows.label_names) == 8


@pytest.mark.realdata
@needs_real_data
@pytest.mark.parametrize(
    ("level", "n_rows"), [("AllAgree", 2264), ("75Agree", 3453), ("66Agree", 4217), ("50Agree", 4846)]
)
def test_load_dataset_real_phrasebank(level: str, n_rows: int) -> None:
    rows = load_dataset(REAL_DATA / "financial_phrasebank" / f"Sentences_{level}.txt")
    assert len(rows) == n_rows
    assert rows.label_names == ("negative", "neutral", "positive")
    assert not any("�" in text for text in rows.texts)


@pytest.mark.realdata
@needs_real_data
def test_load_dataset_real_twitter_takes_the_validation_file_as_test() -> None:
    folder = REAL_DATA / "twitter_financial_news_sentiment"
    rows = load_dataset(folder / "sent_train.csv", test_source=folder / "sent_valid.csv")
    assert Counter(rows.split or ()) == {"train": 9543, "test": 2388}
    assert Counter(rows.labels) == {"2": 7744, "1": 2398, "0": 1789}


def test_tasks_describe_themselves_in_a_line() -> None:
    assert all(task.description and "\n" not in task.description for task in TASKS.values())


@pytest.mark.parametrize("has_folder", [True, False])
def test_ag_news_comes_from_its_folder_or_else_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_folder: bool
) -> None:
    folder = tmp_path / "ag_news"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text(
            "text,label\nstocks rise,Business\nteam wins,Sports\n", encoding="utf-8"
        )
    if has_folder:
        monkeypatch.setenv("EMBEDTUNE_DATA", str(tmp_path))
    else:
        monkeypatch.delenv("EMBEDTUNE_DATA", raising=False)
        monkeypatch.setitem(TASKS, "ag_news", TASKS["ag_news"]._replace(hub=str(folder)))
    found = load_dataset("ag_news")
    assert (found.name, found.labels) == ("ag_news", ("Business", "Sports") * 2)
    assert found.split == ("train", "train", "test", "test")
