"""Rows that are none: broken, undecodable, without a text. They are set aside and counted; the others are labelled."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embedtune.classifier import EmbedClassifier, load_bundle
from embedtune.data.lines import Lines, look_through
from embedtune.data.places import find_place
from embedtune.data.records import read_csv_records, read_header
from embedtune.embed.lexical import LexicalEncoder
from embedtune.errors import DataError, EmbedtuneError
from embedtune.predict import Predicted, job, predict_file

TEXTS = ["sales rose", "profit rose", "orders rose", "sales fell", "profit fell", "orders fell"]
Label = Callable[..., Predicted]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classifier = EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, ["up"] * 3 + ["down"] * 3)
    return classifier.save(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture
def label(bundle: Path, tmp_path: Path) -> Label:
    """Write a file of that name and content, label it, and return what was done; the output is out.EXTENSION."""

    def run(name: str, content: str | bytes, *, output: str = "out.jsonl", **options: Any) -> Predicted:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(data)
        return predict_file(bundle, tmp_path / name, tmp_path / output, **options)

    return run


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def read_rejected(folder: Path) -> list[tuple[int, int, str]]:
    return [
        (row["row"], row["line"], row["reason"]) for row in read_rows(folder / "out.jsonl.rejected.jsonl")
    ]


def test_csv_rows_that_are_broken_are_set_aside(label: Label, tmp_path: Path) -> None:
    content = (
        b"id,text\r\n"
        b'1,"sales rose,\r\nand rose"\r\n'
        b"2,profit rose,3\r\n"
        b"3\r\n"
        b"4,   \r\n"
        b"\r\n"
        b'5,"quote never closed\r\n'
        b'6,"orders fell"\r\n'
        b"7,broken \xff byte\r\n"
        b"8,caf\xc3\xa9\r\n"
        b"9,th\xc3\xa9\r\n"
        b"10,nul \0 here\r\n"
        b"11,last row"
    )
    done = label("in.csv", content)
    assert [(row["id"], row["text"]) for row in read_rows(tmp_path / "out.jsonl")] == [
        ("1", "sales rose,\nand rose"), ("6", "orders fell"), ("8", "café"), ("9", "thé"), ("11", "last row")
    ]  # fmt: skip
    assert read_rejected(tmp_path) == [
        (2, 4, "3 cells where the header has 2"),
        (3, 5, "1 cell where the header has 2"),
        (4, 6, "no text"),
        (5, 8, "a quote in the wrong place"),
        (7, 10, "the row isn't in encoding 'utf-8'"),
        (10, 13, "a NUL character in the text"),
    ]
    assert (done.n_labelled, done.n_rejected) == (5, 6)
    assert read_rows(tmp_path / "out.jsonl.rejected.jsonl")[4]["content"] == "7,broken \\udcff byte"


def test_jsonl_rows_that_are_broken_are_set_aside(
    label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "WINDOW_TEXTS", 4)
    lines = [
        b'{"id": 1, "text": "sales rose"}',
        b"{broken",
        b'["sales rose"]',
        b'{"id": 4}',
        b'{"id": 5, "text": 7}',
        b'{"id": 6, "text": ["a"]}',
        b'{"id": 7, "text": "\\ud800"}',
        b'{"id": 8, "text": "\xff\xfe"}',
        b'{"id": ' + b"9" * 5000 + b', "text": "x"}',
        b'{"id": 10, "text": "x", "p:up": 1}',
        b"[" * 100_000,
        b'{"id": 12, "text": "caf\xc3\xa9"}',
        b'{"id": 13, "text": "th\xc3\xa9"}',
        b'{"id": 14, "text": true}',
        b'{"id": 15, "text": NaN}',
    ]
    label("in.jsonl", b"\n".join(lines))
    assert [row["id"] for row in read_rows(tmp_path / "out.jsonl")] == [1, 12, 13]
    found = read_rejected(tmp_path)
    assert [row for row, _, _ in found] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15]
    digits = "the line isn't JSON (a number of more digits, or more nesting, than can be read)"
    assert [reason for _, _, reason in found] == [
        "the line isn't JSON (Expecting property name enclosed in double quotes, column 2)",
        "the line is a JSON list, not an object",
        "no text",
        "not a text but a number",
        "not a text but a list",
        "half a character (a lone surrogate) in the text",
        "the row isn't in encoding 'utf-8'",
        digits,
        "it has a 'p:up' of its own",
        digits,
        "not a text but true or false",
        "no text",
    ]


def test_parquet_rows_without_a_text_are_set_aside(label: Label, bundle: Path, tmp_path: Path) -> None:
    texts = pa.array([b"sales rose", b"\xff\xfe", None, b" "], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts, "id": [1, 2, 3, 4]}), tmp_path / "in.parquet")
    predict_file(bundle, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert [row["id"] for row in read_rows(tmp_path / "out.jsonl")] == [1]
    rejected = read_rows(tmp_path / "out.jsonl.rejected.jsonl")
    reasons = ["half a character (a lone surrogate) in the text", "no text", "no text"]
    assert [(row["row"], row["reason"]) for row in rejected] == list(zip([2, 3, 4], reasons, strict=True))


def test_strict_names_the_first_row_before_anything_is_labelled(label: Label, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        label("in.csv", "id,text\n1,sales rose\n2,a,b\n", strict=True)
    assert str(error.value) == (
        "row 2 (line 3) of in.csv: 3 cells where the header has 2. Mend it, or leave out --strict to put such rows "
        "aside."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    assert label("good.csv", "id,text\n1,sales rose\n", strict=True).n_labelled == 1


def test_csv_cell_of_50_megabytes_costs_its_row_only(label: Label, tmp_path: Path) -> None:
    content = 'id,text\n1,sales rose\n2,"' + "long " * 10_000_000 + '"\n3,profit fell\n'
    assert label("in.csv", content).n_labelled == 2
    assert read_rejected(tmp_path) == [
        (2, 3, "a cell of more than 1,000,000 characters, or a quote that isn't closed")
    ]
    assert len((tmp_path / "out.jsonl.rejected.jsonl").read_text()) < 1000


def test_line_longer_than_is_held_costs_its_row_only(
    label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedtune.data.lines.MAX_LINE_CHARACTERS", 100)
    label("in.csv", "id,text\n1,sales rose\n2," + "x" * 950 + "\n3,profit fell\n")
    assert [row["id"] for row in read_rows(tmp_path / "out.jsonl")] == ["1", "3"]
    assert [row for row, _, _ in read_rejected(tmp_path)] == [2]


def test_csv_quotes_are_found_as_in_training(label: Label, tmp_path: Path) -> None:
    label("in.tsv", 'id\ttext\n1\the said "sell\n2\t"sales" rose\n3\t"profit fell\n')
    assert [row["text"] for row in read_rows(tmp_path / "out.jsonl")] == [
        'he said "sell', '"sales" rose', '"profit fell'
    ]  # fmt: skip


def test_read_header_quote_open_at_a_samples_end_says_nothing() -> None:
    sample = 'text,id\n"a, b",1\n"c\nd",2\n"e\n'
    header = read_header(sample, is_part=True, delimiters=(",", ";"))
    assert header is not None
    assert header == ({"delimiter": ",", "strict": True}, ["text", "id"])


def test_read_csv_records_goes_on_behind_an_open_quote() -> None:
    lines = Lines(io.StringIO('"a,1\nb,2\nc,3\n'), name="x", encoding="utf-8")
    records = list(read_csv_records(lines, {"delimiter": ",", "strict": True}, n_cells=2))
    assert [(record.row, record.line, record.cells) for record in records] == [
        (1, 1, None), (2, 2, ["b", "2"]), (3, 3, ["c", "3"])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"plain\n", "utf-8"),
        ("ü\nü\n".encode() + b"\xfc\n", "utf-8"),
        (b"\xfc\n\xfc\nplain", "cp1252"),
        ("ü".encode("utf-16"), "utf-16"),
        ("ü".encode("utf-8-sig"), "utf-8-sig"),
        (b"x" * (1 << 20) + "ü\n".encode(), "utf-8"),
        (b"x" * ((1 << 20) - 1) + "ü".encode(), "utf-8"),
    ],
)
def test_look_through_finds_what_most_lines_are_in(tmp_path: Path, data: bytes, encoding: str) -> None:
    (tmp_path / "x.csv").write_bytes(data)
    assert look_through(find_place(tmp_path / "x.csv")).encoding == encoding


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", b"", "in.csv has no rows: it is empty."),
        ("in.csv", b"\n \n", "in.csv has no rows: it is empty."),
        ("in.csv", b"id,text\n", "in.csv has no rows: give a file with a header and at least one row."),
        ("in.jsonl", b"\n\n", "in.jsonl has no rows: give a file with a header and at least one row."),
        ("in.jsonl", b"{\n", "line 1 of in.jsonl: the line isn't JSON (Expecting property name enclosed in double "
         "quotes, column 2). Give one object per line."),
        ("in.csv", b"text,id,text\na,1,b\n", "in.csv has two columns called 'text': rename one."),
        ("in.csv", b"text,prediction\na,1\n",
         "in.csv already has the column 'prediction': rename it, since the output adds one."),
        ("in.csv", b"a,b\n1,2\n",
         "in.csv has no column that is plainly the text. Its columns: 'a', 'b'. Name one with text_column."),
        ("in.csv", b"text\n" + "sales".encode("utf-16-le"),
         "in.csv holds NUL characters (the first in line 2), so it isn't a text file in the encoding read: save it "
         "as UTF-8 or name its encoding (encoding='utf-16', say)."),
        ("in.csv", b"text,id\n5,a\n6,b\n",
         "column 'text' of in.csv holds nothing but numbers. Name the column of texts with text_column."),
        ("in.parquet", b"PAR1", None),
        ("in.arrow", b"ARROW1", None),
        ("in.foo", b"", None),
    ],
)  # fmt: skip
def test_files_that_are_none_are_one_line(
    label: Label, tmp_path: Path, name: str, content: bytes, message: str | None
) -> None:
    with pytest.raises(DataError) as error:
        label(name, content)
    assert message in (str(error.value), None)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_parquet_column_of_numbers_is_no_text(bundle: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match=r"column 'text' of in\.parquet is of type int64, not text"):
        predict_file(bundle, tmp_path / "in.parquet", tmp_path / "out.csv")


CELL = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(categories=["Cs", "Cc", "Po", "Sm"]), max_size=8),
    st.sampled_from(
        ["=1+1", "+2", "-3", "@x", '"', '""', "a\nb", "a\r\nb", "\0", ",", "\t=", "'", "\ufeff", "sales rose"]
    ),
)
VALUE = st.recursive(
    st.one_of(CELL, st.none(), st.booleans(), st.integers(), st.integers(2**62, 2**80), st.floats()),
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(CELL, inside, max_size=2),
    max_leaves=3,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(
    st.lists(st.tuples(CELL, CELL), min_size=120, max_size=160),
    st.sampled_from(["csv", "tsv", "jsonl", "parquet"]),
)
def test_fuzzed_csv_is_labelled_or_rejected(
    bundle: Path, tmp_path_factory: Any, rows: Any, output: str
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows([("text", "other"), ("sales rose", "x"), *rows])
    (folder / "in.csv").write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    check_fuzzed(bundle, folder, "csv", output)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(st.lists(st.dictionaries(st.sampled_from(["text", "a", "b"]), VALUE), min_size=120, max_size=160),
       st.sampled_from(["csv", "jsonl", "parquet"]))  # fmt: skip
def test_fuzzed_jsonl_is_labelled_or_rejected(
    bundle: Path, tmp_path_factory: Any, rows: Any, output: str
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    lines = [json.dumps(row) for row in [{"text": "sales rose"}, *rows]]
    (folder / "in.jsonl").write_text("\n".join(lines))
    done = check_fuzzed(bundle, folder, "jsonl", output)
    if done is not None:
        assert done.n_labelled + done.n_rejected == len(lines)


@functools.lru_cache
def load_once(bundle: Path, *, device: str) -> EmbedClassifier:
    return load_bundle(bundle, device=device)


def check_fuzzed(bundle: Path, folder: Path, source: str, output: str) -> Predicted | None:
    """Label a file under two sizes of pieces, and read the output back."""
    found = []
    for n_rows in (50, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "WINDOW_TEXTS", n_rows)
            patch.setattr(job, "load_bundle", load_once)
            path = folder / f"out{n_rows}.{output}"
            try:
                done = predict_file(bundle, folder / f"in.{source}", path, text_column="text")
            except EmbedtuneError as error:
                assert "\n" not in str(error)
                return None
        rejected = folder / f"{path.name}.rejected.jsonl"
        n_rejected = len(read_rows(rejected)) if done.n_rejected else 0
        read = {
            "csv": lambda path: pd.read_csv(path, dtype=str, lineterminator="\n", engine="c"),
            "tsv": lambda path: pd.read_csv(path, dtype=str, sep="\t", lineterminator="\n"),
            # half a surrogate is no string to Arrow
            "jsonl": lambda path: pd.DataFrame(read_rows(path), dtype=object),
            "parquet": pd.read_parquet,
        }[output]
        frame = read(path)
        assert (len(frame), n_rejected) == (done.n_labelled, done.n_rejected)
        assert frame["prediction"].isin(["up", "down"]).all()
        found.append((done.n_labelled, done.n_rejected, frame["prediction"].tolist()))
    assert found[0] == found[1]
    return done
