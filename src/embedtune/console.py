"""What the command line shows: bars on a terminal, plain lines elsewhere, the closing tables; and log.txt."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from embedtune.progress import Bar, Progress

#: A plain line at most this often, in seconds.
_LINE_SECONDS = 5.0
#: A bar appears only if the work takes longer than this.
_BAR_AFTER_SECONDS = 0.5

log = logging.getLogger("embedtune")


def choose_progress(console: Console, *, quiet: bool) -> Progress | None:
    """Return bars for a terminal, lines for anything else, and None for `quiet`."""
    if quiet:
        return None
    return _show_bars(console) if console.is_terminal else _show_lines(console)


@contextmanager
def write_log(path: Path, console: Console, *, level: int) -> Iterator[None]:
    """Send embedtune's log to `path`, and to the console from `level` up, inside the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    to_console = _ConsoleHandler(console, level)
    before, log.level = log.level, logging.DEBUG
    log.addHandler(to_file)
    log.addHandler(to_console)
    try:
        yield
    finally:
        log.removeHandler(to_file)
        log.removeHandler(to_console)
        log.setLevel(before)
        to_file.close()


def print_benchmark(console: Console, report: Mapping[str, Any]) -> None:
    """Print a suite's rows, each beside its aim, and the machine they were measured on."""
    machine = report["machine"]
    rates = ", ".join(f"{name} {rate:g} GFLOP/s" for name, rate in machine.get("gflops", {}).items())
    table = Table(
        title=f"{machine.get('processor')}, {machine.get('cores')} cores, {rates}", title_justify="left"
    )
    table.add_column("what")
    table.add_column("against")
    for name in ("median", "least to most", "aim"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in report["rows"]:
        value, unit = row["value"], row["unit"]
        spread = "" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}"
        aim = "" if row["aim"] is None else f"{'at most' if row['at_most'] else 'at least'} {row['aim']:g}"
        mark = {True: "reached", False: "missed", None: ""}[row["reached"]]
        shown = "not measured" if value is None else f"{value:.4g} {unit}"
        table.add_row(row["what"], row["against"], shown, spread, aim, mark)
    console.print(table)
    for row in report["rows"]:
        if row["note"]:
            console.print(f"{row['what']}, {row['against']}: {row['note']}", markup=False)


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Print one task's arms with their intervals, and its verdict."""
    n = results["n"]
    title = f"{results['task']}: {n['tune']} tune, {n['train']} train, {n['test']} test rows"
    table = Table(title=title, title_justify="left")
    table.add_column("arm")
    for name in ("accuracy", "macro-F1"):
        table.add_column(f"{name} (95 % interval)", justify="right")
    table.add_column("seconds", justify="right")
    for name, arm in results["arms"].items():
        seconds = arm["cost"]["seconds"]
        table.add_row(
            f"{name} *" if name == results["best"] else name,
            _interval(arm["accuracy"]),
            _interval(arm["macro_f1"]),
            "-" if seconds is None else f"{seconds:.1f}",
        )
    console.print(table)
    # a prompt leaves nothing to keep, so it isn't among those the best is chosen from
    of = " of the trained arms" if "prompt" in results["arms"] and results["best"] != "prompt" else ""
    console.print(
        f"{results['verdict']} Best{of} on the test rows (*): {results['best']}.\n",
        highlight=False,
        markup=False,
    )


def print_repeats(console: Console, repeats: Mapping[str, Any]) -> None:
    """Print what several splits said of the arms, together."""
    table = Table(title=f"{repeats['task']}: {repeats['n_splits']} splits", title_justify="left")
    table.add_column("arm")
    for name in ("accuracy", "macro-F1"):
        table.add_column(f"{name} (sd over splits)", justify="right")
    for name, arm in repeats["arms"].items():
        scores = [arm[metric] for metric in ("accuracy", "macro_f1")]
        table.add_row(name, *(f"{score['value']:.3f} ({score['sd']:.3f})" for score in scores))
    console.print(table)
    console.print(f"Over all splits: {repeats['verdict']}", highlight=False, markup=False)


def _interval(figure: Mapping[str, float | None]) -> str:
    value, low, high = figure["value"], figure["low"], figure["high"]
    return "-" if value is None else f"{value:.3f} ({low:.3f}, {high:.3f})"


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(record.getMessage(), highlight=False, markup=False)


def _show_bars(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    @contextmanager
    def open_bar(description: str, total: int, unit: str) -> Iterator[Bar]:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with RichProgress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(description, total=total, rate="")

            class RichBar:
                def advance(self, n: int = 1) -> None:
                    speed = progress.tasks[0].speed
                    progress.update(task, advance=n, rate=f"{speed:.0f}/s" if speed else "")

            yield RichBar()

    return open_bar


class _Lines:
    """A bar that prints a line now and then, and nothing for work that is over at once."""

    def __init__(self, console: Console, description: str, total: int, unit: str) -> None:
        self.console, self.description, self.total, self.unit = console, description, total, unit
        self.done, self.start = 0, time.monotonic()
        self.said = self.start

    def advance(self, n: int = 1) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.said >= _LINE_SECONDS:
            self.said = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate if rate else 0
            self.console.print(
                f"{self.description}: {self.done}/{self.total} {self.unit}, {rate:.0f}/s, {left:.0f} s left",
                highlight=False, markup=False,
            )  # fmt: skip


def _show_lines(console: Console) -> Progress:
    @contextmanager
    def open_lines(description: str, total: int, unit: str) -> Iterator[Bar]:
        yield _Lines(console, description, total, unit)

    def open_bar(description: str, total: int, unit: str) -> AbstractContextManager[Bar]:
        return open_lines(description, total, unit)

    return open_bar


def make_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output, or on standard error."""
    return Console(stderr=stderr, soft_wrap=not sys.stdout.isatty())
