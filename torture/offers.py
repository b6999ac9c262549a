"""Data, settings and checkpoints that would run code, and outputs made of hostile labels and texts."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

from torture.forged import Touch, make_pickle
from torture.inputs import SUFFIXES
from torture.plants import edit_json
from torture.rot import TEXTS
from torture.runner import Outcome
from torture.workshop import SETTINGS, Workshop, call

Judge = Callable[..., Outcome]
ROWS = "text,label\n" + "".join(f"sales {n} rose,up\nsales {n} fell,down\n" for n in range(12))


# -- data


def make_data(folder: Path, random: Random, mark: Path) -> tuple[str, str]:
    """Write a source that would run code where a reader trusts it; return it and what it is."""
    folder.mkdir()
    kind = random.randrange(7)
    if kind == 0:  # a loading script, as the datasets library once ran it
        (folder / f"{folder.name}.py").write_text(_write_script(mark))
        if random.random() < 0.7:
            (folder / "rows.csv").write_text(ROWS)
        if random.random() < 0.5:
            (folder / "dataset_infos.json").write_text('{"default": {"builder_name": "custom"}}')
        return str(folder), "a loading script"
    if kind == 1:  # a card that names files elsewhere
        target = random.choice(
            (
                "../../../etc/passwd",
                "/etc/passwd",
                "http://127.0.0.1:9/x.csv",
                "*.py",
                "hf://datasets/a/b/x.csv",
            )
        )
        front = {"configs": [{"config_name": "default", "data_files": target}], "builder": "custom"}
        (folder / "README.md").write_text(f"---\n{json.dumps(front)}\n---\n")
        (folder / "rows.csv").write_text(ROWS)
        return str(folder), f"a card that names {target}"
    if kind == 2:  # a pickle under a table's name
        path = folder / f"rows{random.choice((*SUFFIXES, '.feather'))}"
        path.write_bytes(make_pickle(random, mark))
        return str(path), f"a pickle as {path.name}"
    if kind == 3:  # Arrow types that readers once unpickled
        path = folder / f"rows{random.choice(('.parquet', '.arrow', '.feather'))}"
        _write_arrow(path, random, mark)
        return str(path), f"a type of Python's in {path.name}"
    if kind == 4:  # a folder as save_to_disk writes it
        state = {
            "_data_files": [{"filename": random.choice(("../../../etc/passwd", "/etc/passwd", "data.pkl"))}]
        }
        state |= {
            "_fingerprint": "x",
            "_format_type": random.choice((None, "custom", "torch", "os.system")),
            "_split": None,
        }
        (folder / "state.json").write_text(
            json.dumps({**state, "_format_columns": None, "_format_kwargs": {}})
        )
        (folder / "dataset_info.json").write_text(
            json.dumps({"features": {"text": {"_type": random.choice(("Custom", "Value"))}}})
        )
        (folder / "data.pkl").write_bytes(make_pickle(random, mark))
        return str(folder), "a saved data set"
    if kind == 5:  # a workbook with an external entity
        path = folder / "rows.xlsx"
        _write_workbook(path)
        return str(path), "a workbook with an entity"
    name = random.choice(
        (
            "team/data",
            "../team/data",
            "team/data.py",
            f"{folder}/x.py",
            "file:///etc/passwd",
            "pickle",
            "python://x",
        )
    )
    (folder / "x.py").write_text(_write_script(mark))
    return name, f"the source {name}"


def read_data(workshop: Workshop, random: Random, judge: Judge) -> Iterator[Outcome]:
    """Prepare a source that would run code."""
    from embedtune.data.sources import load_dataset

    while True:
        folder, mark = workshop.fresh("offered"), workshop.fresh("mark")
        source, said = make_data(folder, random, mark)

        def act(source: str = source) -> None:
            found = load_dataset(source)
            assert not any("root:" in text for text in found.texts)

        yield judge(act, said, mark)
        shutil.rmtree(folder)


def _write_script(mark: Path) -> str:
    return (
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nimport datasets\n"
        "class Custom(datasets.GeneratorBasedBuilder):\n    pass\n"
    )


def _write_arrow(path: Path, random: Random, mark: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    evil = pickle.dumps(Touch(mark))
    name = random.choice(
        (b"arrow.py_extension_type", b"pandas.period", b"arrow.json", b"arrow.opaque", b"custom.x")
    )
    metadata = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": evil}
    fields = [pa.field("text", pa.string(), metadata=metadata), pa.field("label", pa.string())]
    schema = pa.schema(
        fields,
        metadata={b"pandas": evil, b"huggingface": b'{"info": {"features": {"text": {"_type": "Custom"}}}}'},
    )
    table = pa.table([[f"sales {n} rose" for n in range(24)], ["up", "down"] * 12], schema=schema)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(table)


def _write_workbook(path: Path) -> None:
    import zipfile

    import openpyxl

    book = openpyxl.Workbook()
    for row in csv.reader(io.StringIO(ROWS)):
        book.active.append(row)
    out = io.BytesIO()
    book.save(out)
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("sheet1.xml"):
                text = data.decode().replace("sales 0 rose", "&x;").partition("?>")
                entity = '<!DOCTYPE w [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
                data = (text[2] if not text[1] else f"{text[0]}?>{entity}{text[2]}").encode()
                if not text[1]:
                    data = (entity + text[0]).encode()
            if name == "xl/sharedStrings.xml":
                data = b'<!DOCTYPE w [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + data.replace(
                    b"sales 0 rose", b"&x;"
                )
            new.writestr(name, data)


# -- settings

TAGS = (
    "!!python/object/apply:os.system ['touch {}']", "!!python/object/new:os.system ['touch {}']",
    "!!python/name:os.system",
    "!!python/module:this", "!!python/object:torture.forged.Touch {{mark: '{}'}}",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['{}']",
    "!!python/object/apply:builtins.exec ['open(\"{}\", \"w\")']", "!!python/tuple [a]", "!!binary aGk=",
    "${{oc.env:HOME}}", "{{{{7*7}}}}",
    "$(touch {})", "`touch {}`", "!include /etc/passwd", "!ENV {}", "file:///etc/passwd", "!!set {{a}}",
    "__import__('os').system('touch {}')",
)  # fmt: skip
KEYS = (
    "name", "tasks", "tasks.moves.source", "embed.views", "embed.views.bert.model", "embed.store",
    "finetune.method", "fit.head",
    "fit.class", "compare.arms", "track", "prompt.endpoint", "trust_remote_code",
    "embed.views.bert.trust_remote_code", "compat",
    "quirks", "by_task", "__class__", "embed.device", "finetune.scheduler", "finetune.optimizer",
    "fit.head_options", "hooks",
)  # fmt: skip


def read_settings(workshop: Workshop, random: Random, judge: Judge) -> Iterator[Outcome]:
    """A recipe, or a setting of the command line, whose value is a tag or a command."""
    from embedtune.cli.runs import read_experiment

    recipe = workshop.recipe.read_text(encoding="utf-8")
    while True:
        mark = workshop.fresh("mark")
        key, value = random.choice(KEYS), random.choice(TAGS).format(mark)
        if random.random() < 0.5:
            words = [str(workshop.recipe), f"{key}={value}"]
        else:
            path = workshop.fresh("recipe").with_suffix(".yaml")
            path.write_text(recipe + f"\n{key.partition('.')[0]}: {value}\n", encoding="utf-8")
            words = [str(path)]
        yield judge(lambda words=words: read_experiment(words, {}), f"{key}: {value}", mark)


# -- checkpoints


def read_checkpoints(workshop: Workshop, random: Random, judge: Judge) -> Iterator[Outcome]:
    """A stopped fine-tuning whose files are pickles that run code, its hashes written anew."""
    from embedtune.finetune.checkpoints import mark_ready
    from embedtune.finetune.train import fine_tune

    class Stopped(Exception):
        pass

    def tune(folder: Path, *, stop: int | None = None) -> None:
        def look(epoch: Any) -> None:
            if round(epoch.epoch) == stop:
                raise Stopped

        fine_tune(
            workshop.backbone, TEXTS * 6, labels=["up", "down"] * 18, label_names=["down", "up"],
            method="lora", epochs=3,
            batch_size=8, max_length=32, output_dir=folder, device="cpu", on_epoch=look,
            validation_fraction=0.3,
            patience=None,
        )  # fmt: skip

    stopped = workshop.fresh("stopped")
    with contextlib.suppress(Stopped):
        tune(stopped, stop=3)
    while True:
        folder, mark = workshop.fresh("going-on"), workshop.fresh("mark")
        shutil.copytree(stopped, folder)
        said = []
        for checkpoint in folder.glob("checkpoints/checkpoint-*"):
            names = sorted(path.name for path in checkpoint.iterdir() if path.name != "ready.json")
            names += ["training_args.bin", "pytorch_model.bin", "scaler.pt", "optimizer.bin"]
            said = random.sample(names, random.choice((1, 2, len(names))))
            for name in said:
                (checkpoint / name).unlink(missing_ok=True)
                (checkpoint / name).write_bytes(make_pickle(random, mark))
            (checkpoint / "ready.json").unlink()
            mark_ready(checkpoint, seconds=1.0)
        yield judge(lambda at=folder: tune(at), f"pickles as {', '.join(said)}", mark)
        shutil.rmtree(folder)


# -- chat templates


def make_template(random: Random, mark: Path) -> str:
    """Return a chat template that reaches for Python, never ends well, or says something else."""
    code = f"open({str(mark)!r}, 'w')"
    root = random.choice(
        (
            "messages",
            "cycler",
            "joiner",
            "namespace",
            "lipsum",
            "raise_exception",
            "strftime_now",
            "''",
            "self",
            "range",
        )
    )
    steps = random.choice(
        (
            "__init__.__globals__",
            "__class__.__mro__[-1].__subclasses__()",
            "__globals__['__builtins__']",
            "__code__",
            "__class__.__base__",
            "__self__",
            "_TemplateReference__context",
        )
    )
    bodies = (
        f"{{{{ {root}.{steps} }}}}",
        f"{{{{ {root}.{steps}.__builtins__.exec({code!r}) }}}}",
        f"{{{{ ({root}|attr('__class__')).{steps} }}}}",
        f"{{% set f = '{{0.{steps}}}'.format({root}) %}}{{{{ f }}}}",
        f"{{{{ {root}['{steps.split('.')[0]}'] }}}}",
        "{% import 'os' as os %}{{ os.system('x') }}",
        "{% include '/etc/passwd' %}",
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{{ 1 // 0 }}",
        "{{ raise_exception('no') }}",
        "{{ messages[99].content }}",
        "{{ messages.clear() }}{{ messages.append(1) }}",
        "{% for m in messages %}",
        "{{ nothing.of.it }}",
        "\x1b]0;x\x07{{ undefined }}",
    )  # fmt: skip
    told = random.choice(("", "{% for m in messages %}{{ m.content }}{% endfor %}"))
    return random.choice(bodies) + told


def ask_decoders(workshop: Workshop, random: Random, judge: Judge) -> Iterator[Outcome]:
    """A decoder whose chat template is a program of somebody else's, asked for labels."""
    from decoder_cases import build_decoder
    from embedtune.prompt.classifier import PromptClassifier

    decoder = build_decoder("mistral", workshop.backbone, workshop.fresh("decoder"), causal=True)
    while True:
        folder, mark = workshop.fresh("asked"), workshop.fresh("mark")
        shutil.copytree(decoder, folder)
        template = make_template(random, mark)
        if random.random() < 0.5:
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        else:
            edit_json(folder / "tokenizer_config.json", {"chat_template": template})
        model = PromptClassifier(str(folder), device="cpu").fit(TEXTS, ["up", "down"] * 3)
        yield judge(lambda model=model: model.predict_proba(TEXTS), f"{template!r}", mark)
        shutil.rmtree(folder)


