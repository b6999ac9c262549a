"""Hostile data: files, recipes, settings, corrections. Only `EmbedtuneError`, in one line, in bounded time."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from embedtune.errors import DataError
from torture import ROOT
from torture.runner import Case, NotHere, Outcome
from torture.workshop import Workshop, call

TITLE = "hostile data"
SECONDS = 20  # of one input; what takes longer is lost

#: What texts, labels, names and numbers may be.
PIECES = (
    "", " ", "up", "down", "sales rose", "\0", "\ufeff", "\u202e", "\u200b", "\ud800", "\x1b[31m", "@SUM(1)",
    "=cmd|'/c calc'!A0", "../../etc/passwd", "/etc/passwd", "..", "con", "a/b", "<script>alert(1)</script>", "&amp;",
    "{{7*7}}", "'; drop table x;--", '"', "'", ",", ";", "\t", "\n", "\r\n", "\u2028", "\xe9", "e\u0301", "\u0130",
    "\xdf", "\U0001d518", "\U0001f469\u200d\U0001f467", "\u0645\u0631\u062d\u0628\u0627", "nan", "NaN", "inf", "-0",
    "1e999", "0x1F", "1_000", "null", "None", "true", "9" * 400, "a" * 5000, "[]", "{}", "&a [*a]", "*a", "<<",
    "!!python/object:os.system", "%00", "${HOME}", "~", "text", "label", "row", "corrected", "split", "test",
)  # fmt: skip
#: Pieces that a text may begin and end with, and stay a text that every format can hold.
SENSIBLE = tuple(
    piece for piece in PIECES if len(piece) < 1000 and not {"\0", "\ud800", "\ufeff"} & set(piece)
)
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".xlsx", ".parquet", ".arrow")


class Slow(Exception):
    """An input took too long."""


def judge(act: Callable[[], Any], said: str) -> Outcome:
    """Do it: it ends, is refused in one line, or is a loss."""
    from embedtune.errors import EmbedtuneError

    def stop(*_: object) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        act()
    except EmbedtuneError as error:
        return Outcome("refused", f"{said}: two lines: {error}" if "\n" in str(error).strip() else "")
    except Slow:
        return Outcome("too slow", f"{said}: more than {SECONDS} s")
    except Exception as error:
        return Outcome("traceback", f"{said}: {type(error).__name__}: {error}"[:600])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Outcome("read")


# -- tables

#: What labels may be: what a file name, a formula, a page, a template or a number would be taken for.
LABELS = (
    "up", "down", "=1+1", "@SUM(1)", "-", "-0", "+1", "../../x", "/etc/passwd", "a/b", "con", "<b>&amp;</b>",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{7*7}}", "${HOME}", "'; drop table x;--",
    "a,b", "a;b", 'say "so"', "'", "\xe9", "e\u0301", "\u0130", "\U0001f469\u200d\U0001f467", "\u202eabc",
    "\u0645\u0631\u062d\u0628\u0627", "null", "None", "NaN", "true", "1e999", "0x1F", "9" * 40, "a" * 300,
    "text", "label", "prediction", "p:up", "*", "%s", "a\u2028b",
)  # fmt: skip


class Made(NamedTuple):
    """A file's bytes, and the rows that it holds where what comes out has to be what went in."""

    data: bytes
    columns: list[str]
    rows: list[list[str]] | None


def make_table(suffix: str, random: Random) -> Made:
    """Return a table of that format: mostly one that can be used, of hostile cells; at times damaged, or senseless."""
    columns, rows = make_rows(random) if random.random() < 0.8 else _make_chaos(random)
    encoding = random.choice(("utf-8",) * 6 + ("utf-8-sig", "utf-16", "cp1252", "latin-1", "utf-32"))
    try:
        data = WRITERS[suffix](columns, rows, random, encoding)
    except Exception:  # no such file can be written
        return Made(random.randbytes(random.randrange(200)), [], None)
    n_damages = random.choice((0,) * 8 + (1, 3))
    for _ in range(n_damages):
        data = damage(data, random)
    is_whole = not n_damages and encoding.startswith("utf-8") and columns[:2] == ["text", "label"]
    is_told = (
        is_whole
        and suffix != ".xlsx"
        and (suffix not in (".json", ".jsonl") or _is_unchanged(data, rows))
        and not any("\ud800" in cell or "\0" in cell for row in rows for cell in row)
    )
    return Made(data, columns, rows if is_told else None)


