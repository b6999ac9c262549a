"""kill -9, SIGTERM, Ctrl-C at random moments: the same command ends as an undisturbed one; no half file is left."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from run_cases import read_figures
from torture import child
from torture.rot import TEXTS
from torture.runner import Case, Outcome
from torture.workshop import SETTINGS, Workshop

TITLE = "kill -9, SIGTERM, Ctrl-C"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_KILLS = 6


def kill_run(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A run of every stage, killed several times and repeated until it ends."""
    started = time.perf_counter()
    whole, _ = _finish_run(workshop, workshop.fresh("whole"))
    seconds = time.perf_counter() - started
    expected = read_figures(whole)
    while True:
        out = workshop.fresh("killed")
        killed: list[str] = []
        trouble = ""
        while len(killed) < MOST_KILLS and not trouble:
            # less is left after each
            stop, moment = random.choice(SIGNALS), random.uniform(0, 0.7 * seconds / (1 + len(killed)))
            process = child.start(
                _words(workshop, out), out.with_suffix(".log"), EMBEDTUNE_STORE=f"{out}-store"
            )
            said = _stop(process, stop, moment, out.with_suffix(".log"))
            if process.exitcode == 0:
                break
            killed.append(f"{stop.name} after {moment:.2f} s")
            trouble = said or find_half_file(out)
        if trouble:
            yield Outcome("half a file or a traceback", f"{', '.join(killed)}: {trouble}")
            continue
        trouble = _go_on(workshop, out, expected)
        for moment_told in killed or ["finished before the kill"]:
            name = moment_told.split(" ")[0]
            yield Outcome(f"{name}, the same figures", f"{', '.join(killed)}: {trouble}" if trouble else "")
            trouble = ""


def _words(workshop: Workshop, out: Path) -> list[Any]:
    return ["run", workshop.recipe, "--out", out, "-q", f"embed.store={out}-store", *SETTINGS]


def _finish_run(workshop: Workshop, out: Path) -> tuple[Path, str]:
    log = out.with_suffix(".log")
    process = child.start(_words(workshop, out), log, EMBEDTUNE_STORE=f"{out}-store")
    process.join()
    return out, "" if process.exitcode == 0 else log.read_text(encoding="utf-8")[-600:]


def _go_on(workshop: Workshop, out: Path, expected: dict[str, Any]) -> str:
    """Finish a killed run, and say what is wrong with it."""
    from embedtune.embed.store import EmbeddingStore

    store = EmbeddingStore(f"{out}-store")
    n_before = sum(row.n_texts or 0 for row in store.list())
    done = {path.name for path in (out / ".state").glob("embed*.json")}
    _, trouble = _finish_run(workshop, out)
    if trouble:
        return trouble
    new = [path for path in (out / ".state").glob("embed*.json") if path.name not in done]
    n_computed = sum(json.loads(path.read_text())["result"]["n_computed"] for path in new)
    n_after = sum(row.n_texts or 0 for row in store.list())
    if n_computed > n_after - n_before:
        return f"{n_computed} texts computed where {n_after - n_before} were lacking"
    if store.verify():
        return f"the store: {store.verify()[0].message}"
    return "" if read_figures(out) == expected else "other figures"


def _stop(process: Any, stop: signal.Signals, moment: float, log: Path) -> str:
    """Send a signal after so many seconds; return what a process said that shouldn't have said it."""
    process.join(moment)
    if process.is_alive():
        os.kill(process.pid, stop)
    process.join(120)
    said = log.read_text(encoding="utf-8") if log.exists() else ""
    if process.exitcode in (0, -stop, 130):
        return "Traceback: " + said[-600:] if "Traceback" in said and stop != signal.SIGKILL else ""
    return f"exit code {process.exitcode}: {said[-600:]}"


def find_half_file(folder: Path) -> str:
    """Return a file under a final name that can't be read; names with a dot in front aren't final."""
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    readers = {".json": lambda path: json.loads(path.read_text(encoding="utf-8")), ".parquet": pq.read_table,
               ".safetensors": load_file}  # fmt: skip
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        is_final = (
            not any(part.startswith(".") for part in inside.parts) and "checkpoints" not in inside.parts
        )
        if is_final and path.suffix in readers:
            try:
                readers[path.suffix](path)
            except Exception as error:
                return f"{inside}: {type(error).__name__}: {error}"
    return ""


def kill_predict(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Labelling a file; the output appears whole, with the bytes of an undisturbed call, or not at all."""
    source = workshop.fresh("in").with_suffix(".csv")
    lines = [f'{n},"{TEXTS[n % 6]} {n}"' for n in range(1500)]
    source.write_text("id,text\n" + "\n".join(lines) + "\n", encoding="utf-8")
    bundle = workshop.run / "arms" / "floor"

    def begin(output: Path) -> Any:
        return child.start_call(predict_in_pieces, bundle, source, output, log=output.with_suffix(".log"))

    whole = workshop.folder / "whole.csv"
    begin(whole).join()
    started = time.perf_counter()
    begin(workshop.folder / "again.csv").join()
    seconds = time.perf_counter() - started
    expected = whole.read_bytes()
    while True:
        output = workshop.fresh("out").with_suffix(".csv")
        stop, moment = random.choice(SIGNALS), random.uniform(0, seconds)
        said = f"{stop.name} after {moment:.3f} s"
        process = begin(output)
        process.join(moment)
        if process.is_alive():
            os.kill(process.pid, stop)
        process.join()
        if output.exists() and output.read_bytes() != expected:
            yield Outcome("half an output", said)
            continue
        if process.exitcode != 0:
            begin(output).join()
        same = output.exists() and output.read_bytes() == expected
        how = "the same bytes" if process.exitcode else "finished before the kill"
        yield Outcome(
            f"{stop.name}, {how}" if process.exitcode else how, "" if same else f"{said}: other bytes"
        )


def predict_in_pieces(bundle: Path, source: Path, output: Path) -> None:
    from embedtune.predict import job, predict_file

    job.WINDOW_TEXTS = 256
    predict_file(bundle, source, output)


def kill_save(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Saving a bundle over another one: afterwards one of the two is there, whole."""
    from embedtune import load_bundle
    from embedtune.errors import EmbedtuneError

    bundles = [workshop.run / "arms" / arm for arm in ("floor", "frozen")]
    expected = [load_bundle(bundle).predict_proba(TEXTS).tobytes() for bundle in bundles]
    target = workshop.folder / "saved"
    while True:
        process = child.start_call(save_in_turns, bundles, target, log=workshop.folder / "save.log")
        while not target.exists() and process.is_alive():
            time.sleep(0.01)
        process.join(random.uniform(0, 0.5))
        os.kill(process.pid, random.choice(SIGNALS))
        process.join(10)
        if process.is_alive():  # Ctrl-C came while Python was in a callback, where it can raise nothing
            process.kill()
            process.join()
        try:
            found = load_bundle(target).predict_proba(TEXTS).tobytes()
        except EmbedtuneError as error:
            yield Outcome("no whole bundle", str(error))
        else:
            yield Outcome("one of the two", "" if found in expected else "another bundle")


def save_in_turns(bundles: list[Path], target: Path) -> None:
    from embedtune import load_bundle

    classifiers = [load_bundle(bundle) for bundle in bundles]
    while True:
        for classifier in classifiers:
            classifier.save(target)


CASES = (
    Case("a run, killed again and again", kill_run, 200),
    Case("predict", kill_predict, 400),
    Case("a bundle saved over another", kill_save, 400),
)