# -- outputs

EVIL = (
    "=cmd|'/c calc'!A0", "+1+cmd|x", "-2+3", "@SUM(1)", "\tx", "\rx", "<script>canary()</script>",
    "<img src=x onerror=canary()>",
    "\"><svg onload=canary()>", "javascript:canary()", "{{canary}}", "${canary}", "../../etc/passwd",
    "/etc/passwd", "a\0b",
    "\x1b]0;canary\x07", "\u202egnp", "</title><script>canary()</script>", "' onmouseover='canary()",
    "`canary`", "[x](javascript:canary())",
    "<!--", "]]>", "&lt;script&gt;", "a,b", 'a"b', "a;b", "CON", "..", "%00", "=1", "<a href='//x'>x</a>",
)  # fmt: skip


class Page(HTMLParser):
    """Notes what in a page would act: scripts, handlers, addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.acts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "form", "base", "img", "a"):
            self.acts.append(f"<{tag} {attrs}>"[:80])
        where = ("href", "src", "style", "action", "xlink:href")
        self.acts += [
            f"{tag} {name}={value}"[:80]
            for name, value in attrs
            if name.startswith("on") or (name in where and "canary" in (value or ""))
        ]


def write_outputs(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A short run on such labels and texts, and its bundle's labelling: no cell is a formula, no page acts."""
    while True:
        folder = workshop.fresh("outputs")
        folder.mkdir()
        labels = random.sample(EVIL, 2)
        rows, out = folder / "rows.csv", folder / "run"
        with rows.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(
                [f"{random.choice(EVIL)} {n} {('rose', 'fell')[n % 2]}", labels[n % 2]] for n in range(60)
            )
        words = [
            "run",
            "--data",
            rows,
            "--text-column",
            "text",
            "--label-column",
            "label",
            "--out",
            out,
            "-q",
        ]
        code, said = call(*words, "compare.arms=[majority,floor]", *SETTINGS[:2])
        trouble = "" if code == 0 or (code == 2 and said.startswith("error: ")) else said[-500:]
        if code == 0:
            code, said = call("predict", out / "bundle", rows, "-o", folder / "labelled.csv", "-q")
            trouble = ("" if code == 0 else said[-500:]) or find_acts(folder, out)
        yield Outcome(
            "harmless" if (folder / "labelled.csv").exists() else "refused",
            trouble and f"{labels}: {trouble}",
        )
        shutil.rmtree(folder)


def find_acts(folder: Path, run: Path) -> str:
    """Return what in the files of a run and its labelling would run where a person opens them."""
    tables = [folder / "labelled.csv", run / "suspects.csv", *run.glob("tables/*.csv")]
    for path in tables:
        with path.open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        bad = [
            cell
            for cell in cells
            if cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not is_number(cell)
        ]
        if bad:
            return f"{path.name} has the cell {bad[0]!r}"
    page = Page()
    page.feed((run / "report.html").read_text(encoding="utf-8"))
    if page.acts:
        return f"report.html has {page.acts[0]}"
    card = (run / "bundle" / "README.md").read_text(encoding="utf-8")
    return (
        "the card has a tag"
        if "<script" in card.replace("\\<", "") or "](javascript" in card.replace("\\]", "")
        else ""
    )


def is_number(cell: str) -> bool:
    with contextlib.suppress(ValueError):
        float(cell)
        return True
    return False
