"""Embeddings on their way into the store."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from embedtune.embed.runner import Column, Vectors
from embedtune.embed.store import EmbeddingTable

#: Embeddings wait for the store no longer than this, and no more texts than this wait.
COMMIT_SECONDS = 2.0
COMMIT_TEXTS = 2000


class Waiting:
    """Batches on their way into the store, committed whole and several at a time."""

    def __init__(self, table: EmbeddingTable, hashes: list[bytes], names: dict[Column, str]) -> None:
        self.table, self.hashes, self.names = table, hashes, names
        self.rows: list[NDArray[np.intp]] = []
        self.found: list[Vectors] = []
        self.since = time.monotonic()

    def add(self, rows: NDArray[np.intp], found: Vectors) -> None:
        """Take a batch's rows and vectors, and commit what waits if it is much or has waited long."""
        self.rows.append(rows)
        self.found.append(found)
        n_waiting = sum(map(len, self.rows))
        if n_waiting >= COMMIT_TEXTS or time.monotonic() - self.since >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Put what waits into the table."""
        rows, found, self.rows, self.found = self.rows, self.found, [], []
        self.since = time.monotonic()
        if rows:
            hashes = [self.hashes[row] for row in np.concatenate(rows)]
            self.table.append(
                hashes,
                {name: np.concatenate([f[column] for f in found]) for column, name in self.names.items()},
            )
