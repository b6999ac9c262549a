"""Which solved questions a prompt shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedtune.embed.texts import find_distinct
from embedtune.errors import ConfigError


def choose_examples(
    texts: Sequence[str], labels: Sequence[Any], n_examples: int, *, random_state: int = 0
) -> list[int]:
    """Draw rows to show, as evenly over the labels as can be, in random order.

    Parameters
    ----------
    texts, labels : sequences of length n
    n_examples : int
        In all. Labels with fewer rows than their share leave the rest of it to the others.
    random_state : int

    Returns
    -------
    list of int
        Row numbers; no text occurs twice.

    Raises
    ------
    ConfigError
        If there are fewer distinct texts.
    """
    rows = np.unique(find_distinct(texts)[1], return_index=True)[1]
    if n_examples > len(rows):
        raise ConfigError(
            f"n_examples {n_examples} is more than the {len(rows)} distinct training texts: set it lower."
        )
    generator = np.random.default_rng(random_state)
    piles: dict[Any, list[int]] = {label: [] for label in sorted({labels[row] for row in rows})}
    for row in generator.permutation(rows):
        piles[labels[row]].append(int(row))
    order = [list(piles)[i] for i in generator.permutation(len(piles))]
    chosen: list[int] = []
    while len(chosen) < n_examples:
        for label in order:
            if piles[label] and len(chosen) < n_examples:
                chosen.append(piles[label].pop())
    return [chosen[i] for i in generator.permutation(len(chosen))]
