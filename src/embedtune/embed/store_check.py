"""What can be wrong with a table of the store."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedtune.embed.store_place import Place, import_lance, shorten
from embedtune.embed.store_rows import read_widths, to_matrix
from embedtune.errors import StoreError

READ_ROWS = 4_096


def check_table(place: Place) -> tuple[str, ...]:
    """Read a whole table and return its problems, one line each; none for a table in order."""
    import_lance()
    problems: list[str] = []
    try:
        place.read_key()
    except StoreError as error:
        problems.append(str(error))
    try:
        dataset = place.open()
    except StoreError as error:
        return (*problems, f"the table can't be opened ({shorten(error.__cause__ or error)})")
    if dataset is None:
        return (*problems, "there is no table")
    hashes: list[bytes] = []
    for fragment in dataset.get_fragments():
        problems += _check_fragment(fragment, read_widths(dataset), hashes)
    n_double = len(hashes) - len(set(hashes))
    if n_double and place.is_local:  # In an object store one text may have several rows.
        problems.append(f"{n_double} texts have more than one row")
    return tuple(problems)


def _check_fragment(fragment: Any, widths: dict[str, int], hashes: list[bytes]) -> list[str]:
    """Return the fragment's problems, and add its hashes."""
    name = f"fragment {fragment.fragment_id}"
    n_bad: dict[str, int] = {}
    n_lacking: dict[str, int] = {}
    try:
        for batch in fragment.to_batches(batch_size=READ_ROWS):
            hashes += batch["hash"].to_pylist()
            held = batch["held"].cast("string").to_pylist()
            for column, width in widths.items():
                holds = np.array([column in (names or "").split() for names in held], dtype=bool)
                is_valid = batch[column].is_valid().to_numpy(zero_copy_only=False)
                n_lacking[column] = n_lacking.get(column, 0) + int((holds & ~is_valid).sum())
                is_finite = np.isfinite(_matrix(batch[column], width)).all(axis=1)
                n_bad[column] = n_bad.get(column, 0) + int((holds & is_valid & ~is_finite).sum())
    except (OSError, ValueError, RuntimeError) as error:
        return [f"{name} can't be read ({shorten(error)})"]
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Lance's Rust code gives up on some damaged files.
            raise
        return [f"{name} can't be read ({shorten(error)})"]
    return [
        f"{name} lacks {n} vectors of '{column}' that it should hold" for column, n in n_lacking.items() if n
    ] + [f"{name} has non-finite values in {n} vectors of '{column}'" for column, n in n_bad.items() if n]


def _matrix(array: Any, width: int) -> Any:
    import pyarrow as pa

    return to_matrix(pa.chunked_array([array]), width)
