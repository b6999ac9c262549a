"""A grid of co-occurrence heads: trained together, beside cell by cell."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedtune.bench.contest import Contestant, Ratio, Times, hold
from embedtune.bench.machine import describe_machine
from embedtune.bench.suite import Options, Report, Row
from embedtune.heads.grid import Cell

_SCRIPT = Path(__file__).parent / "contestants" / "heads.py"
_N_CLASSES = 3
_RATES, _SIGMAS = (1e-3, 2e-3, 1e-4), (0.1, 0.2, 0.3, 0.4, 0.5)
_BATCH_SIZE = 1024
_HIDDEN = (1024, 256)


class _Shape(NamedTuple):
    """Views, and how much is trained: cells by themselves are timed for the first `pairs` of the 15 alone.

    The epoch counts stand to one another as the capstone's, 10 to 100, do.
    """

    n_layers: int
    layer_width: int
    n_others: int
    branch_width: int
    n_rows: int
    epochs: tuple[int, ...]
    pairs: int
    aim: float


_SHAPES = {
    "minilm": _Shape(5, 384, 2, 256, 2048, (2, 5, 10, 15, 20), 2, 10),
    "llama": _Shape(5, 4096, 2, 1024, 1024, (1, 2, 4, 6, 8), 1, 3),
}


def run(options: Options) -> Report:
    """Train on random views with a signal; its size plays no part in the time, its cells are compared."""
    machine = describe_machine()
    rows, details = [], {}
    with tempfile.TemporaryDirectory(prefix="embedtune-bench-") as folder:
        for name in options.only or _SHAPES:
            shape = _SHAPES[name]
            if options.smoke:
                shape = shape._replace(n_rows=64, layer_width=16, branch_width=8, epochs=(1, 2), pairs=1)
            path = Path(folder) / f"{name}.npz"
            _make_views(path, shape)
            found = _compete(path, shape, options)
            rows += _make_rows(name, shape, found, machine)
            details[name] = {
                "shape": shape._asdict(),
                "gflop_per_step": _count_flops(shape) / 1e9,
                **{who: times.describe() for who, times in found.items()},
            }
    return Report(rows, machine, details)


def _compete(path: Path, shape: _Shape, options: Options) -> dict[str, Times]:
    job: dict[str, Any] = {
        "views": str(path),
        "n_classes": _N_CLASSES,
        "epochs": shape.epochs,
        "learning_rates": _RATES,
        "sigmas": _SIGMAS,
        "batch_size": _BATCH_SIZE,
        "device": "cpu",
    }
    alone = job | {"pairs": shape.pairs}
    contestants = [Contestant("together", _SCRIPT, job), Contestant("alone", _SCRIPT, alone)]
    if options.peers is not None:
        script = options.peers / "published_heads.py"
        contestants.append(Contestant("published", script, alone, options.peers_python))
    return hold(contestants, rounds=1 if options.smoke else options.rounds, warm_up=False)


def _make_views(path: Path, shape: _Shape) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    directions = random.normal(size=(_N_CLASSES, shape.layer_width)) / 4
    for part, n_rows in (("training", shape.n_rows), ("held_out", max(shape.n_rows // 4, 8))):
        y = random.integers(_N_CLASSES, size=n_rows)
        layers = random.normal(size=(n_rows, shape.n_layers, shape.layer_width)) / 3
        arrays[f"layers_{part}"] = (layers + directions[y][:, None] / 16).astype(np.float32)
        others = random.normal(size=(n_rows, shape.n_others, shape.branch_width)) / 3
        arrays[f"others_{part}"] = others.astype(np.float32)
        arrays[f"y_{part}"] = y
    np.savez(path, **arrays)


def _make_rows(name: str, shape: _Shape, found: dict[str, Times], machine: dict[str, Any]) -> list[Row]:
    n_pairs = len(_RATES) * len(_SIGMAS)
    together = found["together"]
    n_steps = max(shape.epochs) * -(-shape.n_rows // _BATCH_SIZE) * n_pairs
    rate = _count_flops(shape) * n_steps / together.median / 1e9
    most = machine["gflops"]["float32"]
    note = (
        f"cells differ by at most {_compare(found):.1e}; {shape.n_rows} rows, epochs {list(shape.epochs)}, "
        f"{shape.pairs} of {n_pairs} pairs timed alone and multiplied; {rate:.0f} of {most:.0f} GFLOP/s in float32"
    )
    what = f"75 heads at {name} width"
    rows = [
        Row.of(
            what,
            "our training, cell by cell",
            _scale(found["alone"].over(together), n_pairs / shape.pairs),
            aim=shape.aim,
            note=note,
        )
    ]
    if "published" in found:
        ratio = _scale(found["published"].over(together), n_pairs / shape.pairs)
        rows.append(Row.of(what, "the published loop, cell by cell", ratio, note="DataLoader, plain Adam"))
    return rows


def _scale(ratio: Ratio, factor: float) -> Ratio:
    return Ratio(*(part * factor for part in ratio))


def _compare(found: dict[str, Times]) -> float:
    """Return the largest difference of a score between a cell trained with all and by itself."""
    n_settings = len(Cell._fields) - 3
    together = {tuple(cell[:n_settings]): cell for cell in found["together"].arrays["cells"]}
    alone = found["alone"].arrays["cells"]
    return float(max(np.abs(cell - together[tuple(cell[:n_settings])]).max() for cell in alone))


def _count_flops(shape: _Shape) -> int:
    """Return the operations of a network's step on a full batch: forward, and gradients that something needs."""
    n_batch = min(_BATCH_SIZE, shape.n_rows)
    n_views = shape.n_layers + shape.n_others
    of_inputs = shape.n_layers * shape.layer_width * shape.branch_width
    of_inputs += (shape.layer_width + shape.n_others * shape.branch_width) * _HIDDEN[0]
    inside = (
        n_views**2 * (_HIDDEN[0] + shape.branch_width) + _HIDDEN[0] * _HIDDEN[1] + _HIDDEN[1] * _N_CLASSES
    )
    return 2 * n_batch * (2 * of_inputs + 3 * inside)
