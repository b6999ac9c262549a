"""A run folder of somebody else, its hashes right: stages read it, go on in it, or refuse it in a line."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from torture import child, plants
from torture.memory import MIB, limit_space
from torture.runner import Outcome
from torture.workshop import SETTINGS, Workshop

KINDS = ("pickles", "links", "code", "JSON", "tensors")
STAGES = ("embed", "finetune", "fit", "compare", "report", "bundle")
SECONDS, ROOM = 120, 4096 * MIB


def take_over(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Something of somebody else's in a run folder, and a command that reads it."""
    while True:
        folder, mark, log = workshop.fresh("theirs"), workshop.fresh("mark"), workshop.fresh("log")
        shutil.copytree(workshop.run, folder, ignore=shutil.ignore_patterns("logs", "*.lock", "log.txt"))
        kind = random.choice(KINDS)
        said = f"{kind}: {plants.BUNDLE[kind].put(folder, random, mark)}"
        seal(folder, random)
        words = _choose_command(workshop, random, folder)
        process = child.start_call(limit_space, [str(word) for word in words], ROOM, log=log)
        process.join(SECONDS)
        how, trouble = _judge(process, log, mark)
        yield Outcome(how, trouble and f"{said}; {words[0]}: {trouble}")
        shutil.rmtree(folder)


def _choose_command(workshop: Workshop, random: Random, folder: Path) -> list[Any]:
    name = random.choice(("run", "predict", *STAGES))
    if name == "run":
        return ["run", workshop.recipe, "--out", folder, "-q", *SETTINGS]
    if name == "predict":
        return ["predict", folder / "bundle", workshop.rows, "-o", workshop.fresh("out").with_suffix(".csv")]
    return [name, folder, "-q"]


def _judge(process: Any, log: Path, mark: Path) -> tuple[str, str]:
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if process.is_alive():
        process.kill()
        process.join()
        return "too slow", f"more than {SECONDS} s: {said[-300:]}"
    if mark.exists():
        return "code ran", said[-300:]
    if process.exitcode == 0:
        return "read", ""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    is_line = process.exitcode == 2 and len(lines) == 1 and "Traceback" not in said
    return "refused", "" if is_line else f"exit code {process.exitcode}: {said[-900:]}"


def seal(folder: Path, random: Random) -> None:
    """Give adapters, bundles and records of steps the hashes that their files have now."""
    from embedtune.embed.checkpoints import hash_adapter
    from embedtune.errors import EmbedtuneError
    from embedtune.files import hash_file, write_sealed

    forged = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, EmbedtuneError)
    for facts in sorted(folder.rglob("finetune.json")):
        with contextlib.suppress(*forged):
            told = _read(facts)
            told["backbone_sha256"] = hash_adapter(facts.parent)
            write_sealed(facts, told)
    for manifest in sorted(folder.rglob("bundle.json")):
        with contextlib.suppress(*forged):
            plants.relist(manifest.parent, random)
    for record in sorted((folder / ".state").glob("*.json")):
        with contextlib.suppress(*forged):
            told = _read(record)
            for name in [name for name in told.get("files", {}) if (folder / name).is_file()]:
                told["files"][name] = hash_file(folder / name)
            write_sealed(record, told)


def _read(path: Path) -> Any:
    from embedtune.files import refuse_endless

    refuse_endless(path)
    told = json.loads(path.read_text(encoding="utf-8"))
    told.pop("sha256", None)
    return told
