"""The heads a config can name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from embedtune.errors import ConfigError, suggest_nearest
from embedtune.heads.training import ClassWeight

#: Name: (module in this folder, class, whether it joins views). Imported on use: one of them loads torch.
HEADS: dict[str, tuple[str, str, bool]] = {
    "auto": ("auto", "AutoHead", True),
    "logistic": ("linear", "LogisticHead", False),
    "ridge": ("linear", "RidgeHead", False),
    "stack": ("stack", "StackHead", True),
    "cooccurrence": ("cooccurrence_head", "CooccurrenceHead", False),
}


def make_head(
    name: str,
    *,
    widths: Sequence[int] | None = None,
    random_state: int = 0,
    class_weight: ClassWeight = None,
    views: Sequence[Sequence[int]] | None = None,
    sources: Sequence[int | None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Return an unfitted head.

    Parameters
    ----------
    name : str
        A key of `HEADS`.
    widths, random_state, class_weight
        As every head takes them.
    views : sequence of sequences of int, optional
    sources : sequence of int or None, optional
        For heads that join views; ignored by the others.
    options : mapping, optional
        Further parameters of that head.

    Raises
    ------
    ConfigError
        If no head has that name.
    """
    if name not in HEADS:
        raise ConfigError(
            f"head '{name}' does not exist{suggest_nearest(name, HEADS)}: use one of {', '.join(HEADS)}."
        )
    module, class_name, takes_views = HEADS[name]
    shared: dict[str, Any] = {"random_state": random_state, "class_weight": class_weight}
    if takes_views:
        shared |= {"views": views, "sources": sources}
    head_class = getattr(import_module(f"embedtune.heads.{module}"), class_name)
    return head_class(widths, **shared, **(options or {}))
