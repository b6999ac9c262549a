"""TextDataset: labelled texts in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedtune.errors import DataError


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
    name : str
        What the report calls it.
    n_dropped : int
        Rows the reader left out because text or label was null or empty.

    Raises
    ------
    DataError
        If the columns differ in length.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    split: tuple[str, ...] | None = None
    name: str = "data"
    n_dropped: int = 0

    def __post_init__(self) -> None:
        for column, values in (("labels", self.labels), ("groups", self.groups), ("split", self.split)):
            if values is not None and len(values) != len(self.texts):
                raise DataError(f"{len(self.texts)} texts but {len(values)} {column}: give one per text.")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The distinct labels, sorted."""
        return tuple(sorted(set(self.labels)))

    def take(self, rows: Sequence[int]) -> TextDataset:
        """Return the given rows, in the order given."""
        return TextDataset(
            texts=tuple(self.texts[i] for i in rows),
            labels=tuple(self.labels[i] for i in rows),
            groups=None if self.groups is None else tuple(self.groups[i] for i in rows),
            split=None if self.split is None else tuple(self.split[i] for i in rows),
            name=self.name,
            n_dropped=self.n_dropped,
        )
