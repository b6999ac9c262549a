"""Runners: what turns batches of tokens into pooled vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedtune.embed.tokens import Tokens
from embedtune.errors import BackboneError, ResourceError

#: What is read of a text in one piece: a hidden state's number, and how it is pooled.
Column = tuple[int, str]
Vectors = dict[Column, NDArray[np.float32]]


class Runner(Protocol):
    """A backbone made ready to read certain columns."""

    def run(
        self, tokens: Tokens, batches: Iterable[NDArray[np.intp]]
    ) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
        """Yield each batch's rows and vectors (n_rows, width), in the order of the batches.

        Raises
        ------
        ResourceError
            If not even one text fits into memory.
        BackboneError
            If values overflow the precision.
        """
        ...


def check_finite(
    vectors: Vectors, *, model_id: str, precision: str, advice: str = "set precision to float32"
) -> None:
    """Refuse vectors that overflowed.

    Raises
    ------
    BackboneError
    """
    for (layer, _), values in vectors.items():
        if not np.isfinite(values).all():
            raise BackboneError(
                f"layer {layer} of '{model_id}' gives values that aren't finite in {precision}: "
                f"{advice}, or check the checkpoint."
            )


def refuse_long_text(n_tokens: int, device: str) -> ResourceError:
    """Return the error of a text that memory doesn't hold even alone."""
    return ResourceError(
        f"a text of {n_tokens} tokens does not fit into the memory of {device}: set max_length lower, precision to "
        "bfloat16, or device to cpu."
    )
