"""Co-occurrence heads over a grid: all trained together, or some of its pairs of rate and sigma cell by cell."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from embedtune.heads.cooccurrence import CooccurrenceNet
from embedtune.heads.grid import search
from embedtune.heads.together import Rows


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return the training of the whole grid, or with ``job["pairs"]`` of every cell of the first so many pairs."""
    data = np.load(job["views"])
    training, held_out = (
        Rows(
            (torch.from_numpy(data[f"layers_{part}"]), torch.from_numpy(data[f"others_{part}"])),
            torch.from_numpy(data[f"y_{part}"]),
            torch.ones(len(data[f"y_{part}"])),
        )
        for part in ("training", "held_out")
    )
    training, held_out = (
        Rows(
            tuple(part.to(job["device"]) for part in rows.inputs),
            rows.y.to(job["device"]),
            rows.weight.to(job["device"]),
        )
        for rows in (training, held_out)
    )
    layers, others = training.inputs

    def build(sigma: float) -> CooccurrenceNet:
        return CooccurrenceNet(
            layers.shape[1],
            layers.shape[2],
            others.shape[1],
            job["n_classes"],
            sigma=sigma,
            branch_width=others.shape[2],
            concatenate_others=True,
        )

    train = functools.partial(search, build, training, held_out, batch_size=job["batch_size"], seed=0)

    def run_together() -> dict[str, Any]:
        cells = train(epochs=job["epochs"], learning_rates=job["learning_rates"], sigmas=job["sigmas"])
        return {"cells": np.array(cells)}

    def run_alone() -> dict[str, Any]:
        pairs = list(itertools.product(job["learning_rates"], job["sigmas"]))[: job["pairs"]]
        cells = [
            train(epochs=[epochs], learning_rates=[learning_rate], sigmas=[sigma])[0]
            for learning_rate, sigma in pairs
            for epochs in job["epochs"]
        ]
        return {"cells": np.array(cells)}

    train(epochs=[1], learning_rates=[1e-3], sigmas=[0.3])
    return run_alone if job.get("pairs") else run_together
