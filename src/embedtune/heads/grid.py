"""Training a small network, once or over a grid of settings that are judged on held-out rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from embedtune.progress import track


class Rows(NamedTuple):
    """What a network is trained or judged on: its inputs, labels (n,) as numbers, and weights (n,) in the loss."""

    inputs: tuple[Tensor, ...]
    y: Tensor
    weight: Tensor

    def take(self, index: Tensor) -> Rows:
        """Return the rows of the given numbers."""
        return Rows(tuple(part[index] for part in self.inputs), self.y[index], self.weight[index])


class Cell(NamedTuple):
    """One setting of a grid and what it scored on the held-out rows."""

    epochs: int
    learning_rate: float
    sigma: float
    log_loss: float
    accuracy: float
    macro_f1: float


class Trained(NamedTuple):
    """A trained network, each epoch's mean training loss, and the held-out logits (n, K) of the epochs asked for."""

    net: nn.Module
    losses: list[float]
    held_out: dict[int, Tensor]


def train(
    build: Callable[[], nn.Module],
    rows: Rows,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    held_out: Rows | None = None,
    judged: Sequence[int] = (),
) -> Trained:
    """Train a network by Adam; its weights, dropout and the order of rows depend on `seed` alone.

    Parameters
    ----------
    build : callable
        Returns a new network; its forward takes the inputs of `rows`, its `read_logits` what forward put out.
    held_out : Rows, optional
    judged : sequence of int
        The epochs, from 1, after which the held-out rows are read.
    """
    device = rows.y.device
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        net = build().to(device)
        optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate, fused=True)
        order = torch.Generator().manual_seed(seed)
        losses: list[float] = []
        read: dict[int, Tensor] = {}
        with track("train head", epochs, unit="epochs") as bar:
            for epoch in range(1, epochs + 1):
                losses.append(_run_epoch(net, optimizer, rows, order=order, batch_size=batch_size))
                if held_out is not None and epoch in judged:
                    read[epoch] = _read(net, held_out)
                bar.advance()
    return Trained(net, losses, read)


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

    Training for 100 epochs passes through what training for 10 ends with, so a pair of rate and sigma is trained once.
    """
    cells = []
    for learning_rate in learning_rates:
        for sigma in sigmas:
            trained = train(
                functools.partial(build, sigma),
                rows,
                epochs=max(epochs),
                learning_rate=learning_rate,
                batch_size=batch_size,
                seed=seed,
                held_out=held_out,
                judged=epochs,
            )
            cells += [
                Cell(epoch, learning_rate, sigma, *_score(trained.held_out[epoch], held_out))
                for epoch in epochs
            ]
    return cells


def compute_loss(logits: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean cross-entropy of logits (n, K)."""
    per_row = nn.functional.cross_entropy(logits, y, reduction="none")
    return (per_row * weight).sum() / weight.sum().clamp_min(1e-12)


def _run_epoch(
    net: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows, *, order: torch.Generator, batch_size: int
) -> float:
    """Train on all rows once; return the mean loss."""
    net.train()
    n_rows = len(rows.y)
    shuffled = torch.randperm(n_rows, generator=order).to(rows.y.device)
    total = torch.zeros((), device=rows.y.device)
    for index in torch.split(shuffled, batch_size):
        batch = rows.take(index)
        optimizer.zero_grad()
        loss = compute_loss(net(*batch.inputs), batch.y, batch.weight)
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.detach() * len(index)
    return float(total) / n_rows


@torch.inference_mode()
def _read(net: nn.Module, rows: Rows) -> Tensor:
    net.eval()
    logits: Tensor = net.read_logits(net(*rows.inputs))  # type: ignore[operator]
    return logits


def _score(logits: Tensor, rows: Rows) -> tuple[float, float, float]:
    """Return log loss (weighted as in training), accuracy and macro-F1."""
    y, predicted = rows.y.cpu().numpy(), logits.argmax(dim=1).cpu().numpy()
    macro_f1 = f1_score(y, predicted, average="macro", zero_division=0)
    return float(compute_loss(logits, rows.y, rows.weight)), float(np.mean(y == predicted)), float(macro_f1)
