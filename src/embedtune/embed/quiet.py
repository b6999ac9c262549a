"""Keeping transformers, the Hub's client, peft and bitsandbytes quiet where their news is ours to tell."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from embedtune.embed.quantization import hush_bitsandbytes


@contextlib.contextmanager
def hush_libraries(*, keep_bars: bool = False) -> Iterator[None]:
    """Hold back the libraries' logs and the warnings they cause in each other; their bars too unless kept."""
    verbosity, hub_verbosity = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not keep_bars:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with hush_bitsandbytes(), warnings.catch_warnings():
            # peft and we ask transformers for what has a new name in its latest version.
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if shows_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
