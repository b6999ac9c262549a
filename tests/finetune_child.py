"""Fine-tune in a process of its own, and die by SIGKILL where told to: `python finetune_child.py JSON`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

WORDS = {
    "down": ("loss widened", "orders fell", "costs rose"),
    "flat": ("unchanged", "silver ends flat", "neutral outlook"),
    "up": ("profit rose", "shares jump", "earnings beat"),
}


def make_rows(n: int = 60) -> tuple[list[str], list[str]]:
    """Return texts of several lengths and their labels."""
    names = list(WORDS)
    labels = [names[i % 3] for i in range(n)]
    texts = [
        f"the company: {WORDS[label][i // 3 % 3]} in quarter {i} " + "a year earlier " * (i * 7 % 4)
        for i, label in enumerate(labels)
    ]
    return texts, labels


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(kill: dict[str, Any]) -> None:
    """Put a SIGKILL at a step, or at the nth call that writes the named thing."""
    import torch

    from embedtune.finetune import checkpoints, loop, saved

    if "step" in kill:
        original = loop.Steering.on_step_end

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            original(self, args, state, control, **kwargs)
            if state.global_step == kill["step"]:
                _die()

        loop.Steering.on_step_end = on_step_end  # type: ignore[method-assign]
        return
    owner, name = {
        "weights": (loop, "save_file"),
        "optimizer": (torch, "save"),
        "ready": (checkpoints, "mark_ready"),
        "delete": (checkpoints, "delete_spent"),
        "head": (saved, "write_head"),
        "facts": (saved, "write_facts"),
    }[kill["at"]]
    written, calls = getattr(owner, name), [0]

    def write(*args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] < kill["call"]:
            written(*args, **kwargs)
            return
        if kill["at"] in ("weights", "optimizer"):  # half a file is left
            path = Path(args[1])
            written(*args, **kwargs)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        if kill["at"] == "delete":
            written(*args, **kwargs)
        _die()

    setattr(owner, name, write)


def main(order: dict[str, Any]) -> None:
    from embedtune.finetune import loop
    from embedtune.finetune.train import fine_tune

    loop.STEPS_PER_CHECKPOINT = order.get("steps_per_checkpoint", 400)
    loop.MIN_STEPS_PER_CHECKPOINT = 1
    if order.get("kill"):
        _arm(order["kill"])
    texts, labels = make_rows()
    fine_tune(
        order["model"],
        texts,
        labels=labels,
        label_names=list(WORDS),
        output_dir=order["output_dir"],
        device="cpu",
        batch_size=8,
        max_length=32,
        **{"validation_fraction": 0.2, "precision": "float32", **order["settings"]},
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