def _is_unchanged(data: bytes, rows: list[list[str]]) -> bool:
    """Tell whether JSON, or JSON lines, holds the rows' cells as they are."""
    text = data.decode("utf-8-sig")
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(text if text.startswith("[") else f"[{text.replace(chr(10), ',')}]")
        return [list(value.values()) for value in values] == rows
    return False


def make_rows(random: Random) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of a table that can be labelled and split, a few of its rows excepted."""
    names = random.sample(LABELS, random.choice((2, 2, 3)))
    more = random.sample(LABELS, random.choice((0, 0, 0, 1, 2)))
    columns = ["text", "label", *(name for name in more if name not in ("text", "label"))]
    spoilt = random.choice((0, 0, 0.05))
    rows = []
    for n in range(random.choice((30, 40, 60))):
        words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(6)]
        text = " ".join([random.choice(SENSIBLE), *words, random.choice(SENSIBLE), str(n)])
        rows.append([text, names[n % len(names)], *random.choices(SENSIBLE, k=len(columns) - 2)])
        if random.random() < spoilt:
            rows[-1][random.randrange(2)] = make_cell(random)
    return columns, rows


def _make_chaos(random: Random) -> tuple[list[str], list[list[str]]]:
    columns = [random.choice(PIECES) for _ in range(random.randrange(4))]
    return columns, [[make_cell(random) for _ in columns] for _ in range(random.choice((0, 1, 2, 5, 12, 60)))]


def make_cell(random: Random) -> str:
    return "".join(random.choice(PIECES) for _ in range(random.choice((1, 1, 1, 2, 3))))


def damage(data: bytes, random: Random) -> bytes:
    if not data:
        return random.randbytes(random.randrange(50))
    place, length = random.randrange(len(data)), random.choice((1, 1, 2, 8, 64))
    kind = random.randrange(4)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + random.randbytes(length) + data[place:]
    if kind == 2:
        return data[:place] + random.randbytes(length) + data[place + length :]
    return data[:place] + data[place + length :]


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def _write_delimited(
    columns: list[str], rows: list[list[str]], random: Random, encoding: str, delimiter: str
) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=random.choice((0, 1))).writerows([columns, *rows])
    return _encode(out.getvalue(), encoding)


def _make_value(cell: str, random: Random) -> str:
    """Return a JSON value: mostly the cell as a string, at times something else, or deeply nested."""
    if random.random() < 0.002:
        return random.choice(
            ("null", "1", "-0.0", "1e400", "NaN", "true", "9" * 5000, json.dumps({"a": cell}))
        )
    depth = random.choice((3, 900, 60_000)) if random.random() < 0.0005 else 0
    return "[" * depth + json.dumps(cell) + "]" * depth


def _write_json_lines(columns: list[str], rows: list[list[str]], random: Random, encoding: str) -> bytes:
    lines = []
    for row in rows:
        cells = zip(columns, row, strict=True)
        lines.append("{" + ", ".join(f"{json.dumps(c)}: {_make_value(v, random)}" for c, v in cells) + "}")
    return _encode("\n".join(lines), encoding)


def _write_json(columns: list[str], rows: list[list[str]], random: Random, encoding: str) -> bytes:
    lines = _write_json_lines(columns, rows, random, "utf-8").decode("utf-8", "replace")
    return _encode("[" + lines.replace("\n", ",\n") + "]", encoding)


def _write_lines(columns: list[str], rows: list[list[str]], random: Random, encoding: str) -> bytes:
    return _encode("\n".join("@".join(" ".join(cell.split()) for cell in row[:2]) for row in rows), encoding)


def _write_workbook(columns: list[str], rows: list[list[str]], random: Random, _: str) -> bytes:
    import openpyxl
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = openpyxl.Workbook()
    for row in [columns, *rows]:
        book.active.append([ILLEGAL_CHARACTERS_RE.sub("", cell) for cell in row])
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def _write_arrow_table(columns: list[str], rows: list[list[str]], random: Random) -> Any:
    import pyarrow as pa

    arrays = [pa.array([row[i] for row in rows], pa.string()) for i in range(len(columns))]
    told = random.choice(
        (None, None, {"huggingface": random.choice(('{"info": 3}', "{", "[]", '{"info": {"features": []}}'))})
    )
    return pa.table(arrays, names=columns).replace_schema_metadata(told)


def _write_parquet(columns: list[str], rows: list[list[str]], random: Random, _: str) -> bytes:
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(_write_arrow_table(columns, rows, random), out)
    return out.getvalue()


def _write_arrow(columns: list[str], rows: list[list[str]], random: Random, _: str) -> bytes:
    import pyarrow as pa

    table, out = _write_arrow_table(columns, rows, random), io.BytesIO()
    with random.choice((pa.ipc.new_file, pa.ipc.new_stream))(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


WRITERS: dict[str, Callable[[list[str], list[list[str]], Random, str], bytes]] = {
    ".csv": lambda c, r, random, e: _write_delimited(c, r, random, e, random.choice(",;|\t")),
    ".tsv": lambda c, r, random, e: _write_delimited(c, r, random, e, "\t"),
    ".jsonl": _write_json_lines,
    ".json": _write_json,
    ".txt": _write_lines,
    ".xlsx": _write_workbook,
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
}


def read_tables(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Labelled tables, as `--data` takes them, prepared, split, written and read again: as they went in."""
    from embedtune.data.prepare import prepare_splits
    from embedtune.data.sources import load_dataset
    from embedtune.data.splits import read_splits, write_splits

    def read(path: Path, made: Made, named: dict[str, str]) -> None:
        dataset = load_dataset(path, **named)
        splits, audit = prepare_splits(dataset)
        write_splits(splits, audit, workshop.folder / "data")
        again = read_splits(workshop.folder / "data")
        assert again == splits, "other rows are read than were written"
        if made.rows is not None and named:
            for row, text, label in zip(splits.row_ids, splits.texts, splits.labels, strict=True):
                given = [normalize(cell) for cell in made.rows[row][:2]]
                assert [normalize(text), normalize(label)] == given, (row, text, label)

    while True:
        suffix = random.choice(SUFFIXES)
        path = workshop.folder / f"table{suffix}"
        made = make_table(suffix, random)
        path.write_bytes(made.data)
        named = {} if random.random() < 0.2 or suffix == ".txt" else NAMED
        yield _keep(judge(lambda at=path, m=made, n=named: read(at, m, n), suffix), path)


