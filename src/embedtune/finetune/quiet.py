"""Keeping third parties quiet, and the caller's settings as they were."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def hush_libraries() -> Iterator[None]:
    """Hold back transformers' log and bars, and the warnings that libraries cause in each other."""
    verbosity = transformers_logging.get_verbosity()
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            # peft asks transformers for an attribute that has a new name there.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shows_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def keep_random_state(seed: int) -> Iterator[None]:
    """Seed python's, numpy's and torch's generators inside the block, and put them back as they were after it."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.random.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
