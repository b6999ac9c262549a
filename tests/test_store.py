"""The store keeps what it was given, whoever else writes, and says so when it can't."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import store_writer
from embedtune.cli import app
from embedtune.embed import store_place, store_table
from embedtune.embed.store import (
    EmbeddingStore,
    EmbeddingTable,
    StoreKey,
    column_name,
    default_store_uri,
    hash_text,
)
from embedtune.embed.store_key import digest_key
from embedtune.embed.store_place import Place
from embedtune.errors import MissingExtraError, ResourceError, StoreError
from store_writer import COLUMNS, KEY, N_TEXTS, WIDTH, append, hash_numbers, make_vectors

A, B = COLUMNS
DIGEST = KEY.digest()


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "store")


@pytest.fixture
def table(store: EmbeddingStore) -> EmbeddingTable:
    return store.table(KEY)


def start_writer(store: EmbeddingStore, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, store_writer.__file__, store.uri, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_holds(table: EmbeddingTable, numbers: list[int], columns: tuple[str, ...]) -> None:
    vectors = table.read(hash_numbers(numbers), columns)
    for column in columns:
        np.testing.assert_array_equal(vectors[column], make_vectors(numbers, column).astype(np.float16))


# -- keys and names


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "other"},
        {"weights": "w1"},
        {"adapter": ""},
        {"adapter": "a1"},
        {"tokenizer": "t1"},
        {"max_length": 65},
        {"prefix": "query: "},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_store_key_any_changed_part_changes_digest(change: dict[str, Any]) -> None:
    assert replace(KEY, **change).digest() != DIGEST


def test_store_key_schema_version_changes_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedtune.embed.store_key.SCHEMA", 9)
    assert KEY.digest() != DIGEST


def test_store_key_json_round_trip_is_equal() -> None:
    assert StoreKey.from_json(KEY.to_json()) == KEY


def test_store_key_of_newer_schema_is_refused() -> None:
    with pytest.raises(StoreError, match=r"newer release .*schema 9, and this one reads 2.*upgrade"):
        StoreKey.from_json(KEY.to_json().replace('"schema": 2', '"schema": 9'))


def test_hash_text_differs_for_case_space_and_unicode_form() -> None:
    texts = ["caf\u00e9", "cafe\u0301", "Caf\u00e9", "caf\u00e9 ", "\ud800"]
    assert len({hash_text(text) for text in texts}) == 5
    assert all(len(hash_text(text)) == 16 for text in texts)


def test_column_name_negative_layer_is_refused() -> None:
    assert column_name(6, "mean") == "layer_06_mean"
    message = "^layer -1 has no column: count hidden states from 0, the embedding layer.$"
    with pytest.raises(StoreError, match=message):
        column_name(-1, "mean")


def test_default_store_uri_prefers_variable_over_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.delenv("EMBEDTUNE_STORE", raising=False)
    assert default_store_uri() == "/c/embedtune/store"
    monkeypatch.setenv("EMBEDTUNE_STORE", "s3://bucket/store")
    assert default_store_uri() == "s3://bucket/store"


# -- append and read


def test_store_import_and_creation_touch_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from embedtune.embed.store import EmbeddingStore; EmbeddingStore(sys.argv[1]); "
        "print('lance' in sys.modules, 'pyarrow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False False\n"
    assert list(tmp_path.iterdir()) == []


def test_read_returns_order_asked_with_repeats(table: EmbeddingTable) -> None:
    append(table, list(range(40)), COLUMNS)
    append(table, list(range(40, 90)), COLUMNS)
    asked = [int(i) for i in np.random.default_rng(0).integers(0, 90, 300)]
    assert_holds(table, asked, COLUMNS)
    assert_holds(table, [7, 7, 7, 80, 7], (B,))


def test_read_in_pieces_equals_read_at_once(table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch) -> None:
    append(table, list(range(90)), COLUMNS)
    monkeypatch.setattr("embedtune.embed.store_rows.READ_ROWS", 7)
    assert_holds(table, [int(i) for i in np.random.default_rng(0).integers(0, 90, 300)], COLUMNS)


def test_read_of_no_texts_returns_empty_matrices(table: EmbeddingTable) -> None:
    append(table, [0], (A,))
    assert table.read([], (A,))[A].shape == (0, WIDTH)


def test_find_missing_before_first_append_is_all(store: EmbeddingStore, table: EmbeddingTable) -> None:
    assert table.find_missing(hash_numbers([0, 1]), (A,)).tolist() == [True, True]
    assert store.list() == ()


def test_find_missing_of_other_key_is_all(store: EmbeddingStore, table: EmbeddingTable) -> None:
    append(table, [0], (A,))
    other = store.table(replace(KEY, adapter="a1"))
    assert other.find_missing(hash_numbers([0]), (A,)).tolist() == [True]


def test_find_missing_any_lacking_column_counts(table: EmbeddingTable) -> None:
    append(table, [0, 1], COLUMNS)
    append(table, [2], (A,))
    assert table.find_missing(hash_numbers([0, 2, 3, 0]), (A,)).tolist() == [False, False, True, False]
    assert table.find_missing(hash_numbers([0, 2, 3, 0]), COLUMNS).tolist() == [False, True, True, False]
    assert table.find_missing(hash_numbers([0]), ("layer_09_mean",)).tolist() == [True]


def test_append_new_column_keeps_one_row_and_old_values(table: EmbeddingTable) -> None:
    append(table, list(range(20)), (A,))
    append(table, list(range(10, 30)), (B,))
    append(table, [0, 15, 25, 35], COLUMNS)
    assert table.count_texts() == 31
    assert _count_rows(table) == 31
    assert_holds(table, list(range(20)) + [25, 35], (A,))
    assert_holds(table, list(range(10, 30)) + [0, 35], (B,))
    assert table.find_missing(hash_numbers([5, 11, 26]), COLUMNS).tolist() == [True, False, True]


def test_append_known_text_keeps_first_vector(table: EmbeddingTable) -> None:
    append(table, [1, 2], (A,))
    table.append(hash_numbers([2, 3]), {A: np.full((2, WIDTH), 5.0), B: np.full((2, WIDTH), 6.0)})
    assert_holds(table, [1, 2], (A,))
    assert (table.read(hash_numbers([2, 3]), (B,))[B] == 6).all()
    assert (table.read(hash_numbers([3]), (A,))[A] == 5).all()


def test_append_repeats_in_batch_count_once(table: EmbeddingTable) -> None:
    values = np.arange(3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)
    table.append(hash_numbers([4, 4, 5]), {A: values})
    assert _count_rows(table) == 2
    np.testing.assert_array_equal(table.read(hash_numbers([5, 4]), (A,))[A], values[[2, 0]])


def test_append_large_values_are_clipped_to_float16(table: EmbeddingTable) -> None:
    values = np.array([[1e6, -1e6, 65504, 65519.9, 1 / 3]], dtype=np.float32)
    table.append(hash_numbers([0]), {A: values})
    want = np.array([[65504, -65504, 65504, 65504, np.float16(1 / 3)]], dtype=np.float16)
    np.testing.assert_array_equal(table.read(hash_numbers([0]), (A,))[A], want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_append_non_finite_values_are_refused(table: EmbeddingTable, value: float) -> None:
    values = np.ones((3, WIDTH), dtype=np.float32)
    values[1, 2] = value
    with pytest.raises(StoreError) as caught:
        table.append(hash_numbers([0, 1, 2]), {A: values})
    assert str(caught.value) == (
        "'layer_01_mean' has NaN or infinite values in 1 of 3 texts, which the store refuses: "
        "the backbone overflows; set precision to float32."
    )
    assert table.count_texts() == 0


def test_append_wrong_shape_is_refused(table: EmbeddingTable) -> None:
    with pytest.raises(StoreError) as caught:
        table.append(hash_numbers([0, 1]), {A: np.ones((3, 4))})
    assert str(caught.value) == "'layer_01_mean' has shape (3, 4) for 2 texts: give (2, width)."


def test_append_other_width_is_refused(table: EmbeddingTable) -> None:
    append(table, [0], (A,))
    with pytest.raises(StoreError) as caught:
        table.append(hash_numbers([1]), {A: np.ones((1, 3))})
    assert str(caught.value) == (
        "'layer_01_mean' is 16 wide in the store and 3 in the batch: two models share a key; "
        f"run `embedtune store prune {DIGEST}`."
    )


def test_read_lacking_text_is_refused(table: EmbeddingTable) -> None:
    append(table, [0, 1], (A,))
    with pytest.raises(StoreError) as caught:
        table.read(hash_numbers([0, 5, 6]), (A,))
    assert str(caught.value) == (
        "2 of 3 texts have no 'layer_01_mean' in the store: ask find_missing first and append what it names."
    )


def test_read_unknown_column_name_is_refused(table: EmbeddingTable) -> None:
    message = "^'held' is no column name: make it with column_name\\(layer, pooling\\).$"
    with pytest.raises(StoreError, match=message):
        table.read(hash_numbers([0]), ("held",))


def test_append_many_small_batches_are_compacted(
    table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_table, "MAX_SMALL_FRAGMENTS", 5)
    for i in range(30):
        append(table, [2 * i, 2 * i + 1], COLUMNS if i % 3 else (A,))
    assert len(_open(table).get_fragments()) <= 6
    assert_holds(table, list(range(60)), (A,))
    with_b = [n for n in range(60) if (n // 2) % 3]
    assert_holds(table, with_b, (B,))
    assert int(table.find_missing(hash_numbers(list(range(60))), (B,)).sum()) == 20


def test_append_goes_on_where_a_kill_left_a_table_without_rows(
    table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lance

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lance, "write_dataset", die)
        append(table, [0, 1], COLUMNS)
    assert table.count_texts() == 0
    assert table.list_columns() == COLUMNS
    append(table, [0, 1], COLUMNS)
    assert_holds(table, [0, 1], COLUMNS)


# -- several processes


@pytest.mark.parametrize("mode", ["locked", "unlocked"])
def test_append_by_eight_processes_loses_and_doubles_nothing(
    store: EmbeddingStore, table: EmbeddingTable, mode: str
) -> None:
    writers = [start_writer(store, str(seed), "4", mode) for seed in range(8)]
    errors = [writer.communicate(timeout=60)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 8, errors
    assert_holds(table, list(range(N_TEXTS)), COLUMNS)
    assert table.count_texts() == N_TEXTS
    if mode == "locked":
        assert _count_rows(table) == N_TEXTS
        assert store.verify() == ()


def test_append_killed_leaves_whole_batches(store: EmbeddingStore, table: EmbeddingTable) -> None:
    writer = start_writer(store, "forever")
    assert writer.stdout is not None
    assert writer.stderr is not None
    for _ in range(12):
        n_done = int(writer.stdout.readline())
        # A reader beside the writer never sees half a batch.
        assert table.count_texts() % 8 == 0
    writer.send_signal(signal.SIGKILL)
    n_done = max([n_done, *(int(line) for line in writer.stdout.read().split())])
    writer.wait(timeout=30)
    writer.stdout.close()
    writer.stderr.close()
    n_texts = table.count_texts()
    assert n_texts in (8 * n_done, 8 * n_done + 8)
    assert_holds(table, list(range(n_texts)), COLUMNS)
    assert store.verify() == ()
    append(table, [n_texts], COLUMNS)
    assert_holds(table, [n_texts], COLUMNS)


# -- list, verify, prune


def test_list_shows_key_columns_and_size(store: EmbeddingStore, table: EmbeddingTable) -> None:
    append(table, [0, 1, 2], COLUMNS)
    (row,) = store.list()
    assert (row.digest, row.key, row.n_texts, row.columns) == (DIGEST, KEY, 3, COLUMNS)
    assert row.n_bytes > 3 * 2 * WIDTH * 2
    assert row.last_used is not None


def test_verify_overwritten_data_file_is_found(store: EmbeddingStore, table: EmbeddingTable) -> None:
    append(table, [0, 1, 2], COLUMNS)
    append(table, [3, 4], COLUMNS)
    data_path = _data_paths(store)[0]
    data_path.write_bytes(b"\0" * data_path.stat().st_size)
    (problem,) = store.verify()
    assert problem.digest == DIGEST
    assert problem.message.startswith("fragment ")
    assert "can't be read (" in problem.message


def test_verify_double_texts_and_changed_vectors_are_found_and_repair_drops_them(
    store: EmbeddingStore, table: EmbeddingTable
) -> None:
    import lance

    append(table, [0, 1, 2], (A,))
    assert store.verify() == ()
    dataset = _open(table)
    rows = dataset.to_table().to_pydict()
    rows[A][1][0] = np.float16(7)
    import pyarrow as pa

    lance.write_dataset(pa.table(rows, schema=dataset.schema), dataset, mode="append")
    assert [problem.message for problem in store.verify()] == [
        "fragment 1 has 1 vectors of 'layer_01_mean' that aren't those that were stored",
        "3 texts have more than one row",
    ]
    assert [dropped.message for dropped in store.repair()] == ["3 rows"]
    assert store.verify() == ()
    assert_holds(table, [0, 1, 2], (A,))


def test_verify_vector_lacking_against_held_is_found(store: EmbeddingStore, table: EmbeddingTable) -> None:
    import lance
    import pyarrow as pa

    append(table, [0, 1], (A,))
    dataset = _open(table)
    rows = {"hash": hash_numbers([5]), "held": [A], A: [None]}
    lance.write_dataset(pa.table(rows, schema=dataset.schema), dataset, mode="append")
    assert [problem.message for problem in store.verify()] == [
        "fragment 1 has 1 vectors of 'layer_01_mean' that aren't those that were stored"
    ]


def test_damaged_table_says_what_to_do_and_is_pruned(store: EmbeddingStore, table: EmbeddingTable) -> None:
    append(table, [0], (A,))
    for path in Path(store.uri, DIGEST, "table.lance", "_versions").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(StoreError) as caught:
        table.read(hash_numbers([0]), (A,))
    assert str(caught.value).startswith(f"table {DIGEST} of the embedding store can't be used (")
    assert str(caught.value).endswith(
        "): run `embedtune store verify` to see what is damaged and `embedtune store repair` to drop it; what was "
        "dropped is computed again."
    )
    assert "\n" not in str(caught.value)
    assert [row.n_texts for row in store.list()] == [None]
    assert [problem.message[:25] for problem in store.verify()] == ["the table can't be opened"]
    assert store.prune(keys=[DIGEST[:8]]) > 0
    append(table, [0], (A,))
    assert_holds(table, [0], (A,))


def test_table_of_another_release_is_left_to_it(store: EmbeddingStore, table: EmbeddingTable) -> None:
    append(table, [0], (A,))
    append(table_before := store.table(replace(KEY, max_length=8)), [0], (A,))
    text = table_before.key.to_json().replace('"schema": 2', '"schema": 3')
    folder = Path(table_before.place.uri)
    (folder / "key.json").write_text(text)
    theirs = folder.rename(folder.with_name(digest_key(text)))
    for path in theirs.rglob("*.manifest"):
        path.write_bytes(b"a layout of later on")
    before = {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()}
    assert store.verify() == store.repair() == ()
    store.prune(older_than_days=1)
    assert {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()} == before
    assert {row.digest: row.note for row in store.list()} == {DIGEST: "", theirs.name: "of another release"}
    assert store.prune(keys=[theirs.name]) > 0
    assert_holds(table, [0], (A,))


def test_changed_byte_of_a_vector_is_told_and_repair_drops_its_row_alone(
    store: EmbeddingStore, table: EmbeddingTable
) -> None:
    append(table, [0, 1, 2], (A,))
    append(table, [3, 4], (A,))
    path = next(path for path in _data_paths(store) if np.float16(3).tobytes() * WIDTH in path.read_bytes())
    data = bytearray(path.read_bytes())
    data[data.index(np.float16(3).tobytes() * WIDTH)] ^= 1
    path.write_bytes(data)
    assert_holds(table, [0, 1, 2, 4], (A,))
    with pytest.raises(StoreError) as caught:
        table.read(hash_numbers([2, 3]), (A,))
    assert str(caught.value).startswith(
        f"table {DIGEST} of the embedding store can't be used (vectors of 'layer_01_mean' aren't those that "
        "were stored): "
    )
    assert [problem.message for problem in store.verify()] == [
        "fragment 1 has 1 vectors of 'layer_01_mean' that aren't those that were stored"
    ]
    found = CliRunner(env={"EMBEDTUNE_STORE": store.uri}).invoke(app, ["store", "repair"])
    assert found.output == f"{DIGEST[:12]}: dropped 1 rows\ndropped what was damaged\n"
    assert table.find_missing(hash_numbers([0, 1, 2, 3, 4]), (A,)).tolist() == [False] * 3 + [True, False]
    append(table, [3], (A,))
    assert_holds(table, [0, 1, 2, 3, 4], (A,))
    found = CliRunner(env={"EMBEDTUNE_STORE": store.uri}).invoke(app, ["store", "repair"])
    assert found.output == "nothing to drop\n"


def test_repair_drops_fragments_commits_and_tables_that_can_not_be_read(
    store: EmbeddingStore, table: EmbeddingTable
) -> None:
    append(table, [0, 1, 2], (A,))
    append(table, [3, 4], (A,))
    data_path = next(p for p in _data_paths(store) if np.float16(3).tobytes() * WIDTH in p.read_bytes())
    data_path.write_bytes(b"\0" * data_path.stat().st_size)
    assert [dropped.message for dropped in store.repair()] == ["2 rows that can't be told apart"]
    append(table, [3, 4], (A,))
    manifests = sorted(Path(store.uri, DIGEST, "table.lance", "_versions").glob("*.manifest"))
    manifests[0].write_bytes(b"damaged")
    assert [dropped.message for dropped in store.repair()] == ["1 commits that can't be read"]
    assert_holds(table, [0, 1, 2], (A,))
    Path(store.uri, DIGEST, "key.json").write_text("{")
    assert store.repair() == ()
    assert store.verify() == ()
    for manifest in Path(store.uri, DIGEST, "table.lance", "_versions").glob("*.manifest"):
        manifest.write_bytes(b"damaged")
    assert store.repair()[-1].message == "the whole table"
    append(table, [0], (A,))
    assert_holds(table, [0], (A,))


def test_repair_drops_lists_of_deleted_rows_that_are_damaged(
    store: EmbeddingStore, table: EmbeddingTable
) -> None:
    """Lance would end the process over this one: it asks for as much memory as a damaged length says."""
    append(table, [0, 1, 2], COLUMNS)
    append(table, [3, 4], (A,))
    append(table, [3], COLUMNS)
    (path,) = Path(store.uri, DIGEST, "table.lance", "_deletions").iterdir()
    data = bytearray(path.read_bytes())
    data[455] ^= 0xE7
    path.write_bytes(data)
    fresh = EmbeddingStore(store.uri).table(KEY)
    store_place._whole_deletions.clear()
    with pytest.raises(StoreError, match=f"{path.name} is damaged"):
        fresh.read(hash_numbers([0]), (A,))
    assert "is damaged" in store.verify()[0].message
    assert len(store.repair()) == 1
    assert store.verify() == ()
    append(table, [0, 1, 2, 3, 4], COLUMNS)
    assert_holds(table, [0, 1, 2, 3, 4], COLUMNS)


def test_repair_goes_back_before_a_commit_with_changed_columns(
    store: EmbeddingStore, table: EmbeddingTable
) -> None:
    append(table, [0, 1, 2], (A,))
    append(table, [3, 4], (A,))
    manifest = min(Path(store.uri, DIGEST, "table.lance", "_versions").glob("*.manifest"))
    manifest.write_bytes(manifest.read_bytes().replace(b"layer_01_mean", b"layer_0Z_mean"))
    assert [problem.message for problem in store.verify()] == ["the table has columns that weren't stored"]
    assert [dropped.message for dropped in store.repair()] == ["1 commits that can't be read"]
    assert_holds(table, [0, 1, 2], (A,))


def test_read_of_table_being_created_is_not_damage(store: EmbeddingStore, table: EmbeddingTable) -> None:
    Path(store.uri, DIGEST, "table.lance", "_versions").mkdir(parents=True)
    assert table.find_missing(hash_numbers([0]), (A,)).tolist() == [True]
    append(table, [0], (A,))
    assert_holds(table, [0], (A,))


def test_verify_key_of_another_table_is_found(store: EmbeddingStore, table: EmbeddingTable) -> None:
    append(table, [0], (A,))
    other = replace(KEY, weights="w9")
    Path(store.uri, DIGEST, "key.json").write_text(other.to_json(), encoding="utf-8")
    assert [problem.message for problem in store.verify()] == [f"key.json belongs to {other.digest()}"]


def test_prune_takes_keys_age_and_everything(store: EmbeddingStore) -> None:
    keys = [replace(KEY, weights=f"w{i}") for i in range(3)]
    for key in keys:
        append(store.table(key), [0, 1], (A,))
    assert store.prune() == 0
    n_bytes = {row.digest: row.n_bytes for row in store.list()}
    assert store.prune(keys=[keys[0]]) == n_bytes[keys[0].digest()]
    used_path = Path(store.uri, keys[1].digest(), "last_used")
    os.utime(used_path, (used_path.stat().st_mtime - 5 * 86400,) * 2)
    assert store.prune(older_than_days=4) == n_bytes[keys[1].digest()]
    assert [row.key for row in store.list()] == [keys[2]]
    assert store.prune(everything=True) == n_bytes[keys[2].digest()]
    assert store.list() == ()


def test_prune_unknown_key_is_refused(store: EmbeddingStore, table: EmbeddingTable) -> None:
    append(table, [0], (A,))
    with pytest.raises(StoreError) as caught:
        store.prune(keys=["zz"])
    assert str(caught.value) == (
        f"'zz' names no table of the store '{store.uri}': run `embedtune store list` to see them."
    )
    assert len(store.list()) == 1


def test_read_old_table_counts_as_use(store: EmbeddingStore, table: EmbeddingTable) -> None:
    append(table, [0], (A,))
    used_path = Path(store.uri, DIGEST, "last_used")
    os.utime(used_path, (used_path.stat().st_mtime - 5 * 86400,) * 2)
    EmbeddingStore(store.uri).table(KEY).read(hash_numbers([0]), (A,))
    store.prune(older_than_days=4)
    assert len(store.list()) == 1


# -- what the machine may lack


def test_append_on_full_disk_says_what_to_do(
    store: EmbeddingStore, table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lance

    append(table, [0], (A,))

    def fail(*_: object, **__: object) -> None:
        raise OSError("LanceError(IO): No space left on device (os error 28), /x/rust/lance/src/y.rs:1:2")

    with monkeypatch.context() as patch:
        patch.setattr(lance, "write_dataset", fail)
        with pytest.raises(ResourceError) as caught:
            append(table, [1], (A,))
    assert str(caught.value) == (
        f"no space left for the embedding store in '{store.uri}': free some (`embedtune store prune`) or set "
        "EMBEDTUNE_STORE to a larger disk, then run the same command again; nothing stored is lost."
    )
    assert_holds(table, [0], (A,))


def test_store_without_lance_gives_pip_line(table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(MissingExtraError) as caught:
        table.find_missing(hash_numbers([0]), (A,))
    assert str(caught.value) == (
        "the embedding store needs Lance, which isn't installed: run `pip install pylance`, "
        "or set store=None to compute embeddings each time."
    )


def _open(table: EmbeddingTable) -> Any:
    dataset = Place(table.place.root, table.place.digest).open()
    assert dataset is not None
    return dataset


def _count_rows(table: EmbeddingTable) -> int:
    return int(_open(table).count_rows())


def _data_paths(store: EmbeddingStore) -> list[Path]:
    return sorted(Path(store.uri, DIGEST, "table.lance", "data").iterdir())
