"""One byte changed in what a run keeps is told, by the file's name, or has no effect; no answer differs in silence."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from run_cases import read_figures
from torture.runner import Case, Outcome
from torture.workshop import SETTINGS, Workshop, call

TITLE = "bit rot: one byte changed"
TEXTS = [f"sales {move} in the north" for move in ("rose", "fell", "grew", "slid", "jumped", "shrank")]


def flip_byte(folder: Path, random: Random, *, among: str = "**/*") -> tuple[Path, str]:
    """Change one byte of a file, and return the file and what was done; small files are as likely as large ones."""
    paths = sorted(path for path in folder.glob(among) if path.is_file() and path.stat().st_size)
    path = random.choice(paths)
    data = bytearray(path.read_bytes())
    place = random.randrange(len(data))
    before = data[place]
    data[place] ^= random.choice((1 << random.randrange(8), random.randrange(1, 256)))
    path.unlink()  # a hard link elsewhere keeps what it has
    path.write_bytes(data)
    return path, f"{path.relative_to(folder)}: byte {place} from {before:#04x} to {data[place]:#04x}"


def forget() -> None:
    """Drop what this process remembers of files: a reader is mostly a new one."""
    from embedtune import files
    from embedtune.embed import backbone

    files._hashes.clear()
    backbone._described.clear()
    backbone.release_backbones()


def judge(read: Callable[[], Any], expected: Any, path: Path, said: str) -> Outcome:
    """Read what was damaged: the same answer, an error that names the file or its folder, or a loss."""
    from embedtune.errors import EmbedtuneError

    forget()
    try:
        found = read()
    except EmbedtuneError as error:
        names = (path.name, path.parent.name, str(path.parent.parent))
        is_line = "\n" not in str(error) and any(name in str(error) for name in names)
        return Outcome("detected") if is_line else Outcome("told badly", f"{said}: {error}")
    except Exception as error:
        return Outcome("traceback", f"{said}: {type(error).__name__}: {error}")
    return Outcome("no effect") if is_same(found, expected) else Outcome("another answer", said)


def is_same(found: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        return bool(np.array_equal(found, expected))
    return bool(found == expected)


# -- the store


def rot_store(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Vectors read from a damaged table are right, or lacking, or an error; repair drops the bad rows alone."""
    from embedtune.embed.store import EmbeddingStore
    from store_writer import COLUMNS, KEY, append

    whole = workshop.fresh("store")
    for numbers in (range(40), range(40, 90)):
        append(EmbeddingStore(whole).table(KEY), list(numbers), COLUMNS)
    append(EmbeddingStore(whole).table(KEY), list(range(90, 95)), COLUMNS[:1])
    append(EmbeddingStore(whole).table(KEY), list(range(92, 95)), COLUMNS)
    while True:
        folder = workshop.fresh("store")
        shutil.copytree(whole, folder)
        path, said = flip_byte(folder, random, among=random.choice(("**/*", "*/table.lance/data/*")))
        yield _judge_store(EmbeddingStore(folder), path, said)
        shutil.rmtree(folder)


def _judge_store(store: Any, path: Path, said: str) -> Outcome:
    from embedtune.errors import StoreError
    from store_writer import COLUMNS, KEY, append, hash_numbers, make_vectors

    table, numbers = store.table(KEY), list(range(95))
    hashes = hash_numbers(numbers)

    def count_wrong() -> int:
        """Read what is there of all texts, and count wrong vectors."""
        n_wrong = 0
        for column in COLUMNS:
            there = np.flatnonzero(~table.find_missing(hashes, [column])).tolist()
            found = table.read([hashes[n] for n in there], [column])[column]
            n_wrong += int((found != make_vectors(there, column)).any(axis=1).sum())
        return n_wrong

    told = ""
    try:
        try:
            if n_wrong := count_wrong():
                return Outcome("another answer", f"{said}: {n_wrong} wrong vectors")
            how = "no effect"
        except StoreError as error:
            if KEY.digest() not in str(error) or "\n" in str(error):
                return Outcome("told badly", f"{said}: {error}")
            how, told = "detected", str(error)
        if how == "detected" and not store.verify():
            return Outcome("verify missed it", said)
        n_before = _count_rows(table)
        store.repair()
        if problems := store.verify():
            return Outcome("not repaired", f"{said}: {problems[0].message}")
        n_dropped = n_before - _count_rows(table)
        is_row = path.parent.name == "data" and "aren't those that were stored" in told
        if is_row and n_dropped != 1:
            return Outcome("repair dropped more", f"{said}: {n_dropped} rows")
        append(table, numbers, COLUMNS)
        n_wrong = count_wrong() + int(table.find_missing(hashes, COLUMNS).sum())
    except Exception as error:
        return Outcome("traceback", f"{said}: {type(error).__name__}: {error}")
    return Outcome("not repaired", f"{said}: {n_wrong} wrong") if n_wrong else Outcome(how)


