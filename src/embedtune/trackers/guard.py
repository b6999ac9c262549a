"""A tracker's Trainer callback that can't stop a training."""

from __future__ import annotations

from typing import Any

from embedtune.embed.quantization import hush_bitsandbytes
from embedtune.trackers import Link

with hush_bitsandbytes():  # peft imports it, and it logs what it lacks
    from transformers import TrainerCallback


class Guard(TrainerCallback):
    """Passes a training's events on to a tracker's callback, until that fails.

    `is_whole` once it has passed on all of a training, from the first step to the end.
    """

    def __init__(self, link: Link, callback: Any) -> None:
        self.link, self.callback, self.is_whole = link, callback, False
        self._from_start = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._from_start = state.global_step == 0
        self._pass_on("on_train_begin", args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pass_on("on_log", args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pass_on("on_train_end", args, state, control, **kwargs)
        self.is_whole = self._from_start and not self.link.failed

    def close(self, *, failed: bool) -> None:
        """End what the callback holds; `failed` if the training didn't end by itself."""
        self.link.attempt(lambda: self.callback.close(failed=failed))

    def _pass_on(self, event: str, *args: Any, **kwargs: Any) -> None:
        if not self.link.failed:
            self.link.attempt(lambda: getattr(self.callback, event)(*args, **kwargs))
