"""TextDataset: labelled texts in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from embedtune.errors import DataError, suggest_nearest

T = TypeVar("T")


@dataclass(frozen=True)
class TextDataset:
    """Labelled texts, as read from a source and before anything is cleaned.

    Attributes
    ----------
    texts : tuple of str
        One per row; may be empty strings, which `prepare` drops.
    labels : tuple of str
        Class names, one per row, spelled as in the source; numbers become their decimal text.
    groups : tuple of str or None
        Rows with equal groups never straddle a split (one headline's questions, say).
    split : tuple of str or None
        ``"train"`` or ``"test"`` per row where the source brings its own test rows.
    times : tuple of float or None
        When each row is from; `prepare` then tests on the latest.
    sources : tuple of str or None
        Where each row is from: a publisher, an annotator, a file.
    name : str
        What the report calls it.
    n_dropped : int
        Rows the reader left out because text or label was null or empty.
    refused : tuple of (str, int)
        Labels that aren't the task's own, and how many rows bore each; the reader left them out.
    row_ids : tuple of int or None
        Each row's number in the source, from 0, empty rows counted; a test file's rows go on where the
        first file's end. None means 0, 1, 2 ...
    compared : tuple of str or None
        What the search for near-duplicates reads instead of the texts: a headline without the question
        asked about it, say, for a question repeated in every row makes all rows alike.

    Raises
    ------
    DataError
        If the columns differ in length.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    split: tuple[str, ...] | None = None
    times: tuple[float, ...] | None = None
    sources: tuple[str, ...] | None = None
    name: str = "data"
    n_dropped: int = 0
    row_ids: tuple[int, ...] | None = None
    compared: tuple[str, ...] | None = None
    refused: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for column in ("labels", "groups", "split", "times", "sources", "row_ids", "compared"):
            values = getattr(self, column)
            if values is not None and len(values) != len(self.texts):
                raise DataError(f"{len(self.texts)} texts but {len(values)} {column}: give one per text.")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The distinct labels, sorted."""
        return tuple(sorted(set(self.labels)))

    def name_labels(self, names: Mapping[Any, str]) -> TextDataset:
        """Return the rows with labels called as `names` says; labels that it leaves out keep their names.

        Numbers among its keys stand for their decimal text, as in `labels`.

        Raises
        ------
        DataError
            If no row has a label that is named, a name is empty, or two labels would bear one name.
        """
        present = self.label_names
        names = {str(label): name for label, name in names.items()}
        for label, name in names.items():
            if label not in present:
                raise DataError(
                    f"label_names names the label '{label}', which no row has{suggest_nearest(label, present)}: "
                    f"the labels are {', '.join(present[:20])}."
                )
            if not name.strip():
                raise DataError(f"label_names leaves the label '{label}' without a name: give it one.")
        called = {label: names.get(label, label).strip() for label in present}
        for label, name in called.items():
            others = [other for other in present if other != label and called[other] == name]
            if others:
                raise DataError(
                    f"label_names calls both '{label}' and '{others[0]}' '{name}': give each label a name of its own."
                )
        return replace(self, labels=tuple(called[label] for label in self.labels))

    def take(self, rows: Sequence[int]) -> TextDataset:
        """Return the given rows, in the order given."""

        def pick(values: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(values[i] for i in rows)

        return TextDataset(
            texts=pick(self.texts),
            labels=pick(self.labels),
            groups=None if self.groups is None else pick(self.groups),
            split=None if self.split is None else pick(self.split),
            times=None if self.times is None else pick(self.times),
            sources=None if self.sources is None else pick(self.sources),
            name=self.name,
            n_dropped=self.n_dropped,
            row_ids=tuple(rows) if self.row_ids is None else pick(self.row_ids),
            compared=None if self.compared is None else pick(self.compared),
            refused=self.refused,
        )


def fingerprint(dataset: TextDataset) -> str:
    """Return the SHA-256 of texts, labels, groups, split, times and sources, as hexadecimal text."""
    digest = hashlib.sha256()
    if dataset.times is not None:
        digest.update(repr(dataset.times).encode())
    if dataset.sources is not None:
        digest.update(repr(dataset.sources).encode("utf-8", "surrogatepass"))
    for column in (dataset.texts, dataset.labels, dataset.groups, dataset.split):
        digest.update(b"-" if column is None else f"{len(column)}:".encode())
        for value in column or ():
            data = value.encode("utf-8", "surrogatepass")
            digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()
