"""predict_file: pieces of a file give what the whole would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedtune import predict as module
from embedtune.classifier import EmbedClassifier
from embedtune.data.stream import open_table
from embedtune.embed.lexical import LexicalEncoder
from embedtune.errors import DataError
from embedtune.predict import predict_file

TEXTS = ["sales rose", "profit rose", "orders rose", "sales fell", "profit fell", "orders fell"]


@pytest.fixture(scope="module")
def classifier() -> EmbedClassifier:
    return EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, ["up"] * 3 + ["down"] * 3)


@pytest.fixture(scope="module")
def bundle(classifier: EmbedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier.save(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_TEXTS", 4)


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
    assert predict_file(bundle, source, output) == 10
    read = {
        "csv": pd.read_csv,
        "tsv": lambda path: pd.read_csv(path, sep="\t"),
        "jsonl": lambda path: pd.read_json(path, lines=True),
        "parquet": pd.read_parquet,
    }[extension]
    frame = read(output)
    assert list(frame.columns) == ["id", "text", "note", "prediction", "p:down", "p:up"]
    assert frame["id"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9.5, 10]
    assert frame["note"].dropna().tolist() == ["late"]
    assert frame["prediction"].isna().tolist() == [i == 3 for i in range(11)]
    kept = frame.drop(index=3)
    expected = classifier.predict_proba([str(text) for text in kept["text"]])
    np.testing.assert_allclose(kept[["p:down", "p:up"]].to_numpy(dtype=float), expected, atol=1e-9)
    assert kept["prediction"].tolist() == classifier.predict([str(text) for text in kept["text"]]).tolist()


def test_predict_file_broken_line_is_told_before_anything_is_written(bundle: Path, source: Path) -> None:
    with source.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=r"line 13 of rows\.jsonl isn't JSON"):
        predict_file(bundle, source, source.with_name("out.csv"))
    assert [path.name for path in source.parent.iterdir()] == ["rows.jsonl"]


def test_predict_file_bad_cell_is_named_by_its_row_in_the_file(bundle: Path, source: Path) -> None:
    with source.open("a", encoding="utf-8") as file:
        file.write('{"id": 11, "text": 7}\n')
    with pytest.raises(DataError, match="row 12"):
        predict_file(bundle, source, source.with_name("out.csv"))
    assert [path.name for path in source.parent.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_open_table_reads_json_lines_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "Ertrag fällt"}\r\n{"text": "steigt"}\r\n'.encode(encoding))
    table = open_table(path)
    pieces: Iterator[pd.DataFrame] = table.read(1)
    assert (table.columns, table.n_rows) == (("text",), 2)
    assert [frame["text"].tolist() for frame in pieces] == [["Ertrag fällt"], ["steigt"]]
