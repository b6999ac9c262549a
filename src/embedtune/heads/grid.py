"""A grid of settings of a small network, each judged on held-out rows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.metrics import f1_score
from torch import Tensor, nn

from embedtune.heads.together import Plan, Rows, compute_loss, train_together


class Cell(NamedTuple):
    """One setting of a grid and what it scored on the held-out rows."""

    epochs: int
    learning_rate: float
    sigma: float
    log_loss: float
    accuracy: float
    macro_f1: float


def search(
    build: Callable[[float], nn.Module],
    rows: Rows,
    held_out: Rows,
    *,
    epochs: Sequence[int],
    learning_rates: Sequence[float],
    sigmas: Sequence[float],
    batch_size: int,
    seed: int,
) -> list[Cell]:
    """Score every combination of the settings on the held-out rows.

    Training for 100 epochs passes through what training for 10 ends with, so a pair of rate and sigma is trained once,
    and all pairs together.
    """
    settings = list(itertools.product(learning_rates, sigmas))
    plans = [Plan(functools.partial(build, sigma), learning_rate) for learning_rate, sigma in settings]
    trained = train_together(
        plans, rows, epochs=max(epochs), batch_size=batch_size, seed=seed, held_out=held_out, judged=epochs
    )
    return [
        Cell(epoch, learning_rate, sigma, *_score(found.held_out[epoch], held_out))
        for (learning_rate, sigma), found in zip(settings, trained, strict=True)
        for epoch in epochs
    ]


def _score(logits: Tensor, rows: Rows) -> tuple[float, float, float]:
    """Return log loss (weighted as in training), accuracy and macro-F1."""
    y, predicted = rows.y.cpu().numpy(), logits.argmax(dim=1).cpu().numpy()
    macro_f1 = f1_score(y, predicted, average="macro", zero_division=0)
    return float(compute_loss(logits, rows.y, rows.weight)), float(np.mean(y == predicted)), float(macro_f1)
