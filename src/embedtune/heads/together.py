"""Training small networks of one shape, one or many: the same batches and dropout masks for all, a core for each."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from embedtune.progress import Bar, track

#: What the weights, gradients and moments of networks trained together may take.
_STATE_BYTES = 2 * 2**30


class Rows(NamedTuple):
    """What a network is trained or judged on: its inputs, labels (n,) as numbers, and weights (n,) in the loss."""

    inputs: tuple[Tensor, ...]
    y: Tensor
    weight: Tensor

    def take(self, index: Tensor) -> Rows:
        """Return the rows of the given numbers."""
        return Rows(tuple(part[index] for part in self.inputs), self.y[index], self.weight[index])


class Plan(NamedTuple):
    """A network to train: what returns it, new, and Adam's rate.

    The network has ``share(*inputs, drops)``, which computes what depends on no weights and with `drops` draws dropout
    masks from torch's generator; its forward takes the inputs and what `share` returned for them, and its
    ``read_logits`` turns what forward put out into logits.
    """

    build: Callable[[], nn.Module]
    learning_rate: float


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
) -> Trained:
    """Train one network by Adam; its weights, dropout and the order of rows depend on `seed` alone."""
    (trained,) = train_together(
        [Plan(build, learning_rate)], rows, epochs=epochs, batch_size=batch_size, seed=seed
    )
    return trained


def train_together(
    plans: Sequence[Plan],
    rows: Rows,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    held_out: Rows | None = None,
    judged: Sequence[int] = (),
) -> list[Trained]:
    """Train networks of one shape, each as `train` would alone.

    They start from the same weights and see the same batches under the same dropout masks, which are prepared once
    for all. On a CPU they take turns on its cores, a core each, so that small products need not be split. More than
    fit into `_STATE_BYTES` with their gradients and Adam's moments are trained group by group.

    Parameters
    ----------
    held_out : Rows, optional
    judged : sequence of int
        The epochs, from 1, after which the held-out rows are read.
    """
    n_threads = torch.get_num_threads()
    n_workers = min(len(plans), n_threads) if rows.y.device.type == "cpu" else 1
    judge = _Judge(held_out, judged)
    found: list[Trained] = []
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        track("train heads", epochs * len(plans), unit="epochs") as bar,
    ):
        while len(found) < len(plans):
            trainees = _start(plans[len(found) :], rows, seed=seed, at_least=n_workers)
            turns = _plan_turns(trainees, rows, epochs=epochs, batch_size=batch_size, seed=seed)
            line = _Line(turns, bar)
            if n_workers == 1:
                _work(line, judge)
            else:
                _work_side_by_side(line, judge, n_workers=n_workers, n_threads=n_threads)
            for trainee in trainees:
                trainee.net.zero_grad()
            found += [Trained(trainee.net, trainee.losses, trainee.held_out) for trainee in trainees]
    return found


def _start(plans: Sequence[Plan], rows: Rows, *, seed: int, at_least: int) -> list[_Trainee]:
    """Build as many networks, from the first on, as may be trained together."""
    trainees = [_Trainee(plans[0], rows, seed=seed)]
    n_bytes = 4 * sum(part.nbytes for part in trainees[0].net.parameters())
    n_together = max(at_least, _STATE_BYTES // n_bytes)
    return trainees + [_Trainee(plan, rows, seed=seed) for plan in plans[1:n_together]]


def compute_loss(logits: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean cross-entropy of logits (n, K)."""
    per_row = nn.functional.cross_entropy(logits, y, reduction="none")
    return (per_row * weight).sum() / weight.sum().clamp_min(1e-12)