NAMED = {"text_column": "text", "label_column": "label"}


def normalize(cell: str) -> str:
    """Return a cell as readers give it: ends of lines are one character, space around it is none."""
    return cell.replace("\r\n", "\n").replace("\r", "\n").strip()


def label_tables(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Tables labelled by a bundle of hostile labels: every row in is one out or rejected, and no cell is a formula."""
    import pyarrow.parquet as pq

    from embedtune import EmbedClassifier, LexicalEncoder
    from embedtune.predict import predict_file

    texts = [f"{word} {n}" for n in range(20) for word in ("rose", "fell", "stood")]
    classifier = EmbedClassifier([LexicalEncoder()], "ridge").fit(texts, ["=1+1", "<b>&amp;", "../x"] * 20)
    bundle = classifier.save(workshop.fresh("bundle"))
    readers: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
        ".csv": lambda path: list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline=""))),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]],
        ".parquet": lambda path: pq.read_table(path).to_pylist(),
    }

    def label(path: Path, made: Made, out: Path) -> None:
        done = predict_file(bundle, path, out, text_column="text" if path.suffix != ".txt" else None)
        rows = readers[out.suffix](out)
        assert len(rows) == done.n_labelled, "other rows are written than were labelled"
        assert {path.name for path in out.parent.iterdir()} <= {out.name, f"{out.name}.rejected.jsonl"}
        named = {row["prediction"].removeprefix("'") for row in rows}
        assert named <= set(classifier.classes_), f"labels {named}"
        if out.suffix == ".csv":
            check_cells(out)
        if made.rows is not None and path.suffix not in (".txt", ".csv", ".tsv"):
            given = {normalize(row[0]) for row in made.rows}
            assert done.n_labelled + done.n_rejected == len(made.rows), "rows are lost"
            found = {normalize(str(row["text"])) for row in rows} - given
            assert {normalize(text.removeprefix("'")) for text in found} <= given, f"other texts {found}"

    while True:
        suffix, written = random.choice(SUFFIXES), random.choice(sorted(readers))
        path, out = workshop.folder / f"stream{suffix}", workshop.fresh("out") / f"out{written}"
        out.parent.mkdir()
        made = make_table(suffix, random)
        path.write_bytes(made.data)
        yield _keep(judge(lambda at=path, m=made, o=out: label(at, m, o), f"{suffix} to {written}"), path)
        shutil.rmtree(out.parent)


def check_cells(path: Path) -> None:
    """Fail if a cell of a table is what a spreadsheet would take for a formula."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            for cell in row:
                is_formula = cell.startswith(("=", "+", "-", "@", "\t", "\r"))
                assert not is_formula or _is_number(cell), f"a formula in {path.name}: {cell!r:.80}"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


#: Tags that `LABELS` have.
TAGS = ("b", "script", "img")


class _Page(HTMLParser):
    """The kinds of tags of a page, with the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {(tag, name) for name, _ in attrs} | {(tag, "")}


def run_tables(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A run on hostile texts and labels: no tag of theirs in the report, no formula in a table, their labels kept."""
    from embedtune import load_bundle

    settings = ("compare.arms=[majority,floor]", "compare.n_resamples=100", "compare.probe_layers=false")

    def run(path: Path, out: Path) -> None:
        code, said = call("run", workshop.recipe, "--out", out, "-q", f"tasks.moves.source={path}", *settings)
        if code == 2 and said.startswith("error: ") and said.count("\n") == 1:
            raise DataError(said.strip())
        assert code == 0, said[-600:]

    run(workshop.rows, plain := workshop.fresh("plain"))
    known = _Page((plain / "report.html").read_text(encoding="utf-8")).found
    while True:
        folder = workshop.fresh("at")
        (folder / "data").mkdir(parents=True)
        columns, rows = make_rows(random)
        path = folder / "data" / "rows.jsonl"
        path.write_bytes(_write_json_lines(columns, rows, random, "utf-8"))

        def attempt(folder: Path = folder, path: Path = path, rows: Any = rows) -> None:
            run(path, out := folder / "run")
            page = (out / "report.html").read_text(encoding="utf-8")
            new = {(tag, name) for tag, name in _Page(page).found - known if tag in TAGS or name[:2] == "on"}
            assert not new, f"tags that aren't the page's: {new}"
            for table in (*out.rglob("*.csv"),):
                check_cells(table)
            assert {path.name for path in folder.iterdir()} == {"data", "run"}, (
                "files beside the run's folder"
            )
            results = json.loads((out / "results.json").read_text(encoding="utf-8"))
            assert set(results["labels"]) <= {normalize(row[1]) for row in rows}, results["labels"]
            found = load_bundle(out / "arms" / "floor").predict([row[0] for row in rows])
            assert set(found) <= set(results["labels"]), found

        yield _keep(judge(attempt, "a run"), path)
        shutil.rmtree(folder)


def read_corrections(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Files of corrected labels: what is read has been applied, and nothing else is changed."""
    from embedtune.data.corrections import correct_labels
    from embedtune.data.dataset import TextDataset

    def read(path: Path, rows: list[list[str]] | None, dataset: TextDataset) -> None:
        found = correct_labels(dataset, path)
        assert set(found.labels) <= set(dataset.labels)
        if rows is None:
            return
        wanted = {int(float(row)): cell.strip() for row, cell, _ in rows if cell.strip()}
        kept = [n for n in range(20) if wanted.get(n) != "-"]
        assert found.row_ids == tuple(kept), found.row_ids
        named = [wanted.get(n, dataset.labels[n]) for n in kept]
        for label, name in zip(found.labels, named, strict=True):
            assert label in (name, name.removeprefix("'")), (label, name)

    while True:
        names = random.sample([name for name in LABELS if name != "-"], 2)
        dataset = TextDataset(tuple(f"text {n}" for n in range(20)), tuple(names * 10))
        spoilt = random.choice((0, 0, 0.1, 0.5))
        rows = []
        for n in random.sample(range(20), random.randrange(1, 12)):
            row = random.choice((str(n), str(n), f"{n}.0", f" {n}"))
            corrected = random.choice((*names, f"'{names[0]}", f" {names[1]} ", "", "-"))
            if random.random() < spoilt:
                row, corrected = random.choice(((make_cell(random), corrected), (row, make_cell(random))))
            rows.append([row, corrected, make_cell(random) if spoilt else random.choice(SENSIBLE)])
        path = workshop.folder / "suspects.csv"
        data = _write_delimited(["row", "corrected", "text"], rows, random, "utf-8", random.choice(",;\t"))
        for _ in range(random.choice((0, 0, 0, 0, 1))):
            data, spoilt = damage(data, random), 1
        path.write_bytes(data)
        told = None if spoilt else rows
        yield _keep(judge(lambda at=path, r=told, d=dataset: read(at, r, d), "corrections"), path)


def _keep(outcome: Outcome, path: Path) -> Outcome:
    """Add to a loss the file it came of, as far as it can be told."""
    if not outcome.lost:
        return outcome
    return outcome._replace(lost=f"{outcome.lost} <- {path.read_bytes()[:300]!r}")


# -- bombs: few, but of the right make


def read_bombs(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Large cells, deep JSON, files that grow when they are unpacked; memory held to 3 GB more than before."""
    import resource

    from embedtune.data.sources import load_dataset

    def read(path: Path) -> None:
        load_dataset(path, text_column="text", label_column="label")

    for name, data in _make_bombs():
        path = workshop.folder / f"bomb{name}"
        path.write_bytes(data)
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), before[1]))
        try:
            outcome = judge(lambda at=path: read(at), name)
        except MemoryError:
            outcome = Outcome("too much memory", name)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        yield outcome
        path.unlink()


