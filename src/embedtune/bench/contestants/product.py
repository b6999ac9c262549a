"""A square matrix product in bfloat16, as the machine's own measure beside the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Make the matrices."""
    import torch

    from embedtune.bench.machine import measure_product

    def run() -> dict[str, Any]:
        return {"flops": measure_product(getattr(torch, job["dtype"]), seconds=job["seconds"])}

    return run