class _Trainee:
    """A network on its way."""

    def __init__(self, plan: Plan, rows: Rows, *, seed: int) -> None:
        torch.manual_seed(seed)
        self.net = plan.build().to(rows.y.device)
        self.busy = threading.Lock()
        self.losses: list[float] = []
        self.held_out: dict[int, Tensor] = {}
        self._n_rows = len(rows.y)
        self._optimizer = torch.optim.Adam(self.net.parameters(), lr=plan.learning_rate, fused=True)
        self._total = torch.zeros((), device=rows.y.device)

    def step(self, batch: Rows, shared: Any) -> None:
        """Train on a batch."""
        self._optimizer.zero_grad()
        loss = compute_loss(self.net(*batch.inputs, shared), batch.y, batch.weight)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._total += loss.detach() * len(batch.y)

    def end_epoch(self, epoch: int, judge: _Judge) -> None:
        """Note the epoch's loss, and the held-out logits if they are asked for."""
        self.losses.append(float(self._total) / self._n_rows)
        self._total.zero_()
        if epoch in judge.epochs:
            self.held_out[epoch] = judge.read(self.net)


class _Judge:
    """Reads the held-out rows after the given epochs."""

    def __init__(self, rows: Rows | None, epochs: Sequence[int]) -> None:
        self.epochs = frozenset(epochs if rows is not None else ())
        self._inputs = () if rows is None else rows.inputs

    @torch.inference_mode()
    def read(self, net: Any) -> Tensor:
        """Return logits (n, K)."""
        logits: Tensor = net.read_logits(net(*self._inputs, net.share(*self._inputs, drops=False)))
        return logits


class _Turn(NamedTuple):
    """A network's work on one batch; `ends` is the epoch that it ends."""

    trainee: _Trainee
    batch: Rows
    shared: Any
    ends: int | None


def _plan_turns(
    trainees: Sequence[_Trainee], rows: Rows, *, epochs: int, batch_size: int, seed: int
) -> Iterator[_Turn]:
    """Yield who trains on what, all networks on one batch before the next; each batch is prepared once."""
    n_rows = len(rows.y)
    order = torch.Generator().manual_seed(seed)
    share: Any = trainees[0].net.share
    for epoch in range(1, epochs + 1):
        shuffled = torch.randperm(n_rows, generator=order).to(rows.y.device)
        batches = torch.split(shuffled, batch_size)
        for number, index in enumerate(batches):
            batch = rows.take(index)
            with torch.no_grad():
                shared = share(*batch.inputs, drops=True)
            for trainee in trainees:
                yield _Turn(trainee, batch, shared, epoch if number == len(batches) - 1 else None)


class _Line:
    """Hands out the turns, from several threads too; a network's turns are taken one after the other."""

    def __init__(self, turns: Iterator[_Turn], bar: Bar) -> None:
        self._turns = turns
        self._bar = bar
        self._lock = threading.Lock()
        self._failed = False

    @contextlib.contextmanager
    def take(self) -> Iterator[_Turn | None]:
        """Give the next turn, or None after the last or where another thread failed."""
        with self._lock:
            turn = None if self._failed else next(self._turns, None)
            if turn is not None:
                turn.trainee.busy.acquire()
        try:
            yield turn
        except BaseException:
            self._failed = True
            raise
        finally:
            if turn is not None:
                turn.trainee.busy.release()
        if turn is not None and turn.ends is not None:
            self._bar.advance()


def _work_side_by_side(line: _Line, judge: _Judge, *, n_workers: int, n_threads: int) -> None:
    """Take turns in several threads, which share out the cores."""

    def work() -> None:
        torch.set_num_threads(n_threads // n_workers)
        _work(line, judge)

    try:
        with ThreadPoolExecutor(n_workers) as pool:
            for done in [pool.submit(work) for _ in range(n_workers)]:
                done.result()
    finally:
        torch.set_num_threads(n_threads)


def _work(line: _Line, judge: _Judge) -> None:
    """Take turns until none is left."""
    while True:
        with line.take() as turn:
            if turn is None:
                return
            turn.trainee.step(turn.batch, turn.shared)
            if turn.ends is not None:
                turn.trainee.end_epoch(turn.ends, judge)