def _make_bombs() -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    yield "-cell.csv", b"text,label\n" + b"a" * (50 << 20) + b",up\nb,down\n"
    yield "-quote.csv", b'text,label\n"' + b"a\n" * (10 << 20)
    yield "-deep.json", b"[" * 1_000_000
    yield "-deep.jsonl", b'{"text": ' + b"[" * 1_000_000 + b"\n"
    yield "-keys.jsonl", b"\n".join(b'{"k%d": 1, "text": "a", "label": "b"}' % n for n in range(20_000))
    yield "-columns.csv", ",".join(f"c{n}" for n in range(200_000)).encode() + b"\n1\n"
    out = io.BytesIO()
    pq.write_table(
        pa.table({"text": ["a" * 1_000_000] * 1_000, "label": ["up"] * 1_000}), out, compression="zstd"
    )
    yield "-dictionary.parquet", out.getvalue()
    yield "-zip.xlsx", _make_zip_bomb()


def _make_zip_bomb() -> bytes:
    """Return a workbook whose sheet takes 1 GB when it is unpacked."""
    import openpyxl

    out = io.BytesIO()
    openpyxl.Workbook().save(out)
    packed = io.BytesIO()
    with zipfile.ZipFile(out) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in whole.namelist():
            if name != "xl/worksheets/sheet1.xml":
                target.writestr(name, whole.read(name))
        with target.open("xl/worksheets/sheet1.xml", "w") as sheet:
            sheet.write(
                b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
            )
            row = b'<row><c t="inlineStr"><is><t>' + b"a" * (1 << 20) + b"</t></is></c></row>"
            for _ in range(1_000):
                sheet.write(row)
            sheet.write(b"</sheetData></worksheet>")
    return packed.getvalue()


