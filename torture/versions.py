"""What other releases wrote, or will: it works with the same figures, or one line says what to do; nothing is lost."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from run_cases import read_figures
from torture.rot import TEXTS, finish_predict, forget, is_same, stop_predict, stop_tuning, tune
from torture.runner import Case, Outcome
from torture.workshop import SETTINGS, Workshop, call

TITLE = "versions"
#: A line says one of these.
ADVICE = ("pgrade embedtune", "again", "choose another", "delete", "first", "anew", "you trust")


class Change(NamedTuple):
    """What another release does otherwise: in words, to a file's fields, and whether it seals them."""

    what: str
    edit: Callable[[dict[str, Any], Random], None]
    seals: bool = True


def _renumber(*numbers: Any) -> Callable[[dict[str, Any], Random], None]:
    def edit(value: dict[str, Any], random: Random) -> None:
        value["schema"] = random.choice(numbers)

    return edit


def _drop(value: dict[str, Any], random: Random) -> None:
    del value[random.choice(sorted(value))]


def _drop_inside(value: dict[str, Any], random: Random) -> None:
    inside = [item for item in walk(value) if item]
    _drop(random.choice(inside), random) if inside else None


def _add(value: dict[str, Any], random: Random) -> None:
    random.choice([value, *walk(value)])[random.choice(("new", "zz", "format"))] = random.choice(STRANGE)


def _retype(value: dict[str, Any], random: Random) -> None:
    value[random.choice(sorted(value))] = random.choice(STRANGE)


def walk(value: Any) -> list[dict[str, Any]]:
    """Return the JSON objects inside another one."""
    found = []
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        found += [item, *walk(item)] if isinstance(item, dict) else walk(item)
    return found


STRANGE: tuple[Any, ...] = (None, True, 7, -1, 1.5, "", "2", "x" * 300, [], [1], {}, {"a": {"b": None}})
CHANGES = (
    Change("a newer schema", _renumber(3, 4, 99, 10**30)),
    Change("an older schema", _renumber(0, -1)),
    Change("a number that is none", _renumber(None, "1", "2.0", 1.5, [], {}, "x" * 1000, float("1e300"))),
    Change("no number", lambda value, random: value.pop("schema", None)),
    Change("a field of the future", _add),
    Change("a field is lacking", _drop),
    Change("a field inside is lacking", _drop_inside),
    Change("a field of another kind", _retype),
    Change("no hash", lambda value, random: None, seals=False),
    Change("a newer schema, and no hash that is known", _renumber(3, 99), seals=False),
)


NUMBERED = tuple(change.what for change in CHANGES if "schema" in change.what or "number" in change.what)


def edit_json(path: Path, change: Change, random: Random, *, is_sealed: bool = True) -> str:
    """Change a JSON file as another release would have written it, and return what was done."""
    from embedtune.files import write_json, write_sealed

    value = json.loads(path.read_text(encoding="utf-8"))
    value.pop("sha256", None)
    before = json.dumps(value, sort_keys=True)
    change.edit(value, random)
    after = json.dumps(value, sort_keys=True)
    path.unlink()  # a hard link elsewhere keeps what it has
    (write_sealed if is_sealed and change.seals else write_json)(path, value)
    return f"{path.name}, {change.what}" + ("" if before != after else " (as it was)") + f": {after[:400]}"


