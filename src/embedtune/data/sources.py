"""Where labelled texts come from: a file, the Hub, or a built-in task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from embedtune.data.columns import join_rows, read_rows
from embedtune.data.dataset import TextDataset
from embedtune.data.hub import is_hub_id, read_hub
from embedtune.data.tables import READERS, read_table
from embedtune.data.tasks import TASKS, load_task
from embedtune.data.textfile import read_text
from embedtune.errors import DataError, suggest_nearest

__all__ = ["load_dataset", "read_table"]


def load_dataset(
    source: str | Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    task: str | None = None,
    group_column: str | None = None,
    time_column: str | None = None,
    source_column: str | None = None,
    test_source: str | Path | None = None,
    hub_config: str | None = None,
    hub_split: str = "train",
    hub_test_split: str | None = None,
    encoding: str | None = None,
    label_names: Mapping[Any, str] | None = None,
) -> TextDataset:
    """Read labelled texts.

    Parameters
    ----------
    source : str or Path
        A file (`embedtune.data.tables.read_table` says which), a Hub data set's id or a folder in its
        layout, or the name of a built-in task (`embedtune.data.tasks.TASKS`).
    text_column, label_column : str, optional
        Guessed from well-known names by default.
    task : str, optional
        The built-in task whose file or folder `source` is.
    group_column : str, optional
        Rows with the same value never stand on two sides of a split.
    time_column : str, optional
        Dates or numbers; the latest rows become the test rows.
    source_column : str, optional
        Where each row is from; a run then tells whether that gives its label away.
    test_source : str or Path, optional
        A second file with the same columns whose rows are the test rows.
    hub_config, hub_split, hub_test_split : str, optional
        Which configuration and splits of a Hub data set to read; `hub_test_split` gives the test rows.
    encoding : str, optional
        Of text files; detected by default.
    label_names : mapping of label to str, optional
        What labels are called from here on, where the source has numbers or abbreviations:
        ``{0: "negative", 1: "positive"}``.

    Returns
    -------
    TextDataset
        Rows in the source's order, the test file's last; rows without text or label left out and counted.

    Raises
    ------
    DataError
        If anything about the source, its columns or its cells is wrong; the message says what to do.
    """
    name = str(source)
    if task is not None or name in TASKS:
        if text_column or label_column or group_column or time_column or source_column:
            raise DataError(
                f"task '{task or name}' knows its own columns: leave out text_column, label_column, group_column, "
                "time_column and source_column, or leave out the task."
            )
        rows = _load_known(name, task, encoding=encoding, test_source=test_source)
        return rows.name_labels(label_names or {})
    read, is_file = _choose_reader(name, hub_config=hub_config, encoding=encoding)
    frames = [read(hub_split)]
    if test_source is not None:
        frames.append(read_table(test_source, encoding=encoding))
    elif hub_test_split is not None:
        if is_file:
            raise DataError(
                f"hub_test_split='{hub_test_split}' is for Hub data sets, and {name} is a file: use test_source."
            )
        frames.append(read(hub_test_split))
    names = [Path(name).name if is_file else name, Path(str(test_source or name)).name]
    for path, frame in ((source, frames[0]), (test_source, frames[-1])):
        if path is not None and str(path).lower().endswith(".txt") and "label" not in frame:
            _refuse_unlabelled(Path(path), encoding)
    parts = [
        read_rows(
            frame,
            name=n,
            text_column=text_column,
            label_column=label_column,
            group_column=group_column,
            time_column=time_column,
            source_column=source_column,
        )
        for frame, n in zip(frames, names, strict=False)
    ]
    if not any(part.texts for part in parts):
        raise DataError(f"{names[0]} has no row with both a text and a label: check the two columns.")
    rows = join_rows(parts, name=Path(name).stem if is_file else name)
    return rows.name_labels(label_names or {})


def _load_known(
    name: str, task: str | None, *, encoding: str | None, test_source: str | Path | None
) -> TextDataset:
    if test_source is not None:
        raise DataError(
            "test_source goes with a plain file, not with a built-in task: a task knows its own test rows."
        )
    if task is None or task == name:
        return load_task(name, encoding=encoding)
    return load_task(task, source=name, encoding=encoding)


def _choose_reader(
    name: str, *, hub_config: str | None, encoding: str | None
) -> tuple[Callable[[str], pd.DataFrame], bool]:
    path = Path(name)
    if path.is_dir():
        if not any(
            entry.suffix.lower() in READERS or entry.name == "state.json" for entry in path.rglob("*")
        ):
            raise DataError(f"{name} is a folder without data files: name a file in {', '.join(READERS)}.")
        return lambda split: read_hub(name, config=hub_config, split=split), False
    is_file = path.exists() or path.suffix.lower() in READERS
    if not is_file and is_hub_id(name) and not path.parent.is_dir():
        return lambda split: read_hub(name, config=hub_config, split=split), False
    if not is_file and not path.suffix and path.parent == Path():
        raise DataError(
            f"'{name}' is no file and no built-in task{suggest_nearest(name, TASKS)}. Tasks: {', '.join(TASKS)}; "
            "a Hub data set is written organisation/name."
        )
    if not path.exists():
        raise DataError(f"{path} doesn't exist: check the path (relative paths start at {Path.cwd().name}/).")
    return lambda split: read_table(path, encoding=encoding), True


def _refuse_unlabelled(path: Path, encoding: str | None) -> None:
    for number, line in enumerate(read_text(path, encoding=encoding).split("\n"), start=1):
        if line.strip() and not (line.rsplit("@", 1)[-1].strip() and "@" in line):
            raise DataError(
                f"line {number} of {path.name} has no label: a .txt file is read as sentence@label, "
                "the label after the last @."
            )
    raise DataError(f"{path.name} isn't sentence@label in every line: a space follows the last @ somewhere.")
