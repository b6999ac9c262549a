"""Splits: rows, each in a part of the experiment, and their file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedtune.errors import DataError
from embedtune.files import replace_file, write_json

PARTS = ("tune", "train", "test")
_COLUMNS = ("row_id", "text", "label", "group", "part")
_SOURCE = "source"


@dataclass(frozen=True)
class Splits:
    """Cleaned labelled texts, each in one part.

    Attributes
    ----------
    texts, labels : tuple of str
        One per row, in the source's order.
    groups : tuple of int
        Cluster numbers from 0, in order of first appearance; a cluster stands in one part.
    part : tuple of str
        ``"tune"``, ``"train"`` or ``"test"``.
    row_ids : tuple of int
        Row numbers in the source, from 0.
    sources : tuple of str or None
        Where each row is from, where the data say it.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[int, ...]
    part: tuple[str, ...]
    row_ids: tuple[int, ...]
    sources: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The distinct labels, sorted."""
        return tuple(sorted(set(self.labels)))

    @property
    def codes(self) -> npt.NDArray[np.int64]:
        """The labels as numbers into `label_names`, int64."""
        return np.unique(np.array(self.labels, dtype=object), return_inverse=True)[1].astype(np.int64)

    def rows(self, *parts: str) -> npt.NDArray[np.int64]:
        """Return the indices of the given parts' rows, ascending, int64."""
        return np.flatnonzero(np.isin(np.array(self.part, dtype=object), parts)).astype(np.int64)


def write_splits(splits: Splits, audit: dict[str, Any], data_dir: str | Path) -> None:
    """Write ``splits.parquet`` and ``audit.json`` into `data_dir`, each atomically, the splits last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data_dir = Path(data_dir)
    columns = (splits.row_ids, splits.texts, splits.labels, splits.groups, splits.part)
    types = (pa.int64(), pa.string(), pa.string(), pa.int64(), pa.string())
    table = pa.table(
        {name: pa.array(list(v), type=t) for name, v, t in zip(_COLUMNS, columns, types, strict=True)}
    )
    if splits.sources is not None:
        table = table.append_column(_SOURCE, pa.array(list(splits.sources), type=pa.string()))
    write_json(data_dir / "audit.json", audit)
    with replace_file(data_dir / "splits.parquet") as scratch:
        pq.write_table(table, scratch)


def read_splits(data_dir: str | Path) -> Splits:
    """Read what `write_splits` wrote.

    Raises
    ------
    DataError
        If the file is missing, damaged or of another make.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(data_dir) / "splits.parquet"
    if not path.exists():
        raise DataError(f"{path} doesn't exist: prepare the data first.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is damaged or wasn't written here: delete it and prepare the data again."
        ) from error
    if table.column_names not in (list(_COLUMNS), [*_COLUMNS, _SOURCE]):
        raise DataError(f"{path} is damaged or wasn't written here: delete it and prepare the data again.")
    row_ids, texts, labels, groups, part, *rest = (tuple(column.to_pylist()) for column in table.columns)
    return Splits(
        texts=texts,
        labels=labels,
        groups=groups,
        part=part,
        row_ids=row_ids,
        sources=rest[0] if rest else None,
    )
