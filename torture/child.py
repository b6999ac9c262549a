"""A process that others are forked from: what takes seconds to import is imported once."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import cleanlab.filter  # noqa: F401
import skops.io  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import transformers  # noqa: F401

import embedtune.bundle
import embedtune.classifier
import embedtune.cli
import embedtune.finetune.loop
import embedtune.finetune.train
import embedtune.heads.auto
import embedtune.pipeline
import embedtune.predict

gc.freeze()  # what is imported stays: collecting is for what a process made itself


def start(words: list[Any], log: Path, **environment: str) -> Any:
    """Start an embedtune command in a process of its own; what it says goes into `log`."""
    return start_call(run_command, [str(word) for word in words], log=log, **environment)


def start_call(function: Any, *arguments: Any, log: Path, **environment: str) -> Any:
    """Start a function of a module of this package in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torture.child"])
    process = context.Process(target=_run, args=(function, arguments, log, environment))
    process.start()
    return process


def _run(function: Any, arguments: tuple[Any, ...], log: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            function(*arguments)


def run_command(words: list[str]) -> None:
    sys.argv = ["embedtune", *words]
    embedtune.cli.main()
