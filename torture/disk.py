"""A disk that is full, read-only, or fails at some write: one clear line, nothing half; it goes on with space."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from run_cases import read_figures
from torture import child
from torture.kills import find_half_file
from torture.rot import TEXTS
from torture.runner import Case, NotHere, Outcome
from torture.workshop import SETTINGS, Workshop, start

TITLE = "full and failing disks"


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[None]:
    """Mount a tmpfs of so many bytes; NotHere where that isn't allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(parents=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={n_bytes}".encode()):
        raise NotHere("no tmpfs can be mounted here")
    try:
        yield
    finally:
        libc.umount2(os.fsencode(folder), 2)


def remount(folder: Path, n_bytes: int, *, read_only: bool = False) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = 32 | (1 if read_only else 0)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={n_bytes}".encode()):
        raise OSError(ctypes.get_errno(), "the tmpfs can't be mounted anew")


def fill_disk(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A run, its store too, on a disk that is full at some point, then gets room; the command is repeated."""
    expected = read_figures(workshop.run)
    while True:
        disk, n_bytes = workshop.fresh("disk"), random.randrange(20_000, 900_000)
        with small_disk(disk, n_bytes):
            out = disk / "run"
            said = _run(workshop, out, disk / "store")
            if said and (trouble := _judge_line(said, "full", "no space", "No space") or find_half_file(out)):
                yield Outcome("told badly", f"{n_bytes} bytes: {trouble}")
                continue
            remount(disk, 64 << 20)
            trouble = _run(workshop, out, disk / "store") if said else ""
            if not trouble and read_figures(out) != expected:
                trouble = "other figures"
            yield Outcome(
                "one line, then the same figures" if said else "it fitted",
                trouble and f"{n_bytes} bytes: {trouble}",
            )


def make_read_only(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A run on a disk that can only be read, from some stage on."""
    stages = ("prepare", "embed", "finetune", "fit", "compare")
    while True:
        disk, last = workshop.fresh("disk"), random.choice(stages)
        with small_disk(disk, 64 << 20):
            _run(workshop, disk / "run", disk / "store", "--until", last)
            remount(disk, 64 << 20, read_only=True)
            said = _run(workshop, disk / "run", disk / "store")
            trouble = _judge_line(said, "ead-only", "can't be written", "Permission")
            yield Outcome("one line", trouble and f"after {last}: {trouble}")


def limit_files(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """No file may grow beyond so many bytes: a write fails in its middle, wherever that is."""
    expected = read_figures(workshop.run)
    while True:
        out, n_bytes = workshop.fresh("run"), random.randrange(100, 160_000)
        said = _run(workshop, out, Path(f"{out}-store"), limit=n_bytes)
        if said and (trouble := _judge_line(said, "") or find_half_file(out)):
            yield Outcome("told badly", f"files of {n_bytes} bytes: {trouble}")
            continue
        trouble = _run(workshop, out, Path(f"{out}-store")) if said else ""
        if not trouble and read_figures(out) != expected:
            trouble = "other figures"
        yield Outcome(
            "one line, then the same figures" if said else "it fitted",
            trouble and f"{n_bytes} bytes: {trouble}",
        )


def fail_write(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A run on a disk of which one write, sync or rename fails, whoever makes it; the command is repeated."""
    library = workshop.folder / "failing_writes.so"
    source = Path(__file__).with_name("failing_writes.c")
    try:
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        raise NotHere("there is no C compiler") from None
    expected = read_figures(workshop.run)
    while True:
        disk, nth = workshop.fresh("disk"), int(10 ** random.uniform(0, 3))
        words = [
            "run",
            workshop.recipe,
            "--out",
            disk / "run",
            "-q",
            f"embed.store={disk / 'store'}",
            *SETTINGS,
        ]
        process = start(*words, LD_PRELOAD=str(library), FAILING_FOLDER=str(disk), FAILING_NTH=str(nth))
        said = process.communicate()[1]
        how, trouble = "nothing failed that mattered", ""
        if process.returncode:
            how = "one line, then the same figures"
            trouble = _judge_line(said, "") or find_half_file(disk / "run")
            trouble = trouble or _run(workshop, disk / "run", disk / "store")
        if not trouble and read_figures(disk / "run") != expected:
            trouble = "other figures"
        yield Outcome(how, trouble and f"write {nth}: {trouble}")


def _run(workshop: Workshop, out: Path, store: Path, *more: Any, limit: int | None = None) -> str:
    """Run and return what it said if it didn't end well."""
    log = workshop.fresh("log")
    words = ["run", workshop.recipe, "--out", out, "-q", *more, f"embed.store={store}", *SETTINGS]
    process = child.start_call(run_limited, [str(word) for word in words], limit, log=log)
    process.join()
    said = log.read_text(encoding="utf-8")
    return "" if process.exitcode == 0 else said or f"exit code {process.exitcode}"


def run_limited(words: list[str], limit: int | None) -> None:
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = os.fstat(1).st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(limit, log + 4096), resource.RLIM_INFINITY))
    child.run_command(words)


def _judge_line(said: str, *words: str) -> str:
    """Return what is wrong with what a command said, nothing if it is one line with one of the words."""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or "Traceback" in said:
        return said[-700:] or "nothing was said"
    return "" if any(word in lines[0] for word in words) else lines[0]


def label_on_full_disk(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """predict on a small disk, which then gets room."""
    source = workshop.fresh("in").with_suffix(".csv")
    lines = [f'{n},"{TEXTS[n % 6]} {n}"' for n in range(400)]
    source.write_text("id,text\n" + "\n".join(lines) + "\n", encoding="utf-8")
    words = ["predict", str(workshop.run / "arms" / "floor"), str(source), "-o"]
    expected = workshop.fresh("out").with_suffix(".csv")
    child.start([*words, expected], workshop.fresh("log")).join()
    while True:
        disk, n_bytes = workshop.fresh("disk"), random.randrange(4096, 80_000)
        with small_disk(disk, n_bytes):
            output, log = disk / "out.csv", workshop.fresh("log")
            process = child.start([*words, output], log)
            process.join()
            how, trouble = "it fitted", ""
            if process.exitcode:
                how, trouble = (
                    "one line, then the same bytes",
                    _judge_line(log.read_text(), "full", "o space"),
                )
                if output.exists():
                    trouble = "an output is there"
                remount(disk, 8 << 20)
                child.start([*words, output], log).join()
            if not trouble and output.read_bytes() != expected.read_bytes():
                trouble = "other bytes"
            yield Outcome(how, trouble and f"{n_bytes} bytes: {trouble}")


CASES = (
    Case("a run on a disk that fills up (tmpfs)", fill_disk, 100),
    Case("a run on a disk that becomes read-only (tmpfs)", make_read_only, 20),
    Case("a run whose files may not grow (RLIMIT_FSIZE)", limit_files, 100),
    Case("a run of which one write fails (LD_PRELOAD)", fail_write, 100),
    Case("predict on a disk that fills up (tmpfs)", label_on_full_disk, 100),
)
