"""Rows: looking up texts gives the same whichever side is the larger."""

import numpy as np
import pytest

from embedtune.embed.store_rows import Rows, hash_array


@pytest.mark.parametrize("n_asked", [1, 5, 40, 400])
@pytest.mark.parametrize("column", [None, "layer_01_mean", "layer_02_mean", "layer_03_mean"])
def test_find_returns_the_first_row_of_each_hash(n_asked: int, column: str | None) -> None:
    rng = np.random.default_rng(n_asked)
    hashes = [int(number).to_bytes(16, "big") for number in rng.integers(0, 30, size=50)]
    held_sets = (frozenset({"layer_01_mean"}), frozenset({"layer_01_mean", "layer_02_mean"}))
    held = rng.integers(0, 2, size=50)
    asked = [int(number).to_bytes(16, "big") for number in rng.integers(0, 40, size=n_asked)]
    expected = [
        next(
            (
                row
                for row, text in enumerate(hashes)
                if text == one and (column is None or column in held_sets[held[row]])
            ),
            -1,
        )
        for one in asked
    ]
    found = Rows(hash_array(hashes), held, held_sets).find(hash_array(asked), column)
    assert found.tolist() == expected
