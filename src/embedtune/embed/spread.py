"""Have an engine's workers fill the store."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from embedtune.embed.encoder import WINDOW_TEXTS, StoredTexts, TransformerEncoder
from embedtune.embed.texts import check_texts
from embedtune.engine import Engine
from embedtune.errors import ConfigError, StoreError
from embedtune.progress import track, use_silence

#: Each part of a window has the whole window tokenized, so there are few.
MAX_PARTS = 8


class _Part(NamedTuple):
    texts: list[str]
    part: tuple[int, int]


class _Done(NamedTuple):
    n_computed: int
    reading: str
    n_parameters: int | None


def spread_texts(encoder: TransformerEncoder, texts: Sequence[str], engine: Engine) -> StoredTexts:
    """Do what `TransformerEncoder.store_texts` does with an engine's workers, in the same batches.

    Raises
    ------
    ConfigError
        If workers would read in another precision than this process: their vectors would be others.
    StoreError
        If workers' vectors don't arrive in the store that this process sees.
    Others
        As `store_texts` does.
    """
    if engine.is_here:
        return encoder.store_texts(texts)
    started = time.perf_counter()
    texts = check_texts(texts)
    windows = [texts[start : start + WINDOW_TEXTS] for start in range(0, len(texts), WINDOW_TEXTS)]
    if not encoder.count_missing(texts):
        return StoredTexts(len(texts), 0, time.perf_counter() - started, None)
    n_parts = min(MAX_PARTS, math.ceil(2 * engine.n_workers / len(windows)))
    n_computed, n_parameters, reading = 0, None, encoder.reading_
    with (
        track(f"embed with {encoder.model}", len(windows) * n_parts, unit="parts") as bar,
        use_silence(),
    ):
        for done in engine.map(partial(_Filler, encoder), windows, partial(_split, n_parts)):
            if done.reading != reading:
                raise ConfigError(
                    f"workers read '{encoder.model}' as {done.reading} and this machine as {reading}: "
                    "set embed.precision and embed.backend to what the workers do."
                )
            n_computed += done.n_computed
            n_parameters = n_parameters or done.n_parameters
            bar.advance()
    if missing := encoder.count_missing(texts):
        raise StoreError(
            f"{missing} vectors that workers computed aren't in the store that this machine sees: "
            "set EMBEDTUNE_STORE (or embed.store) to a folder that all nodes mount, or to an object store."
        )
    return StoredTexts(len(texts), n_computed, time.perf_counter() - started, n_parameters)


def _split(n_parts: int, window: list[str]) -> Iterator[_Part]:
    for number in range(n_parts):
        yield _Part(window, (number, n_parts))


class _Filler:
    """One worker's encoder."""

    def __init__(self, encoder: TransformerEncoder) -> None:
        self._encoder = encoder

    def __call__(self, item: _Part) -> _Done:
        stored = self._encoder.store_texts(item.texts, part=item.part)
        return _Done(stored.n_computed, self._encoder.reading_, stored.n_parameters)
