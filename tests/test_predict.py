"""predict_file: pieces of a file give what the whole would, with the columns asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedtune.classifier import EmbedClassifier
from embedtune.data.places import find_place
from embedtune.data.stream import open_table
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.lexical import LexicalEncoder
from embedtune.errors import ConfigError, DataError
from embedtune.heads.calibration import find_sets
from embedtune.predict import job, predict_file
from embedtune.predict.labels import Labeller
from embedtune.predict.output import disarm_cell

TEXTS = ["sales rose", "profit rose", "orders rose", "sales fell", "profit fell", "orders fell"]
READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "csv": pd.read_csv,
    "tsv": lambda path: pd.read_csv(path, sep="\t"),
    "jsonl": lambda path: pd.read_json(path, lines=True),
    "parquet": pd.read_parquet,
}


@pytest.fixture(scope="module")
def classifier() -> EmbedClassifier:
    return EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, ["up"] * 3 + ["down"] * 3)


@pytest.fixture(scope="module")
def bundle(classifier: EmbedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier.save(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "WINDOW_TEXTS", 4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eleven rows: keys that come late, one without a text, a number that is an integer here and a fraction there."""
    rows: list[dict[str, object]] = [{"id": i, "text": f"{TEXTS[i % 6]} again {i}"} for i in range(11)]
    rows[3]["text"] = None
    rows[5]["note"] = "late"
    rows[9]["id"] = 9.5
    rows[10]["text"] = "2024"
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
def test_predict_file_in_pieces_gives_what_the_whole_would(
    bundle: Path, classifier: EmbedClassifier, source: Path, extension: str
) -> None:
    output = source.with_name(f"out.{extension}")
    done = predict_file(bundle, source, output)
    assert (done.n_labelled, done.n_rejected, done.n_cut) == (10, 1, 0)
    assert done.first_rejected == "row 4 (line 4) of rows.jsonl: no text"
    frame = READERS[extension](output)
    assert list(frame.columns) == ["id", "text", "note", "prediction", "p:down", "p:up"]
    assert frame["id"].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9.5, 10]
    assert frame["note"].dropna().tolist() == ["late"]
    texts = [str(text) for text in frame["text"]]
    expected = classifier.predict_proba(texts)
    np.testing.assert_allclose(frame[["p:down", "p:up"]].to_numpy(dtype=float), expected, atol=1e-9)
    assert frame["prediction"].tolist() == classifier.predict(texts).tolist()
    names = {path.name for path in source.parent.iterdir()}
    assert names == {"rows.jsonl", f"out.{extension}", f"out.{extension}.rejected.jsonl"}


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_predict_file_sets_and_abstentions_are_those_of_the_probabilities(
    bundle: Path, classifier: EmbedClassifier, source: Path, extension: str
) -> None:
    output = source.with_name(f"out.{extension}")
    predict_file(bundle, source, output, coverage=0.8, abstain_cost=0.25)
    frame = READERS[extension](output)
    texts = [str(text) for text in frame["text"]]
    probabilities = classifier.predict_proba(texts)
    sets = classifier.predict_sets(texts, coverage=0.8)
    assert classifier.calibrator_ is not None
    sizes = find_sets(probabilities, classifier.calibrator_.find_threshold(0.8)).sum(axis=1)
    found = [cell.split(" | ") if isinstance(cell, str) else list(cell) for cell in frame["set"]]
    assert found == sets
    assert [len(cell) for cell in found] == sizes.tolist()
    assert frame["abstain"].tolist() == (probabilities.max(axis=1) < 0.75).tolist()


def test_predict_file_abstains_below_a_probability(bundle: Path, source: Path) -> None:
    output = source.with_name("out.csv")
    predict_file(bundle, source, output, abstain_below=0.999)
    frame = pd.read_csv(output)
    assert frame["abstain"].tolist() == (frame[["p:down", "p:up"]].max(axis=1) < 0.999).tolist()
    assert set(frame["abstain"]) == {True, False}


