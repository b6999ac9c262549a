"""Which views are worth reading: greedy forward selection over their out-of-fold opinions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import f1_score

from embedtune.heads.blocks import Floats
from embedtune.heads.crossfit import CrossFit
from embedtune.heads.training import TrainingRows


class Selection(NamedTuple):
    """What `select_views` chose.

    Attributes
    ----------
    views : tuple of int
        The views taken, ascending.
    joined : CrossFit
        Their pool's cross-fit.
    steps : list of dict
        One per view, in the order taken, those left out behind them; see `describe_step`.
    """

    views: tuple[int, ...]
    joined: CrossFit
    steps: list[dict[str, Any]]


class _Candidate(NamedTuple):
    view: int
    joined: CrossFit
    losses: NDArray[np.float64]


def select_views(
    join: Callable[[Sequence[int]], CrossFit],
    n_views: int,
    rows: TrainingRows,
    *,
    sources: Sequence[int | None] | None = None,
) -> Selection:
    """Take the view that lowers the joined out-of-fold log loss most, and go on until none is worth its cost.

    A view that costs nothing more (a table, or a further reading of a backbone that is read anyway) is worth it if it
    lowers the loss at all. A view that brings a source of its own must lower it by more than one standard error of the
    difference, and below what the best free view would give by as much.

    Parameters
    ----------
    join : callable
        From the numbers of some views, ascending, to the cross-fit of their pool over all rows.
    n_views : int
    rows : TrainingRows
    sources : sequence of int or None, length n_views, optional
        What must be run to have each view; None costs nothing. By default none costs anything.

    References
    ----------
    Caruana et al., "Ensemble Selection from Libraries of Models", ICML 2004; Breiman et al., "Classification and
    Regression Trees" (1984), section 3.4.3: the one-standard-error rule.
    """
    sources = [None] * n_views if sources is None else list(sources)
    shares = np.bincount(rows.y, weights=rows.sample_weight, minlength=len(rows.classes))
    current = _weigh_losses(np.tile(np.log(shares / shares.sum()), (len(rows.y), 1)), rows)
    taken: list[int] = []
    joined: CrossFit | None = None
    steps: list[dict[str, Any]] = []

    def attempt(view: int) -> _Candidate:
        found = join(sorted([*taken, view]))
        return _Candidate(view, found, _weigh_losses(found.scores, rows))

    while True:
        paid = {sources[view] for view in taken} | {None}
        candidates = sorted(
            (attempt(view) for view in range(n_views) if view not in taken), key=lambda one: one.losses.mean()
        )
        free = {view for view in range(n_views) if sources[view] in paid}
        best = _choose(current, candidates, free)
        if best is None and not taken and candidates:
            best = candidates[0]  # labels that nothing tells of: still one view is needed
        if best is None:
            steps += [describe_step(one.view, one.joined, rows, is_taken=False) for one in candidates]
            break
        taken.append(best.view)
        joined, current = best.joined, best.losses
        steps.append(describe_step(best.view, best.joined, rows, is_taken=True))
    assert joined is not None
    return Selection(tuple(sorted(taken)), joined, steps)


def describe_step(view: int, joined: CrossFit, rows: TrainingRows, *, is_taken: bool) -> dict[str, Any]:
    """Return ``view`` (its number), ``taken``, and ``log_loss`` and ``macro_f1`` of the views so far with this one."""
    predicted = joined.scores.argmax(axis=1)
    return {
        "view": view,
        "taken": is_taken,
        "log_loss": joined.loss,
        "macro_f1": float(f1_score(rows.y, predicted, average="macro", zero_division=0)),
    }


def _choose(
    current: NDArray[np.float64], candidates: Sequence[_Candidate], free: set[int]
) -> _Candidate | None:
    """Return the candidate worth taking, of those sorted by loss; None where none is."""
    cheap = next((one for one in candidates if one.view in free), None)
    if cheap is not None and cheap.losses.mean() >= current.mean():
        cheap = None
    dear = next((one for one in candidates if one.view not in free), None)
    if dear is not None:
        gains = (current if cheap is None else cheap.losses) - dear.losses
        if gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)):
            return dear
    return cheap


def _weigh_losses(scores: Floats, rows: TrainingRows) -> NDArray[np.float64]:
    """Return each row's log loss times its weight, the weights having mean 1."""
    losses = -log_softmax(scores, axis=1)[np.arange(len(rows.y)), rows.y]
    weighed: NDArray[np.float64] = losses * (rows.sample_weight / rows.sample_weight.mean())
    return weighed
