"""What the machine can do at most, measured: matrix products and memory bandwidth."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from embedtune.embed.precision import multiplies_bfloat16


def measure_product(
    dtype: torch.dtype, *, size: int = 2048, device: str = "cpu", seconds: float = 1.0
) -> float:
    """Return the rate of a square matrix product in FLOP/s: the best of as many as fit into `seconds`."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _time_best(lambda: torch.mm(left, right, out=out), device=device, seconds=seconds)


def measure_bandwidth(*, n_bytes: int = 2**28, device: str = "cpu", seconds: float = 1.0) -> float:
    """Return how many bytes per second a copy of `n_bytes` reads and writes together."""
    source = torch.zeros(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * n_bytes / _time_best(lambda: target.copy_(source), device=device, seconds=seconds)


def describe_machine(*, device: str = "cpu") -> dict[str, Any]:
    """Measure the device and name it and the versions that matter; rates in GFLOP/s and GB/s."""
    dtypes = [torch.float32]
    if device.startswith("cuda") or multiplies_bfloat16():
        dtypes.append(torch.bfloat16)
    size = 8192 if device.startswith("cuda") else 2048
    return {
        "processor": torch.cuda.get_device_name(device) if device.startswith("cuda") else _name_processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(_count_memory() / 2**30, 1),
        "gflops": {
            str(dtype).removeprefix("torch."): round(
                measure_product(dtype, size=size, device=device) / 1e9, 1
            )
            for dtype in dtypes
        },
        "bandwidth_gbs": round(measure_bandwidth(device=device) / 1e9, 1),
        "python": platform.python_version(),
        "versions": {name: found for name in ("torch", "transformers", "openvino") if (found := _find(name))},
    }


def _time_best(run: Callable[[], Any], *, device: str, seconds: float) -> float:
    def once() -> float:
        started = time.perf_counter()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    until, best = time.perf_counter() + seconds, once()
    while time.perf_counter() < until:
        best = min(best, once())
    return best


def _name_processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []:
        name, _, value = line.partition(":")
        if name.strip().lower() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _count_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _find(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
