"""suspects.csv: rows to look at, written by a run, corrected by a reader, fed back with `embedtune run --labels`."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from embedtune.data.dataset import TextDataset
from embedtune.data.tables import read_table
from embedtune.errors import DataError, suggest_nearest
from embedtune.files import write_text

log = logging.getLogger(__name__)

COLUMNS = ("row", "part", "reason", "label", "suggested", "confidence", "corrected", "text")
#: In the column `corrected`: leave the row out.
DROP = "-"
#: A spreadsheet takes a cell that starts so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_suspects(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows under `COLUMNS`, ``corrected`` empty for a reader to fill: a label, or ``-`` to leave the row out.

    A text that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    if path.exists() and _has_corrections(path):
        kept = path.with_name(f"{path.stem}.corrected{path.suffix}")
        path.replace(kept)
        log.warning("%s held corrections: it is now %s, to be fed back with --labels", path.name, kept)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _defuse(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _has_corrections(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return any((row.get("corrected") or "").strip() for row in csv.DictReader(file))


def correct_labels(dataset: TextDataset, path: str | Path) -> TextDataset:
    """Return the data set with the labels of a corrected file.

    Parameters
    ----------
    dataset : TextDataset
    path : str or Path
        A table with the columns ``row``, numbers in the source, and ``corrected``; other columns are not read. Rows
        without a correction stay as they are.

    Raises
    ------
    DataError
        If a column is missing, a row isn't in the data, stands there twice with different labels, or a label isn't one
        of the data's.
    """
    path = Path(path)
    table = read_table(path)
    for column in ("row", "corrected"):
        if column not in table.columns:
            raise DataError(
                f"{path.name} has no column '{column}': give the suspects.csv of a run, corrected, or a table with "
                "the columns row and corrected."
            )
    places = {row: place for place, row in enumerate(dataset.row_ids or range(len(dataset)))}
    names = set(dataset.labels)
    corrected: dict[int, str] = {}
    for line, (row, cell) in enumerate(zip(table["row"], table["corrected"], strict=True), 2):
        wanted = "" if cell is None else str(cell).strip()
        if not wanted:
            continue
        if (
            wanted not in names and wanted.removeprefix("'") in names
        ):  # copied from a cell that `_defuse` wrote
            wanted = wanted.removeprefix("'")
        where = f"{path.name}, line {line}"
        place = places.get(_read_number(row, where=where))
        if place is None:
            raise DataError(f"{where}: the data has no row {row}: give the file of a run on the same data.")
        if wanted != DROP and wanted not in names:
            raise DataError(
                f"{where}: '{wanted}' is none of the data's labels{suggest_nearest(wanted, names)}: "
                f"write one of them, or {DROP} to leave the row out."
            )
        if corrected.setdefault(place, wanted) != wanted:
            raise DataError(
                f"{where}: row {row} is corrected to '{wanted}' here and to '{corrected[place]}' above: choose one."
            )
    return _replace_labels(dataset, corrected)


def _replace_labels(dataset: TextDataset, corrected: Mapping[int, str]) -> TextDataset:
    kept = [place for place in range(len(dataset)) if corrected.get(place) != DROP]
    labels = [corrected.get(place, dataset.labels[place]) for place in kept]
    row_ids = dataset.row_ids or tuple(range(len(dataset)))
    columns: dict[str, Any] = {
        name: None if values is None else tuple(values[place] for place in kept)
        for name in ("texts", "groups", "split", "times", "sources", "compared")
        for values in [getattr(dataset, name)]
    }
    return dataclasses.replace(
        dataset,
        labels=tuple(labels),
        row_ids=tuple(row_ids[place] for place in kept),
        n_dropped=dataset.n_dropped + len(dataset) - len(kept),
        **columns,
    )


def _read_number(cell: Any, *, where: str) -> int:
    try:
        number = float(cell)
        if number == int(number):
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"{where}: row is '{cell}': give a row's number in the source, counted from 0.")


def _defuse(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
