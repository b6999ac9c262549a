"""Hostile data: files, recipes, settings, corrections. Only `EmbedtuneError`, in one line, in bounded time."""

from __future__ import annotations

import csv
import io
import json
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from torture.runner import Case, Outcome
from torture.workshop import Workshop

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


def make_table(suffix: str, random: Random) -> bytes:
    """Return a table of that format, of hostile cells, often damaged."""
    n_rows = random.choice((0, 1, 2, 5, 12, 60))
    columns = (
        ["text", "label"]
        if random.random() < 0.7
        else [random.choice(PIECES) for _ in range(random.randrange(4))]
    )
    rows = [[make_cell(random) for _ in columns] for _ in range(n_rows)]
    if columns == ["text", "label"] and random.random() < 0.5:  # enough of two classes to be split
        rows = [[f"{text} {n}", random.choice(("up", "down"))] for n, (text, _) in enumerate(rows)]
    try:
        data = WRITERS[suffix](columns, rows, random)
    except Exception:  # no such file can be written
        data = random.randbytes(random.randrange(200))
    for _ in range(random.choice((0, 0, 0, 1, 1, 3))):
        data = damage(data, random)
    return data


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


def _encode(text: str, random: Random) -> bytes:
    encoding = random.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1", "utf-32"))
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def _write_delimited(columns: list[str], rows: list[list[str]], random: Random, delimiter: str) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=random.choice((0, 1))).writerows([columns, *rows])
    return _encode(out.getvalue(), random)


def _make_value(cell: str, random: Random) -> str:
    """Return a JSON value: mostly the cell as a string, at times something else, or deeply nested."""
    if random.random() < 0.1:
        return random.choice(
            ("null", "1", "-0.0", "1e400", "NaN", "true", "9" * 5000, json.dumps({"a": cell}))
        )
    depth = random.choice((3, 900, 60_000)) if random.random() < 0.02 else 0
    return "[" * depth + json.dumps(cell) + "]" * depth


def _write_json_lines(columns: list[str], rows: list[list[str]], random: Random) -> bytes:
    lines = []
    for row in rows:
        cells = zip(columns, row, strict=True)
        lines.append("{" + ", ".join(f"{json.dumps(c)}: {_make_value(v, random)}" for c, v in cells) + "}")
    return _encode("\n".join(lines), random)


def _write_json(columns: list[str], rows: list[list[str]], random: Random) -> bytes:
    lines = _write_json_lines(columns, rows, Random(random.random())).decode("utf-8", "replace")
    return _encode("[" + lines.replace("\n", ",\n") + "]", random)


def _write_lines(columns: list[str], rows: list[list[str]], random: Random) -> bytes:
    return _encode("\n".join(random.choice("@@ ").join(row) for row in rows), random)


def _write_workbook(columns: list[str], rows: list[list[str]], random: Random) -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    for row in [columns, *rows]:
        book.active.append(row)
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


def _write_parquet(columns: list[str], rows: list[list[str]], random: Random) -> bytes:
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(_write_arrow_table(columns, rows, random), out)
    return out.getvalue()


def _write_arrow(columns: list[str], rows: list[list[str]], random: Random) -> bytes:
    import pyarrow as pa

    table, out = _write_arrow_table(columns, rows, random), io.BytesIO()
    with random.choice((pa.ipc.new_file, pa.ipc.new_stream))(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


WRITERS: dict[str, Callable[[list[str], list[list[str]], Random], bytes]] = {
    ".csv": lambda c, r, random: _write_delimited(c, r, random, random.choice(",;|\t")),
    ".tsv": lambda c, r, random: _write_delimited(c, r, random, "\t"),
    ".jsonl": _write_json_lines,
    ".json": _write_json,
    ".txt": _write_lines,
    ".xlsx": _write_workbook,
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
}


def read_tables(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Labelled tables, as `--data` takes them, prepared and split."""
    from embedtune.data.prepare import prepare_splits
    from embedtune.data.sources import load_dataset

    while True:
        suffix = random.choice(SUFFIXES)
        path = workshop.folder / f"table{suffix}"
        path.write_bytes(make_table(suffix, random))
        named = {} if random.random() < 0.5 else {"text_column": "text", "label_column": "label"}
        outcome = judge(lambda at=path, n=named: prepare_splits(load_dataset(at, **n)), f"{suffix}")
        yield _keep(outcome, path)


def stream_tables(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Tables to be labelled, read in pieces; a row that is none is put aside, and rows in and out are as many."""
    from embedtune.data.places import find_place
    from embedtune.data.stream import open_table

    def read(path: Path) -> None:
        for piece in open_table(find_place(path), piece_rows=4).read():
            repr(piece)

    while True:
        suffix = random.choice(SUFFIXES)
        path = workshop.folder / f"stream{suffix}"
        path.write_bytes(make_table(suffix, random))
        yield _keep(judge(lambda at=path: read(at), suffix), path)


def read_corrections(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Files of corrected labels."""
    from embedtune.data.corrections import correct_labels
    from embedtune.data.dataset import TextDataset

    dataset = TextDataset(tuple(f"text {n}" for n in range(20)), ("up", "down") * 10)
    while True:
        rows = [
            [random.choice((str(random.randrange(25)), make_cell(random))), make_cell(random)]
            for _ in range(5)
        ]
        path = workshop.folder / "suspects.csv"
        path.write_bytes(_write_delimited(["row", "corrected"], rows, random, ","))
        yield _keep(judge(lambda at=path: correct_labels(dataset, at), "corrections"), path)


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
    Case("tables to be labelled, in pieces", stream_tables, 30_000),
    Case("recipes and settings", read_recipes, 30_000),
    Case("corrected labels", read_corrections, 10_000),
    Case("bombs: large cells, deep JSON, what grows when unpacked", read_bombs, 8),
)