def reseal(run: Path, path: Path) -> None:
    """Have the records of a run folder take a changed file for the one that was written."""
    from embedtune.files import write_sealed

    name = path.relative_to(run).as_posix()
    for record in (run / ".state").glob("*.json"):
        value = json.loads(record.read_text(encoding="utf-8"))
        if isinstance(value.get("files"), dict) and name in value["files"]:
            value.pop("sha256")
            value["files"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
            write_sealed(record, value)


def take_stock(*folders: Path) -> dict[Path, str]:
    """Return every file's hash but those of locks, logs and time stamps."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.name not in ("log.txt", "last_used", "lock")
    }


def find_loss(before: dict[Path, str], *folders: Path) -> str:
    """Return a file that isn't there any more or has changed."""
    after = take_stock(*folders)
    return next((f"{path} was destroyed" for path in before if after.get(path) != before[path]), "")


def judge_line(line: str, *names: str) -> str:
    """Return what is wrong with an error's line: it names the file or folder and says what to do."""
    if "\n" in line.strip() or len(line) > 1500:
        return f"no line: {line[:700]}"
    if not any(name in line for name in names):
        return f"names nothing: {line}"
    return "" if any(word in line for word in ADVICE) else f"says nothing to do: {line}"


def judge(read: Callable[[], Any], expected: Any, said: str, *names: str) -> Outcome:
    """Read what another release wrote: the same answer, or an error in a line."""
    from embedtune.errors import EmbedtuneError

    forget()
    try:
        found = read()
    except EmbedtuneError as error:
        trouble = judge_line(str(error), *names)
        return Outcome("one line", trouble and f"{said} -> {trouble}")
    except Exception as error:
        return Outcome("traceback", f"{said}: {type(error).__name__}: {error}")
    same = is_same(found, expected)
    return Outcome("the same figures" if same else "other figures", "" if same else said)


# -- bundles, adapters, checkpoints


def change_bundles(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """bundle.json of another release: loaded, labelled with, exported, served."""
    from embedtune import load_bundle
    from embedtune.export import export_standalone
    from embedtune.predict import predict_file
    from embedtune.serve.models import load_models

    table = workshop.fresh("in").with_suffix(".csv")
    table.write_text("text\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")

    def predict(bundle: Path) -> bytes:
        predict_file(bundle, table, out := workshop.fresh("out").with_suffix(".csv"))
        return out.read_bytes()

    readers: dict[str, Callable[[Path], Any]] = {
        "load": lambda bundle: load_bundle(bundle).predict_proba(TEXTS),
        "predict": predict,
        "export": lambda bundle: load_bundle(
            export_standalone(bundle, workshop.fresh("whole"))
        ).predict_proba(TEXTS),
        "serve": lambda bundle: load_models([f"m={bundle}"])["m"].read("predict", TEXTS),
    }
    arms = [workshop.run / "arms" / arm for arm in ("floor", "frozen", "tuned")]
    expected = {(arm, how): read(arm) for arm in arms for how, read in readers.items()}
    while True:
        arm, how, change = random.choice(arms), random.choice(sorted(readers)), random.choice(CHANGES)
        folder = workshop.fresh("bundle")
        shutil.copytree(arm, folder)
        said = f"{arm.name}, {how}: {edit_json(folder / 'bundle.json', change, random)}"
        before = take_stock(folder)
        outcome = judge(
            lambda at=folder, r=readers[how]: r(at), expected[arm, how], said, str(folder), "bundle's view"
        )
        yield outcome._replace(lost=outcome.lost or find_loss(before, folder))
        shutil.rmtree(folder)


def change_adapters(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """finetune.json of another release: read, used as an adapter, met by a fine-tuning into the same folder."""
    from embedtune import TransformerEncoder
    from embedtune.finetune.saved import read_finetuned

    whole = workshop.fresh("adapter")
    tune(workshop, whole)
    readers: dict[str, Callable[[Path], Any]] = {
        "read": lambda adapter: read_finetuned(adapter).head_weight,
        "adapter": lambda adapter: TransformerEncoder(
            workshop.backbone, adapter=adapter, max_length=32
        ).transform(TEXTS),
        "fine-tune": lambda adapter: tune(workshop, adapter),
    }
    expected = {how: read(whole) for how, read in readers.items()}
    while True:
        how, change = random.choice(sorted(readers)), random.choice(CHANGES)
        folder = workshop.fresh("adapter")
        shutil.copytree(whole, folder)
        said = f"{how}: {edit_json(folder / 'finetune.json', change, random)}"
        before = take_stock(folder)
        outcome = judge(lambda at=folder, r=readers[how]: r(at), expected[how], said, str(folder))
        yield outcome._replace(lost=outcome.lost or find_loss(before, folder))
        shutil.rmtree(folder)


def change_checkpoints(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Checkpoints of another release: training goes on or begins anew, with the same weights."""
    expected = tune(workshop, workshop.fresh("tuned"))
    stopped = stop_tuning(workshop)
    while True:
        folder, change = workshop.fresh("going-on"), random.choice(CHANGES)
        shutil.copytree(stopped, folder)
        path = random.choice(sorted((folder / "checkpoints").rglob("key.json"))
                             + sorted((folder / "checkpoints").rglob("ready.json")))  # fmt: skip
        said = edit_json(path, change, random, is_sealed=path.name == "ready.json")
        yield judge(lambda at=folder: tune(workshop, at), expected, said, str(folder))
        shutil.rmtree(folder)


# -- the store


def change_store(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A table of another release beside one of ours: ours is read, theirs is left by all but a prune that names it."""
    from embedtune import TransformerEncoder
    from embedtune.embed.store import EmbeddingStore

    whole = workshop.fresh("store")
    expected = TransformerEncoder(workshop.backbone, store=whole, max_length=32).transform(TEXTS)
    TransformerEncoder(workshop.backbone, store=whole, max_length=16).transform(TEXTS)
    other = next(row.digest for row in EmbeddingStore(whole).list() if row.key and row.key.max_length == 16)
    acts: dict[str, Callable[[EmbeddingStore], Any]] = {
        "verify": lambda store: [problem.message for problem in store.verify()],
        "repair": lambda store: [problem.message for problem in store.repair()],
        "prune": lambda store: store.prune(older_than_days=1),
        "list": lambda store: [row.note for row in store.list() if row.key is None and not row.note],
    }
    while True:
        folder, change, how = workshop.fresh("store"), random.choice(CHANGES), random.choice(sorted(acts))
        shutil.copytree(whole, folder)
        path = folder / other / "key.json"
        said = f"{how}: {edit_json(path, change, random, is_sealed=False)}"
        text = json.dumps(json.loads(path.read_text(encoding="utf-8")), sort_keys=True)
        path.write_text(text, encoding="utf-8")
        theirs = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        (folder / other).rename(theirs)
        if (
            change.what in NUMBERED and random.random() < 0.3
        ):  # or in a layout that this release's Lance can't open
            for path in (theirs / "table.lance").rglob("*.manifest"):
                path.write_bytes(b"another format")
        before = take_stock(theirs)

        def read(at: Path = folder, act: Any = acts[how]) -> Any:
            if found := act(EmbeddingStore(at)):
                return f"damage was told: {found}"
            encoder = TransformerEncoder(workshop.backbone, store=at, max_length=32)
            vectors = encoder.transform(TEXTS)
            return vectors if encoder.last_n_computed_ == 0 else "computed again"

        outcome = judge(read, expected, said, str(folder), theirs.name)
        yield outcome._replace(lost=outcome.lost or find_loss(before, theirs))
        shutil.rmtree(folder)


# -- run folders


def change_runs(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Any file of a run folder as another release would have it, then a command that reads it."""
    expected = read_figures(workshop.run)
    commands: dict[str, list[Any]] = {
        "run": ["run", workshop.recipe, "--out"],
        **{stage: [stage] for stage in ("embed", "finetune", "fit", "compare", "report", "bundle")},
    }
    while True:
        folder, how = workshop.fresh("run"), random.choice(["run", *commands])
        shutil.copytree(workshop.run, folder, ignore=shutil.ignore_patterns("logs", "*.lock", "log.txt"))
        said = f"{how}: {_change_file(folder, random)}"
        before = take_stock(
            *(folder / name for name in ("adapters", "arms", "bundle", "predictions", "data"))
        )
        forget()
        more = SETTINGS if how == "run" else ()
        code, line = call(*commands[how], folder, "-q", *more)
        told = [part for part in line.splitlines() if part.startswith("error: ")]
        if code == 0:
            if how in ("run", "compare") and read_figures(folder) != expected:
                yield Outcome("other figures", said)
            else:
                yield Outcome("the same figures")
        elif code == 2 and len(told) == 1 and "Traceback" not in line:
            trouble = judge_line(told[0], folder.name) or find_loss(
                before, *(folder / name for name in ("adapters", "arms", "bundle", "predictions", "data"))
            )
            yield Outcome("one line", trouble and f"{said} -> {trouble}")
        else:
            yield Outcome("traceback", f"{said}: {line[-700:]}")
        shutil.rmtree(folder)


def _change_file(run: Path, random: Random) -> str:
    """Change one file of a run folder, with the records that speak of it."""
    kind = random.choice(("record", "record", "identity", "results", "config", "adapter", "bundle", "table"))
    change = random.choice(CHANGES)
    if kind == "config":
        path = run / "config.yaml"
        line = random.choice(("future: 1", "fit:\n  new_option: true", "compare:\n  arms: [floor, newer]"))
        path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
        return f"config.yaml: {line!r}"
    if kind == "table":
        return _change_table(run, random)
    patterns = {"record": ".state/[!i]*.json", "identity": ".state/identity.json", "results": "results.json",
                "adapter": "adapters/**/finetune.json", "bundle": "**/bundle.json"}  # fmt: skip
    path = random.choice(sorted(run.glob(patterns[kind])))
    said = edit_json(path, change, random, is_sealed=kind != "results")
    if kind == "results":  # a release with other results has another key for them
        record = json.loads((run / ".state" / "compare.json").read_text(encoding="utf-8"))
        _write_record(run / ".state" / "compare.json", {**record, "key": "another"})
    reseal(run, path)
    return f"{path.relative_to(run)}, {said}"


def _write_record(path: Path, record: dict[str, Any]) -> None:
    from embedtune.files import write_sealed

    record.pop("sha256", None)
    write_sealed(path, record)


def _change_table(run: Path, random: Random) -> str:
    """Add a column to a table that stages read, or take one from it; a release that does so has another key for it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = random.choice([run / "data" / "splits.parquet", *sorted((run / "predictions").glob("*.parquet"))])
    table = pq.read_table(path)
    if random.random() < 0.5:
        name = random.choice(table.column_names)
        table, said = table.drop_columns([name]), f"without {name}"
    else:
        table, said = table.append_column("new", pa.array([1] * table.num_rows)), "with a new column"
    path.unlink()
    pq.write_table(table, path)
    reseal(run, path)
    step = "prepare" if path.name == "splits.parquet" else f"fit.{path.stem}"
    record = run / ".state" / f"{step}.json"
    _write_record(record, {**json.loads(record.read_text(encoding="utf-8")), "key": "another"})
    return f"{path.name} {said}"


# -- parts of a predict, the journal of a search


def change_parts(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Parts of a stopped predict by another release: gone on with, or made anew."""
    bundle, source, stopped, expected = stop_predict(workshop)
    while True:
        folder, change = workshop.fresh("going-on"), random.choice(CHANGES)
        shutil.copytree(stopped, folder)
        parts = folder / "out.csv.partial"
        if random.random() < 0.3:
            path = random.choice(sorted(parts.glob("0*")))
            path.write_bytes(path.read_bytes()[:-32])
            said = f"{path.name} without a hash"
        else:
            said = edit_json(parts / "settings.json", change, random, is_sealed=False)
        yield judge(lambda at=folder: finish_predict(bundle, source, at), expected, said, str(folder))
        shutil.rmtree(folder)


def change_journals(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """The journal of a search by another release of Optuna: gone on with, or a line that says to delete it."""
    from embedtune.finetune.search import search_settings

    def search(folder: Path) -> Any:
        found = search_settings(
            workshop.backbone, TEXTS * 4, labels=["up", "down"] * 12, label_names=["down", "up"], budget=1e-6,
            output_dir=folder, learning_rate=1e-3, epochs=1, batch_size=8, max_length=32, device="cpu",
        )  # fmt: skip
        return found.settings, found.macro_f1

    whole = workshop.fresh("search")
    expected = search(whole)
    while True:
        folder = workshop.fresh("search")
        shutil.copytree(whole, folder)
        journal = folder / "trials.log"
        lines = journal.read_text(encoding="utf-8").splitlines()
        at, kind = random.randrange(len(lines)), random.randrange(4)
        entry = json.loads(lines[at])
        if kind == 0:
            entry["new"] = random.choice(STRANGE)
        elif kind == 1:
            _drop(entry, random)
        elif kind == 2:
            entry["op_code"] = random.choice((42, "2", None))
        lines[at] = json.dumps(entry) if kind < 3 else lines[at][: random.randrange(len(lines[at]))]
        journal.write_text("\n".join(lines) + "\n", encoding="utf-8")
        before = journal.read_bytes()
        outcome = judge(lambda at=folder: search(at), expected, f"line {at}: {lines[at]}", str(folder))
        is_kept = journal.read_bytes().startswith(before)
        yield outcome._replace(lost=outcome.lost or ("" if is_kept else f"{journal} was destroyed"))
        shutil.rmtree(folder)


CASES = (
    Case("a bundle", change_bundles, 2000),
    Case("an adapter", change_adapters, 2000),
    Case("checkpoints of a stopped fine-tuning", change_checkpoints, 300),
    Case("a table of the store beside ours", change_store, 1000),
    Case("a run folder, the same command or a stage", change_runs, 600),
    Case("parts of a stopped predict", change_parts, 600),
    Case("the journal of a search", change_journals, 300),
)
