"""The built-in tasks: how known files become texts and labels."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from embedtune.data.columns import find_column, join_rows, read_label, read_rows, read_texts
from embedtune.data.dataset import TextDataset
from embedtune.data.hub import read_hub
from embedtune.data.sujet import read_sentiments, read_yes_no
from embedtune.data.tables import read_table
from embedtune.data.textfile import read_text
from embedtune.errors import DataError, suggest_nearest

#: FiQA scores are in [-1, 1]; below the first threshold is negative, from the second on positive.
FIQA_NEGATIVE_BELOW = -0.1
FIQA_POSITIVE_FROM = 0.1

#: Column of the gold headlines' file -> the question it answers. The file's other two columns ask about past
#: and future, and 97 % of their answers are the same.
GOLD_QUESTIONS = {
    "Price Direction Up": "Does the news headline talk about price going up?",
    "Price Direction Constant": "Does the news headline talk about price staying constant?",
    "Price Direction Down": "Does the news headline talk about price going down?",
    "Asset Comparision": "Does the news headline compare gold with any other asset?",
}

#: What GLUE's numbers mean.
SST2_NAMES = {"0": "negative", "1": "positive"}

SUJET = "sujet-ai/Sujet-Finance-Instruct-177k"


class Task(NamedTuple):
    """A known data set.

    Attributes
    ----------
    description : str
        One line for a list of tasks.
    place : str or None
        Where its file or folder lies under ``EMBEDTUNE_DATA``; None where it comes with the package.
    load : callable
        ``load(path, encoding)`` returns the `TextDataset`.
    hub : str or None
        The data set of the Hub that is read where the place isn't there.
    """

    description: str
    place: str | None
    load: Callable[[Path, str | None], TextDataset]
    hub: str | None = None


def load_task(name: str, *, source: str | Path | None = None, encoding: str | None = None) -> TextDataset:
    """Read a built-in task.

    Parameters
    ----------
    name : str
        A key of `TASKS`.
    source : str or Path, optional
        Its file or folder; by default the task's place under the folder that ``EMBEDTUNE_DATA`` names.
    encoding : str, optional
        Of text files; detected by default.

    Raises
    ------
    DataError
        If the task is unknown, its file isn't there, or the file isn't that task's.
    """
    task = TASKS.get(name)
    if task is None:
        raise DataError(f"task '{name}' is unknown{suggest_nearest(name, TASKS)}. Tasks: {', '.join(TASKS)}.")
    if task.place is None:
        if source is not None:
            raise DataError(f"task '{name}' comes with the package and takes no file: give one of the two.")
        return replace(task.load(Path(), encoding), name=name)
    if source is None:
        root = os.environ.get("EMBEDTUNE_DATA")
        if task.hub is not None and not (root and (Path(root) / task.place).exists()):
            return replace(task.load(Path(task.hub), encoding), name=name)
        if not root:
            raise DataError(
                f"task '{name}' needs its data: give the file or folder as source with task='{name}', "
                f"or set EMBEDTUNE_DATA to a folder that holds {task.place}."
            )
        source = Path(root) / task.place
    if not Path(source).exists():
        raise DataError(f"{source} doesn't exist: task '{name}' reads its data there.")
    return replace(task.load(Path(source), encoding), name=name)


def _load_sample(file_name: str, *, compared: str | None = None) -> Callable[[Path, str | None], TextDataset]:
    def load(path: Path, encoding: str | None) -> TextDataset:
        with resources.as_file(resources.files("embedtune.data") / "sample" / file_name) as sample_path:
            rows = _load_tables([sample_path], "text", "label", group_column="group")
            if compared is None:
                return rows
            return replace(rows, compared=tuple(read_table(sample_path)[compared]))

    return load


def _load_tables(
    paths: Sequence[Path],
    text_columns: str | Sequence[str],
    label_column: str,
    *,
    group_column: str | None = None,
    encoding: str | None = None,
) -> TextDataset:
    """Read one table, or a training and a test table whose text columns may differ in name."""
    columns = [text_columns] * len(paths) if isinstance(text_columns, str) else text_columns
    parts = [
        read_rows(
            read_table(path, encoding=encoding),
            name=path.name,
            text_column=column,
            label_column=label_column,
            group_column=group_column,
        )
        for path, column in zip(paths, columns, strict=False)
    ]
    return join_rows(parts, name=paths[0].stem)


def _load_gold_sentiment(path: Path, encoding: str | None) -> TextDataset:
    return _load_tables([_find_gold(path)], "News", "Price Sentiment", encoding=encoding)


def _load_gold_yes_no(path: Path, encoding: str | None) -> TextDataset:
    """Ask every headline four questions; row ids count questions: 4 x headline + question."""
    path = _find_gold(path)
    frame = read_table(path, encoding=encoding)
    for column in ("News", *GOLD_QUESTIONS):
        find_column(frame, column, (), kind="question", name=path.name)
    headlines = read_texts(frame["News"].tolist(), name=path.name, column="News")
    answers = {"0": "no", "1": "yes"}
    texts, labels, groups, row_ids = [], [], [], []
    for q, (column, question) in enumerate(GOLD_QUESTIONS.items()):
        for i, (headline, value) in enumerate(zip(headlines, frame[column], strict=True)):
            answer = answers.get(read_label(value, row=i, name=path.name, column=column))
            if headline and answer:
                texts.append(f"{headline} {question}")
                labels.append(answer)
                groups.append(headline)
                row_ids.append(len(GOLD_QUESTIONS) * i + q)
    order = sorted(range(len(row_ids)), key=row_ids.__getitem__)
    return TextDataset(
        texts=tuple(texts[i] for i in order),
        labels=tuple(labels[i] for i in order),
        groups=tuple(groups[i] for i in order),
        name="gold_yes_no",
        n_dropped=len(headlines) * len(GOLD_QUESTIONS) - len(texts),
        row_ids=tuple(sorted(row_ids)),
        compared=tuple(groups[i] for i in order),
    )


def _find_gold(path: Path) -> Path:
    return path / "gold-dataset-sinha-khandait.csv" if path.is_dir() else path


def _load_fiqa(path: Path, encoding: str | None) -> TextDataset:
    """Read (sentence, target) pairs: the text names the target, the group is the sentence."""
    files = sorted(path.glob("task1_*_ABSA_*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no task1_*_ABSA_*.json file: task 'fiqa' reads those.")
    pairs = [
        (sentence, target, score, "test" if file.stem.endswith("_test") else "train")
        for file in files
        for sentence, target, score in _read_fiqa(file, encoding)
    ]
    sides = tuple(side for *_, side in pairs)
    return TextDataset(
        texts=tuple(f"{sentence} Target: {target}" for sentence, target, *_ in pairs),
        labels=tuple(name_fiqa_score(score) for _, _, score, _ in pairs),
        groups=tuple(sentence for sentence, *_ in pairs),
        split=sides if len(set(sides)) == 2 else None,
        name="fiqa",
        compared=tuple(sentence for sentence, *_ in pairs),
    )


def _read_fiqa(path: Path, encoding: str | None) -> list[tuple[str, str, float]]:
    try:
        entries = json.loads(read_text(path, encoding=encoding))
        return [
            (entry["sentence"].strip(), info["target"].strip(), float(info["sentiment_score"]))
            for entry in entries.values()
            for info in entry["info"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path.name} isn't a FiQA task 1 file: an object of entries with sentence and info is needed."
        ) from error


def name_fiqa_score(score: float) -> str:
    """Return ``"negative"``, ``"neutral"`` or ``"positive"`` for a score in [-1, 1]."""
    if score < FIQA_NEGATIVE_BELOW:
        return "negative"
    return "positive" if score >= FIQA_POSITIVE_FROM else "neutral"


def _load_sst2(path: Path, encoding: str | None) -> TextDataset:
    paths = [path] if path.is_file() else [path / "train.tsv", path / "dev.tsv"]
    columns = [_find_sst2_column(p, encoding) for p in paths]
    rows = _load_tables(paths, columns, "label", encoding=encoding)
    return rows.name_labels({k: name for k, name in SST2_NAMES.items() if k in rows.label_names})


def _find_sst2_column(path: Path, encoding: str | None) -> str:
    header = read_text(path, encoding=encoding).split("\n", 1)[0].split("\t")
    return "content" if "content" in header else "sentence"


def _load_mr(path: Path, encoding: str | None) -> TextDataset:
    if not path.is_dir():
        raise DataError(
            f"{path} is a file: task 'mr' reads a folder with rt-polarity.pos and rt-polarity.neg."
        )
    texts: list[str] = []
    labels: list[str] = []
    row_ids: list[int] = []
    n_rows = 0
    for label in ("pos", "neg"):
        lines = read_text(path / f"rt-polarity.{label}", encoding=encoding).rstrip("\n").split("\n")
        for i, line in enumerate(lines):
            if line.strip():
                texts.append(line.strip())
                labels.append(label)
                row_ids.append(n_rows + i)
        n_rows += len(lines)
    return TextDataset(
        tuple(texts), tuple(labels), name="mr", n_dropped=n_rows - len(texts), row_ids=tuple(row_ids)
    )


def _load_reuters(name: str) -> Callable[[Path, str | None], TextDataset]:
    def load(path: Path, encoding: str | None) -> TextDataset:
        paths = [path] if path.is_file() else [path / f"{name}_train.jsonl", path / f"{name}_test.jsonl"]
        return _load_tables(paths, "text", "label", encoding=encoding)

    return load


def _load_ag_news(path: Path, encoding: str | None) -> TextDataset:
    name = path.as_posix()
    parts = [
        read_rows(
            read_hub(name, config=None, split=split),
            name=name,
            text_column="text",
            label_column="label",
            group_column=None,
        )
        for split in ("train", "test")
    ]
    return join_rows(parts, name=name)


def _load_sujet(
    read: Callable[..., TextDataset],
) -> Callable[[Path, str | None], TextDataset]:
    def load(path: Path, encoding: str | None) -> TextDataset:
        is_file = path.is_file()
        frame = (
            read_table(path, encoding=encoding)
            if is_file
            else read_hub(path.as_posix(), config=None, split="train")
        )
        return read(frame, name=path.name)

    return load


TASKS: dict[str, Task] = {
    "sentiment": Task(
        "sentiment of financial sentences and tweets (comes with the package)",
        None,
        _load_sample("sentiment.jsonl"),
    ),
    "yes_no": Task(
        "yes/no questions about price headlines (comes with the package)",
        None,
        _load_sample("yes_no.jsonl", compared="headline"),
    ),
    "gold_sentiment": Task(
        "price sentiment of gold headlines, 4 classes", "gold_commodity_news", _load_gold_sentiment
    ),
    "gold_yes_no": Task(
        "four yes/no questions about each gold headline", "gold_commodity_news", _load_gold_yes_no
    ),
    "sujet_sentiment": Task(
        "sentiment prompts of Sujet-Finance-Instruct-177k, 5 classes (the capstone's first task)",
        "sujet_finance",
        _load_sujet(read_sentiments),
        hub=SUJET,
    ),
    "sujet_yes_no": Task(
        "yes/no questions of Sujet-Finance-Instruct-177k (the capstone's second task)",
        "sujet_finance",
        _load_sujet(read_yes_no),
        hub=SUJET,
    ),
    "fiqa": Task(
        f"FiQA 2018 sentiment towards a target: negative below {FIQA_NEGATIVE_BELOW}, "
        f"positive from {FIQA_POSITIVE_FROM}, own test split",
        "fiqa2018_task1",
        _load_fiqa,
    ),
    "sst2": Task("SST-2 film review phrases, GLUE's dev rows as test", "sst2", _load_sst2),
    "mr": Task("film review sentences, 2 classes", "mr", _load_mr),
    "ag_news": Task(
        "AG News topics, 4 classes, own test split",
        "ag_news",
        _load_ag_news,
        hub="fancyzhx/ag_news",
    ),
    "r8": Task("Reuters-21578 topics, 8 classes, own test split", "r8", _load_reuters("r8")),
    "r52": Task("Reuters-21578 topics, 52 classes, own test split", "r52", _load_reuters("r52")),
}
