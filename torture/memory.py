"""Memory that runs out, by limits of the system or as CUDA tells it: a line, or the kernel's end, and nothing lost."""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np

from run_cases import read_figures
from serve_cases import start_command
from torture import child
from torture.kills import find_half_file
from torture.runner import Case, NotHere, Outcome
from torture.workshop import SETTINGS, Workshop

TITLE = "out of memory"
CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20


def limit_run(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A run in little address space (RLIMIT_AS), then in enough."""
    expected = read_figures(workshop.run)
    while True:
        out, n_bytes = workshop.fresh("run"), random.randrange(MIB, 400 * MIB)
        code, said = _run(workshop, out, limit_space, n_bytes)
        yield _judge(workshop, out, code, said, expected, f"{n_bytes >> 20} MiB more")


def limit_group(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A run in a memory cgroup, where the kernel kills what takes too much, then outside of it."""
    expected = read_figures(workshop.run)
    while True:
        out, n_bytes = workshop.fresh("run"), random.randrange(8 * MIB, 200 * MIB)
        with _make_cgroup(n_bytes) as tasks:
            code, said = _run(workshop, out, join_group, tasks)
        yield _judge(workshop, out, code, said, expected, f"{n_bytes >> 20} MiB in all")


def _judge(
    workshop: Workshop, out: Path, code: int, said: str, expected: dict[str, Any], given: str
) -> Outcome:
    """Look at what is left, repeat the command without a limit and compare."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    how = {0: "it fitted", 2: "one line, then the same figures"}.get(
        code, f"ended with {code}, then the same figures"
    )
    trouble = find_half_file(out) if out.exists() else ""
    if code == 2 and (len(errors) != 1 or "Traceback" in said):
        trouble = said[-700:]
    elif code not in (0, 2) and code > 0:  # below 0: a signal's, by the kernel or a library that gave up
        trouble = f"exit code {code}: {said[-700:]}"
    if code and not trouble:
        code, said = _run(workshop, out, child.run_command)
        trouble = said[-700:] if code else ""
    if not trouble and read_figures(out) != expected:
        trouble = "other figures"
    return Outcome(how, f"{given}: {trouble}" if trouble else "")


def _run(workshop: Workshop, out: Path, function: Any, *more: Any) -> tuple[int, str]:
    log = out.with_suffix(".log")
    words = ["run", workshop.recipe, "--out", out, "-q", f"embed.store={out}-store", *SETTINGS]
    process = child.start_call(function, [str(word) for word in words], *more, log=log)
    process.join()
    said = log.read_text(encoding="utf-8") if log.exists() else ""
    log.unlink(missing_ok=True)
    return process.exitcode, said


def limit_space(words: list[str], n_bytes: int) -> None:
    """Run a command in so many bytes of address space beyond what it has."""
    resource.setrlimit(resource.RLIMIT_AS, (_read_size(os.getpid()) + n_bytes, resource.RLIM_INFINITY))
    child.run_command(words)


def join_group(words: list[str], tasks: Path) -> None:
    """Run a command in a cgroup."""
    tasks.write_text(str(os.getpid()))
    child.run_command(words)


@contextlib.contextmanager
def _make_cgroup(n_bytes: int) -> Iterator[Path]:
    """Make a memory cgroup of so many bytes, of either version, and yield the file that processes are put in by."""
    is_first = (CGROUPS / "memory").is_dir()
    folder = (CGROUPS / "memory" if is_first else CGROUPS) / f"torture-{os.getpid()}"
    limits = ("memory.limit_in_bytes",) if is_first else ("memory.max", "memory.swap.max")
    try:
        folder.mkdir()
    except OSError:
        raise NotHere("no cgroup can be made here") from None
    try:
        for name, value in zip(limits, (n_bytes, 0), strict=False):
            (folder / name).write_text(str(value))
        yield folder / ("tasks" if is_first else "cgroup.procs")
    finally:
        folder.rmdir()


def _read_size(process: int) -> int:
    found = re.search(r"VmSize:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return 1024 * int(found[1]) if found else 0


def simulate(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """CUDA's error from batches beyond a size: smaller ones are read, and the size is remembered."""
    import torch

    from embedtune import TransformerEncoder
    from embedtune.embed import forward
    from embedtune.embed.backbone import release_backbones

    texts = [f"sales {n} rose in the north" + " and fell" * (n % 5) for n in range(64)]
    encoder = TransformerEncoder(workshop.backbone, max_length=32, precision="float32", batch_tokens=256)
    expected, run = encoder.transform(texts), forward._run
    while True:
        most, failed = random.randrange(8, 256), []

        def run_few(
            backbone: Any, batch: Any, most: int = most, failed: Any = failed, **settings: Any
        ) -> Any:
            if batch.ids.size > most:
                failed.append(batch.ids.size)
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(backbone, batch, **settings)

        release_backbones()
        with mock.patch.object(forward, "_run", run_few):
            try:
                off = float(np.abs(encoder.transform(texts) - expected).max())
                n_first, trouble = len(failed), "" if off < 1e-5 else f"off by {off}"
                encoder.transform(texts)
                if not trouble and len(failed) > n_first:
                    trouble = f"{len(failed) - n_first} batches were too large again"
                how = "the same vectors, and remembered"
            except RuntimeError as error:  # a text of more tokens than there is room for
                how, trouble = "one line", "" if "set max_length lower" in str(error) else str(error)
        yield Outcome(how, f"{most} tokens: {trouble}" if trouble else "")
    release_backbones()


def limit_server(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A server whose address space is bounded while it answers: 503 or right, /health says it, and it lives on."""
    import httpx

    from embedtune import load_bundle

    bundle = workshop.run / "arms" / "frozen"
    texts = [f"sales {n} rose in the north " + "and fell again " * 40 for n in range(256)]
    model = load_bundle(bundle)
    classes, expected = [str(label) for label in model.classes_], model.predict_proba(texts)

    def ask(url: str, n_texts: int = 256) -> tuple[int, str]:
        answer = httpx.post(f"{url}/v1/predict", json={"input": texts[:n_texts]}, timeout=60)
        if answer.status_code != 200:
            return answer.status_code, answer.json()["error"]["code"]
        rows = [row["probabilities"] for row in answer.json()["data"]]
        rows = [{one["label"]: one["probability"] for one in row} for row in rows]
        found = np.array([[row[label] for label in classes] for row in rows])
        return 200, "" if np.abs(found - expected[:n_texts]).max() < 1e-5 else "wrong"

    while True:
        n_bytes = random.randrange(0, 4 * MIB)
        with start_command([str(bundle), "-q", "--batch-tokens", "100000"]) as (process, url, said):
            ask(url, 2)  # threads have what they need from now on
            unlimited = resource.prlimit(process.pid, resource.RLIMIT_AS)
            bound = (_read_size(process.pid) + n_bytes, unlimited[1])
            resource.prlimit(process.pid, resource.RLIMIT_AS, bound)
            answers = []
            with contextlib.suppress(httpx.TransportError):
                answers = [ask(url) for _ in range(4)]
            if len(answers) < 4:
                process.wait(30)
            if process.poll() is None:
                resource.prlimit(process.pid, resource.RLIMIT_AS, unlimited)
                how, trouble = _judge_server(answers, httpx.get(f"{url}/health").status_code)
                if not trouble and ask(url) != (200, ""):
                    trouble = "it doesn't answer with memory again"
            else:
                how, trouble = "ended by the C library", f"code {process.returncode}"
            log = said.read_text()
        if "cannot allocate memory for thread-local data: ABORT" in log:
            trouble = ""  # glibc's end of a process that can't have a thread's variables; no program is asked
        yield Outcome(how, f"{n_bytes >> 10} KiB: {trouble}: {log[-500:]}" if trouble else "")


def _judge_server(answers: list[tuple[int, str]], health: int) -> tuple[str, str]:
    """Return what a server did, and what was wrong with it."""
    ran_out = (503, "out_of_memory") in answers
    wrong = [one for one in answers if one not in ((200, ""), (503, "out_of_memory"))]
    if wrong:
        return "answered badly", f"answers {wrong}"
    if health != (503 if ran_out else 200):
        return "answered badly", f"/health is {health} after {answers}"
    return "503, /health red, then answers again" if ran_out else "it fitted", ""


CASES = (
    Case("batches too large for a device (simulated)", simulate, 200),
    Case("a server in little address space (RLIMIT_AS)", limit_server, 40),
    Case("a run in little memory (cgroup)", limit_group, 60),
    Case("a run in little address space (RLIMIT_AS)", limit_run, 100),
)
