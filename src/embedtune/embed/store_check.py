"""What can be wrong with a table of the store, and dropping just that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedtune.embed.store_key import StoreKey
from embedtune.embed.store_place import (
    DAMAGE,
    ForeignTable,
    Place,
    explain_storage_errors,
    import_lance,
    is_panic,
    shorten,
)
from embedtune.embed.store_rows import find_whole, has_known_columns, read_widths, to_matrix
from embedtune.errors import StoreError

READ_ROWS = 4_096
DELETE_ROWS = 1_000


@dataclass
class Damage:
    """What is wrong with an open table.

    Attributes
    ----------
    problems : list of str
        One line each.
    rows : list of int
        Addresses of rows to be dropped.
    fragments : list of int
        Fragments that can't be read at all.
    """

    problems: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    fragments: list[int] = field(default_factory=list)


def check_table(place: Place) -> tuple[str, ...]:
    """Read a whole table and return its problems, one line each; none for a table in order, or of another release."""
    import_lance()
    problems: list[str] = []
    try:
        place.read_key()
    except ForeignTable:
        return ()
    except StoreError as error:
        problems.append(str(error))
    try:
        dataset = place.open()
    except StoreError as error:
        return (*problems, f"the table can't be opened ({shorten(error.__cause__ or error)})")
    if dataset is None:
        return (*problems, "there is no table")
    if not has_known_columns(dataset):
        return (*problems, "the table has columns that weren't stored")
    return (*problems, *_find_damage(place, dataset).problems)


def repair_table(place: Place) -> tuple[str, ...]:
    """Drop from a table what is damaged, and return what was dropped, one line each.

    Rows that are damaged go; of what can't be read row by row, the fragment; of a table that can't be opened, the
    latest commits, or all of it. A key that can't be read is written anew from the table's own copy.

    Raises
    ------
    StoreError, ResourceError
        If the table stays locked or can't be written.
    """
    import_lance()
    with explain_storage_errors(place), place.lock():
        told = []
        for name in place.list_damaged_deletions():
            place.delete_deletions(name)
        if n_commits := _drop_unreadable_versions(place):
            told.append(f"{n_commits} commits that can't be read")
        dataset = place.open()
        if dataset is not None and _repair_key(place, dataset):
            damage = _find_damage(place, dataset)
            if damage.fragments:
                n_rows = sum(
                    part.metadata.num_rows
                    for part in dataset.get_fragments()
                    if part.fragment_id in damage.fragments
                )
                dataset = _drop_fragments(place, dataset, damage.fragments)
                told.append(f"{n_rows} rows that can't be told apart")
            for start in range(0, len(damage.rows), DELETE_ROWS):
                addresses = ", ".join(map(str, damage.rows[start : start + DELETE_ROWS]))
                dataset.delete(f"_rowaddr IN ({addresses})")
            if damage.rows:
                told.append(f"{len(damage.rows)} rows")
            return tuple(told)
    place.delete()
    return ("the whole table",)


def _find_damage(place: Place, dataset: Any) -> Damage:
    damage = Damage()
    seen: set[bytes] = set()
    n_double = 0
    widths = read_widths(dataset)
    for fragment in dataset.get_fragments():
        name = f"fragment {fragment.fragment_id}"
        try:
            hashes, addresses, bad = _check_fragment(dataset, fragment, widths)
        except BaseException as error:
            if not isinstance(error, DAMAGE) and not is_panic(error):
                raise  # our own mistake, or memory: nothing to drop rows for
            damage.problems.append(f"{name} can't be read ({shorten(error)})")
            damage.fragments.append(fragment.fragment_id)
            continue
        damage.problems += [f"{name} has {n} {what}" for what, n in _count(bad).items()]
        for text, address, reason in zip(hashes, addresses, bad, strict=True):
            is_double = place.is_local and text in seen  # In an object store one text may have several rows.
            n_double += is_double
            if reason or is_double:
                damage.rows.append(address)
            else:
                seen.add(text)
    if n_double:
        damage.problems.append(f"{n_double} texts have more than one row")
    return damage


def _check_fragment(
    dataset: Any, fragment: Any, widths: dict[str, int]
) -> tuple[list[bytes], list[int], list[str]]:
    """Return the hash, the address and what is wrong (mostly nothing) of each of a fragment's rows."""
    hashes: list[bytes] = []
    addresses: list[int] = []
    bad: list[str] = []
    fragment.validate()
    scanner = dataset.scanner(fragments=[fragment], with_row_address=True, batch_size=READ_ROWS)
    for batch in scanner.to_batches():
        texts = batch["hash"].to_pylist()
        held = [(names or "").split() for names in batch["held"].cast("string").to_pylist()]
        reasons = ["" if set(names) <= widths.keys() else "rows that hold unknown columns" for names in held]
        for column, width in widths.items():
            holds = np.array([column in names for names in held], dtype=bool)
            is_valid = batch[column].is_valid().to_numpy(zero_copy_only=False)
            whole = is_valid & find_whole(texts, column, _matrix(batch[column], width))
            for row in np.flatnonzero(holds & ~whole):
                reasons[row] = f"vectors of '{column}' that aren't those that were stored"
        hashes += texts
        addresses += batch["_rowaddr"].to_pylist()
        bad += reasons
    return hashes, addresses, bad


def _count(reasons: list[str]) -> dict[str, int]:
    return {reason: reasons.count(reason) for reason in sorted(set(reasons)) if reason}


def _drop_unreadable_versions(place: Place) -> int:
    """Delete the newest commits of a table until it can be opened, and return how many."""
    for n_dropped, manifest in enumerate([None, *place.list_manifests()]):
        if manifest is not None:
            place.delete_manifest(manifest)
        try:
            dataset = place.open()
        except StoreError:
            continue
        if dataset is None or has_known_columns(dataset):
            return n_dropped
    return 0


def _repair_key(place: Place, dataset: Any) -> bool:
    """Write key.json anew if it is damaged, and tell whether the key is known."""
    try:
        place.read_key()
    except StoreError:
        try:
            key = StoreKey.from_json((dataset.schema.metadata or {})[b"embedtune.key"].decode("utf-8"))
        except (StoreError, KeyError, UnicodeDecodeError):
            return False
        if key.digest() != place.digest:
            return False
        place.write_key(key, anew=True)
    return True


def _drop_fragments(place: Place, dataset: Any, fragments: list[int]) -> Any:
    lance = import_lance()
    operation = lance.LanceOperation.Delete([], fragments, "true")
    return lance.LanceDataset.commit(place.table_uri, operation, read_version=dataset.version)


def _matrix(array: Any, width: int) -> Any:
    import pyarrow as pa

    return to_matrix(pa.chunked_array([array]), width)
