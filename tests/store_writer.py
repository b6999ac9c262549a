"""A process that writes to a store; run by test_store.

python store_writer.py URI SEED N_BATCHES [unlocked]    appends overlapping texts, some with one column only
python store_writer.py URI forever                      appends new texts until it is killed
"""

from __future__ import annotations

import sys
from unittest.mock import PropertyMock, patch

import numpy as np
import numpy.typing as npt

from embedtune.embed.store import EmbeddingStore, EmbeddingTable, StoreKey, hash_text
from embedtune.embed.store_place import Place

KEY = StoreKey(
    backbone="tiny", weights="w0", adapter=None, tokenizer="t0", max_length=64, prefix="", precision="float32"
)
COLUMNS = ("layer_01_mean", "layer_02_cls")
WIDTH = 16
N_TEXTS = 200


def make_vectors(numbers: list[int], column: str) -> npt.NDArray[np.float32]:
    """Return vectors that depend on text and column only, exact in float16."""
    start = np.array(numbers, dtype=np.float32)[:, None] % 1000 + 1000 * COLUMNS.index(column)
    return np.repeat(start, WIDTH, axis=1)


def hash_numbers(numbers: list[int]) -> list[bytes]:
    return [hash_text(f"text {i}") for i in numbers]


def append(table: EmbeddingTable, numbers: list[int], columns: tuple[str, ...]) -> None:
    table.append(hash_numbers(numbers), {column: make_vectors(numbers, column) for column in columns})


def write_batches(table: EmbeddingTable, *, seed: int, n_batches: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(N_TEXTS)
    # Odd writers bring the first column only, so rows get their second one later.
    columns = COLUMNS if seed % 2 == 0 else COLUMNS[:1]
    for batch in np.array_split(numbers, n_batches):
        append(table, [int(i) for i in batch], columns)


def write_forever(table: EmbeddingTable) -> None:
    batch = 0
    while True:
        append(table, list(range(batch * 8, batch * 8 + 8)), COLUMNS)
        batch += 1
        sys.stdout.write(f"{batch}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    table = EmbeddingStore(sys.argv[1]).table(KEY)
    if sys.argv[2] == "forever":
        write_forever(table)
    elif "unlocked" in sys.argv:
        with patch.object(Place, "is_local", new_callable=PropertyMock, return_value=False):
            write_batches(table, seed=int(sys.argv[2]), n_batches=int(sys.argv[3]))
    else:
        write_batches(table, seed=int(sys.argv[2]), n_batches=int(sys.argv[3]))