def test_predict_file_refuses_sets_without_a_calibrator(source: Path, tmp_path: Path) -> None:
    plain = EmbedClassifier([LexicalEncoder()], "logistic", calibration="none")
    plain.fit(TEXTS, ["up"] * 3 + ["down"] * 3).save(tmp_path / "plain")
    with pytest.raises(ConfigError, match="no out-of-fold rows to take sets from"):
        predict_file(tmp_path / "plain", source, tmp_path / "out.csv", coverage=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"abstain_below": 0.6, "abstain_cost": 0.3},
            "--abstain-below and --abstain-cost say the same in two ways: give one of them.",
        ),
        ({"coverage": 1.5}, "--coverage 1.5 is out of range: give a number between 0 and 1."),
        ({"abstain_below": -1}, "--abstain-below -1 is out of range: give a number between 0 and 1."),
        (
            {"format": "csv"},
            "--format is for standard input and output (-): files are what their extension says.",
        ),
    ],
)
def test_predict_file_wrong_options_are_one_line(
    bundle: Path, source: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        predict_file(bundle, source, source.with_name("out.csv"), **options)
    assert str(error.value) == message


def test_predict_file_keeps_parquet_types_and_pandas_index(bundle: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "text": pd.Categorical(TEXTS),
            "when": pd.date_range("2024-01-01", periods=6, tz="UTC"),
            "list": [[1, 2]] * 6,
            "bytes": [b"\xff"] * 6,
            "n": pd.array([1, None, 3, 4, 5, 6], dtype="Int64"),
        },
        index=pd.Index(range(10, 16), name="key"),
    )
    frame.to_parquet(tmp_path / "in.parquet")
    predict_file(bundle, tmp_path / "in.parquet", tmp_path / "out.parquet")
    found = pd.read_parquet(tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(found[["when", "n"]], frame[["when", "n"]])
    assert found["bytes"].tolist() == frame["bytes"].tolist()
    assert [list(cell) for cell in found["list"]] == frame["list"].tolist()
    assert found["text"].tolist() == TEXTS
    assert found["prediction"].tolist() == ["up"] * 3 + ["down"] * 3
    for extension in ("csv", "jsonl"):
        predict_file(bundle, tmp_path / "in.parquet", tmp_path / f"out.{extension}")
        again = READERS[extension](tmp_path / f"out.{extension}")
        assert again["text"].tolist() == TEXTS
        assert pd.to_datetime(again["when"]).tolist() == frame["when"].tolist()
        assert again["bytes"].tolist() == ["/w=="] * 6
        assert again["n"].isna().tolist() == frame["n"].isna().tolist()


def test_predict_file_jsonl_with_mixed_columns_becomes_parquet(bundle: Path, tmp_path: Path) -> None:
    cells: list[Any] = [1, "a", None, 2.5, [1, "x"], {"k": None}, True, 10**30, "\ud800", float("nan")]
    rows = [
        {"text": TEXTS[i % 6], "any": cell, "lists": [i, i + 1], "big": 2**60 + i}
        for i, cell in enumerate(cells)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict_file(bundle, tmp_path / "in.jsonl", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["any"].to_pylist() == [
        "1", "a", None, "2.5", '[1, "x"]', '{"k": null}', "true", str(10**30), "?", None
    ]  # fmt: skip
    assert table["lists"].to_pylist() == [[i, i + 1] for i in range(10)]
    assert table["big"].to_pylist() == [2**60 + i for i in range(10)]
    predict_file(bundle, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["any"] for line in lines] == [*cells[:-1], None]


@pytest.mark.parametrize("make", ["file", "stream"])
def test_predict_file_reads_arrow_files_and_streams(bundle: Path, tmp_path: Path, make: str) -> None:
    table = pa.table({"text": TEXTS * 3, "id": range(18)})
    opened = pa.ipc.new_file if make == "file" else pa.ipc.new_stream
    with pa.OSFile(str(tmp_path / "in.arrow"), "wb") as file, opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    assert predict_file(bundle, tmp_path / "in.arrow", tmp_path / "out.parquet").n_labelled == 18
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == list(range(18))


def test_predict_file_reads_a_workbook_whole(bundle: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS, "when": pd.date_range("2024-01-01", periods=6)})
    frame.to_excel(tmp_path / "in.xlsx", index=False)
    predict_file(bundle, tmp_path / "in.xlsx", tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["prediction"].tolist() == ["up"] * 3 + ["down"] * 3
    assert pd.to_datetime(found["when"]).tolist() == frame["when"].tolist()


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=1+1", "'=1+1"), ("+cmd", "'+cmd"), ("-cmd|' /C calc'!A0", "'-cmd|' /C calc'!A0"), ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"), ("\r=1", "'\r=1"), ("-5.3", "-5.3"), ("+1e-4", "+1e-4"), ("-12 %", "-12 %"),
        ("-1,000.5", "-1,000.5"), ("a=b", "a=b"), ("", ""), ("-", "'-"), ("-1+1|x", "'-1+1|x"),
    ],
)  # fmt: skip
def test_disarm_cell_leaves_numbers_and_texts(cell: str, shown: str) -> None:
    assert disarm_cell(cell) == shown


def test_predict_file_disarms_formulas_in_csv_only(bundle: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"=name": ["=1+1", "-5", "x\ry"], "text": ["@up rose", "-sales fell", "+1"]})
    frame.to_csv(tmp_path / "in.csv", index=False, lineterminator="\r\n", quoting=1)
    predict_file(bundle, tmp_path / "in.csv", tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv", dtype=str, lineterminator="\n")
    assert found["'=name"].tolist() == ["'=1+1", "-5", "x\ny"]
    assert found["text"].tolist() == ["'@up rose", "'-sales fell", "+1"]
    predict_file(bundle, tmp_path / "in.csv", tmp_path / "raw.tsv", raw_cells=True)
    assert pd.read_csv(tmp_path / "raw.tsv", sep="\t", dtype=str)["=name"].tolist() == ["=1+1", "-5", "x\ny"]
    predict_file(bundle, tmp_path / "in.csv", tmp_path / "out.parquet")
    assert pd.read_parquet(tmp_path / "out.parquet")["=name"].tolist() == ["=1+1", "-5", "x\ny"]


def test_predict_file_counts_texts_longer_than_a_backbone_reads(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = TransformerEncoder(tiny_bert, max_length=16)
    long = "sales rose " * 40
    classifier = EmbedClassifier([encoder, LexicalEncoder()], "logistic").fit(
        TEXTS, ["up"] * 3 + ["down"] * 3
    )
    classifier.save(tmp_path / "bundle")
    texts = ["sales rose", long, "x" * 30, long, "profit fell", long]
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "in.csv", index=False)
    done = predict_file(tmp_path / "bundle", tmp_path / "in.csv", tmp_path / "out.csv")
    n_tokens = [len(encoder._describe().tokenizer(text)["input_ids"]) for text in texts]
    assert done.n_cut == sum(n > 16 for n in n_tokens) >= 3
    assert classifier.find_cut(texts).tolist() == [n > 16 for n in n_tokens]
    split = TransformerEncoder(tiny_bert, max_length=16, long_texts="split")
    assert not split.find_cut(texts).any()


def test_labeller_runs_a_text_once_within_its_memory(classifier: EmbedClassifier) -> None:
    run: list[list[str]] = []

    class Watched:
        classes_ = classifier.classes_
        decide = classifier.decide

        def predict_proba(self, texts: list[str]) -> Any:
            run.append(list(texts))
            return classifier.predict_proba(texts)

        find_cut = classifier.find_cut

    labeller = Labeller(Watched(), memory_bytes=3 * (8 * 2 + 250))  # type: ignore[arg-type]
    first = labeller.label(["a", "b", "a", "c"])
    labeller.label(["a", "d"])  # b is the one that was not asked for the longest
    labeller.label(["b", "c", "d", "a"])
    assert run == [["a", "b", "c"], ["d"], ["b"]]
    np.testing.assert_array_equal(first.probabilities[0], first.probabilities[2])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_open_table_reads_json_lines_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "Ertrag fällt"}\r\n{"text": "steigt"}\r\n'.encode(encoding))
    table = open_table(find_place(path), piece_rows=1)
    assert (table.schema.names, table.n_rows) == (["text"], 2)
    cells = [piece.table["text"].to_pylist() for piece in table.read()]
    assert cells == [['"Ertrag fällt"'], ['"steigt"']]


def test_predict_file_existing_output_is_not_written_over(bundle: Path, source: Path) -> None:
    with pytest.raises(DataError) as error:
        predict_file(bundle, source, source)
    assert str(error.value) == f"{source} exists and is not written over: choose another -o, or delete it."