# -- our parsers, byte by byte


def fuzz_readers(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Bytes that reach new lines of the readers, sought by atheris in a process of its own, a few seconds at a time."""
    from torture.fuzz import write_corpus

    if importlib.util.find_spec("atheris") is None:
        raise NotHere("atheris isn't installed")
    folder = workshop.fresh("fuzz")
    write_corpus(folder, random.randrange(1 << 30))
    source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    while True:
        command = [sys.executable, "-m", "torture.fuzz", str(folder), "4", str(random.randrange(1, 1 << 30))]
        found = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True,
            errors="replace", check=False,
        )  # fmt: skip
        lost = (
            (folder / "lost").read_text(encoding="utf-8").splitlines() if (folder / "lost").exists() else []
        )
        n_runs = re.search(r"Done (\d+) runs", found.stderr)
        if found.returncode or n_runs is None:
            lost.append(f"the process ended with {found.returncode}: {found.stderr[-1500:]}")
        for number in range(int(n_runs[1]) if n_runs else 1):
            yield Outcome("read or refused", lost[number] if number < len(lost) else "")
        (folder / "lost").unlink(missing_ok=True)


# -- settings


def read_recipes(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Recipes with lines changed, and settings on the command line."""
    from embedtune.config import build_experiment
    from embedtune.recipe import RECIPES_DIR, read_recipe

    shipped = [path.read_bytes() for path in sorted(RECIPES_DIR.glob("*.yaml"))]
    keys = ("fit.head", "embed.views", "embed.views.minilm.layers", "finetune", "seeds", "tasks", "backbones", "a.b.c",
            "name", "fit", "", ".", "..", "compare.arms", "prepare.max_rows", "embed.views.x")  # fmt: skip
    path = workshop.folder / "recipe.yaml"

    def read(overrides: list[str]) -> None:
        build_experiment(read_recipe(str(path)).resolve(overrides), where="recipe")

    while True:
        data = random.choice(shipped)
        for _ in range(random.choice((0, 1, 1, 3))):
            data = damage_line(data, random)
        path.write_bytes(data)
        overrides = [f"{random.choice(keys)}={make_value(random)}" for _ in range(random.choice((0, 1, 2)))]
        outcome = judge(lambda o=overrides: read(o), f"{overrides}")
        yield _keep(outcome, path)


def damage_line(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    piece = random.choice(PIECES).encode("utf-8", "surrogatepass")
    key, colon, _ = lines[at].partition(b":")
    lines[at] = random.choice((piece, key + colon + b" " + piece, b"  " + lines[at], lines[at] + piece, b""))
    if random.random() < 0.2:
        return damage(data, random)
    return b"\n".join(lines)


def make_value(random: Random) -> str:
    piece = random.choice(PIECES)
    return random.choice(
        (
            piece,
            f"[{piece}]",
            "{" + piece + ": " + piece + "}",
            "[" * 2000,
            "&a [*a]",
            "1",
            "-1",
            "1e400",
            ".nan",
            "null",
        )
    )


CASES = (
    Case("labelled tables, prepared", read_tables, 30_000),
    Case("tables labelled by a bundle", label_tables, 10_000),
    Case("runs on them, report and all", run_tables, 1_000),
    Case("recipes and settings", read_recipes, 30_000),
    Case("corrected labels", read_corrections, 10_000),
    Case("our readers, by atheris", fuzz_readers, 3_000_000),
    Case("bombs: large cells, deep JSON, what grows when unpacked", read_bombs, 8),
)
