"""predictions/ARM.parquet: what an arm said of every test row, so that every figure can be recomputed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedtune.data.splits import Splits
from embedtune.files import replace_file


def write_predictions(
    path: Path,
    splits: Splits,
    by_seed: Mapping[int, NDArray[np.float64]],
    predicted: Mapping[int, NDArray[np.int64]],
) -> None:
    """Write one arm's probabilities, whole or not at all.

    Parameters
    ----------
    path : Path
    splits : Splits
        Its test rows, in order, are the rows of each matrix; its label names the columns.
    by_seed : mapping of int to ndarray of shape (n_test, n_labels)
    predicted : mapping of int to ndarray of int, shape (n_test,)
        The columns of the labels named.
    """
    test = splits.rows("test")
    tables = []
    for seed, probabilities in by_seed.items():
        columns: dict[str, pa.Array] = {
            "row_id": pa.array([splits.row_ids[i] for i in test], pa.int64()),
            "label": pa.array([splits.labels[i] for i in test], pa.string()),
            "predicted": pa.array([splits.label_names[code] for code in predicted[seed]], pa.string()),
            "seed": pa.array([seed] * len(test), pa.int64()),
        }
        for name, column in zip(splits.label_names, probabilities.T, strict=True):
            columns[f"p:{name}"] = pa.array(column, pa.float64())
        tables.append(pa.table(columns))
    with replace_file(path) as scratch:
        pq.write_table(pa.concat_tables(tables), scratch)


def read_predictions(path: Path, splits: Splits) -> NDArray[np.float64]:
    """Return an arm's probabilities, shape (n_seeds, n_test, n_labels), as `write_predictions` wrote them."""
    table = pq.read_table(path)
    n_test = len(splits.rows("test"))
    columns = [table.column(f"p:{name}").to_numpy() for name in splits.label_names]
    return np.stack(columns, axis=1).reshape(-1, n_test, len(columns))


def read_predicted(path: Path, splits: Splits) -> NDArray[np.int64]:
    """Return the labels an arm named, as columns, shape (n_seeds, n_test)."""
    codes = {name: code for code, name in enumerate(splits.label_names)}
    named = pq.read_table(path, columns=["predicted"])["predicted"].to_pylist()
    found: NDArray[np.int64] = np.array([codes[name] for name in named], dtype=np.int64)
    return found.reshape(-1, len(splits.rows("test")))


def write_out_of_fold(
    path: Path, splits: Splits, rows: NDArray[np.int64], found: NDArray[np.float64]
) -> None:
    """Write what an arm's first seed said of its own training rows, each by a head that hadn't seen it."""
    columns: dict[str, Any] = {
        "row_id": pa.array([splits.row_ids[i] for i in rows], pa.int64()),
        "label": pa.array([splits.labels[i] for i in rows], pa.string()),
    }
    columns |= {
        f"p:{name}": pa.array(column) for name, column in zip(splits.label_names, found.T, strict=True)
    }
    with replace_file(path) as scratch:
        pq.write_table(pa.table(columns), scratch)