# -- what is read whole


def rot_bundle(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Probabilities, labels and all, of a damaged bundle."""
    from embedtune import load_bundle

    def read(bundle: Path) -> Any:
        classifier = load_bundle(bundle)
        return [*classifier.classes_, *classifier.predict(TEXTS), classifier.predict_proba(TEXTS).tobytes()]

    arms = [path for path in (workshop.run / "arms").iterdir() if path.name in ("frozen", "tuned")]
    while True:
        whole = random.choice(arms)
        folder = workshop.fresh("bundle")
        shutil.copytree(whole, folder)
        forget()
        expected = read(folder)
        path, said = flip_byte(folder, random)
        yield judge(lambda at=folder: read(at), expected, path, said)
        shutil.rmtree(folder)


def rot_backbone(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A bundle whose backbone, which lies elsewhere, was damaged."""
    from embedtune import load_bundle

    bundle = workshop.run / "arms" / "frozen"

    def read(model: Path) -> Any:
        return load_bundle(bundle, models={str(workshop.backbone): model}).predict_proba(TEXTS)

    expected = read(workshop.backbone)
    while True:
        folder = workshop.fresh("backbone") / workshop.backbone.name
        shutil.copytree(workshop.backbone, folder)
        path, said = flip_byte(folder, random)
        yield judge(lambda at=folder: read(at), expected, path, said)
        shutil.rmtree(folder)


def rot_adapter(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """What fine-tuning left: whole weights, or a LoRA adapter."""
    from embedtune import TransformerEncoder
    from embedtune.finetune.saved import read_finetuned
    from embedtune.finetune.train import fine_tune

    texts, labels = TEXTS * 4, ["up", "down"] * 12
    found = {}
    for method in ("full", "lora"):
        tuned = fine_tune(
            workshop.backbone, texts, labels=labels, label_names=["down", "up"], method=method, epochs=1,
            max_length=32, output_dir=workshop.fresh(method), device="cpu",
        )  # fmt: skip
        found[method] = tuned.path

    def read(adapter: Path) -> Any:
        facts = read_finetuned(adapter)
        vectors = TransformerEncoder(workshop.backbone, adapter=adapter, max_length=32).transform(TEXTS)
        weights = (facts.head_weight.tobytes(), facts.head_bias.tobytes(), vectors.tobytes())
        return facts.label_names, facts.pooling, facts.max_length, facts.prefix, facts.history, weights

    expected = {method: read(path) for method, path in found.items()}
    while True:
        method = random.choice(list(found))
        folder = workshop.fresh("adapter")
        shutil.copytree(found[method], folder, ignore=shutil.ignore_patterns("logs"))
        path, said = flip_byte(folder, random)
        yield judge(lambda at=folder: read(at), expected[method], path, f"{method}: {said}")
        shutil.rmtree(folder)


def rot_run(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Any file of a run folder; the same command again, figures and the bundle's answers compared."""
    from embedtune import load_bundle

    def read(run: Path) -> Any:
        bundle = load_bundle(run / "bundle")
        return (
            read_figures(run),
            bundle.predict_proba(TEXTS).tobytes(),
            (run / "tables" / "test.csv").read_bytes(),
        )

    expected = read(workshop.run)
    while True:
        folder = workshop.fresh("run")
        shutil.copytree(workshop.run, folder, ignore=shutil.ignore_patterns("logs", "*.lock", "log.txt"))
        path, said = flip_byte(folder, random)
        forget()
        code, line = call("run", workshop.recipe, "--out", folder, "-q", *SETTINGS)
        if code not in (0, 2):
            yield Outcome("traceback", f"{said}: {line}")
        elif code == 2:
            yield (
                Outcome("detected")
                if line.startswith("error: ")
                else Outcome("told badly", f"{said}: {line}")
            )
        else:
            how = "mended" if "not the file" in line else "no effect"
            outcome = judge(lambda at=folder: read(at), expected, path, said)
            yield Outcome(how) if outcome.how == "no effect" else outcome
        shutil.rmtree(folder)


def rot_stages(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Prepared rows and predictions, read by the stages behind them, each run alone."""
    expected = read_figures(workshop.run)
    shown = (workshop.run / "report.html").read_text(encoding="utf-8").partition("<body")[2]
    while True:
        folder = workshop.fresh("run")
        shutil.copytree(workshop.run, folder, ignore=shutil.ignore_patterns("logs", "*.lock", "log.txt"))
        path, said = flip_byte(
            folder, random, among=random.choice(("data/*", "predictions/*", "results.json"))
        )
        forget()
        for stage in ("compare", "report"):
            (folder / ".state" / f"{stage}.json").unlink()
        stages = ("report",) if path.name == "results.json" else ("compare", "report")
        if stages == ("report",):
            shutil.copy(workshop.run / ".state" / "compare.json", folder / ".state")
        told = [call(stage, folder, "-q") for stage in stages]
        if any(code not in (0, 2) for code, _ in told):
            yield Outcome("traceback", f"{said}: {told}")
        elif any(code == 2 for code, _ in told):
            yield Outcome("detected")
        else:
            page = (folder / "report.html").read_text(encoding="utf-8").partition("<body")[2]
            same = read_figures(folder) == expected and len(page) == len(shown)
            yield Outcome("no effect") if same else Outcome("another answer", said)
        shutil.rmtree(folder)


class _Stopped(Exception):
    pass


def tune(workshop: Workshop, folder: Path, *, stop: int | None = None) -> list[bytes]:
    """Fine-tune for three epochs, or until `stop`, and return the weights."""
    from embedtune.finetune.train import fine_tune

    def look(epoch: Any) -> None:
        if round(epoch.epoch) == stop:
            raise _Stopped

    fine_tune(
        workshop.backbone, TEXTS * 6, labels=["up", "down"] * 18, label_names=["down", "up"], method="lora",
        epochs=3, batch_size=8, max_length=32, output_dir=folder, device="cpu", on_epoch=look,
        validation_fraction=0.3, patience=None,
    )  # fmt: skip
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def stop_tuning(workshop: Workshop) -> Path:
    """Return the folder of a fine-tuning that was stopped in its last epoch."""
    stopped = workshop.fresh("stopped")
    with contextlib.suppress(_Stopped):
        tune(workshop, stopped, stop=3)
    assert list((stopped / "checkpoints").glob("checkpoint-*/ready.json"))
    return stopped


def rot_checkpoints(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Checkpoints of a stopped fine-tuning, which goes on to the weights of an undisturbed one, or says why not."""
    expected = tune(workshop, workshop.fresh("tuned"))
    stopped = stop_tuning(workshop)
    while True:
        folder = workshop.fresh("going-on")
        shutil.copytree(stopped, folder)
        path, said = flip_byte(folder, random, among="checkpoints/**/*")
        yield judge(lambda at=folder: tune(workshop, at), expected, path, said)
        shutil.rmtree(folder)


def stop_predict(workshop: Workshop) -> tuple[Path, Path, Path, bytes]:
    """Return a bundle, an input, the folder of a `predict` that was stopped, and the bytes of one that wasn't."""
    from embedtune.data.places import Place
    from embedtune.predict import job, predict_file

    bundle, source = workshop.run / "arms" / "floor", workshop.fresh("in").with_suffix(".jsonl")
    rows = [{"id": n, "text": f"{TEXTS[n % 6]} {n}" if n % 7 else None} for n in range(40)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job.WINDOW_TEXTS = 8
    whole = workshop.fresh("whole").with_suffix(".csv")
    predict_file(bundle, source, whole)
    expected = whole.read_bytes() + whole.with_name(f"{whole.name}.rejected.jsonl").read_bytes()
    stopped = workshop.fresh("stopped")
    stopped.mkdir()
    write, n_written = Place.write_bytes, [0]

    def stop(self: Place, data: bytes) -> None:
        n_written[0] += self.path.endswith(".arrow")
        if n_written[0] > 3:
            raise KeyboardInterrupt
        write(self, data)

    Place.write_bytes = stop  # type: ignore[method-assign]
    try:
        predict_file(bundle, source, stopped / "out.csv")
    except KeyboardInterrupt:
        pass
    finally:
        Place.write_bytes = write  # type: ignore[method-assign]
    return bundle, source, stopped, expected


def finish_predict(bundle: Path, source: Path, folder: Path) -> bytes:
    """Give the command again, and return its output and rejected rows."""
    from embedtune.predict import predict_file

    predict_file(bundle, source, folder / "out.csv")
    return (folder / "out.csv").read_bytes() + (folder / "out.csv.rejected.jsonl").read_bytes()


def rot_parts(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Finished pieces of a `predict` that was stopped."""
    bundle, source, stopped, expected = stop_predict(workshop)
    while True:
        folder = workshop.fresh("going-on")
        shutil.copytree(stopped, folder)
        path, said = flip_byte(folder, random)
        yield judge(lambda at=folder: finish_predict(bundle, source, at), expected, path, said)
        shutil.rmtree(folder)


def _count_rows(table: Any) -> int:
    try:
        dataset = table.place.open()
        return 0 if dataset is None else int(dataset.count_rows())
    except Exception:
        return 0


CASES = (
    Case("the store", rot_store, 2000),
    Case("a bundle", rot_bundle, 2000),
    Case("a bundle's backbone", rot_backbone, 500),
    Case("an adapter", rot_adapter, 1000),
    Case("a run folder, the same command again", rot_run, 500),
    Case("prepared rows, predictions, results, read by a stage alone", rot_stages, 500),
    Case("checkpoints of a stopped fine-tuning", rot_checkpoints, 500),
    Case("parts of a stopped predict", rot_parts, 1000),
)
