"""predict_file and the command between standard streams, object stores, folders and patterns."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from typer.testing import CliRunner

from embedtune.classifier import EmbedClassifier
from embedtune.cli import app
from embedtune.data.places import find_inputs, find_place
from embedtune.embed.lexical import LexicalEncoder
from embedtune.errors import ConfigError, DataError
from embedtune.predict import job, predict_file
from embedtune.predict.parts import Parts

TEXTS = ["sales rose", "profit rose", "orders rose", "sales fell", "profit fell", "orders fell"]
LABELS = ["up"] * 3 + ["down"] * 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classifier = EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, LABELS)
    return classifier.save(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tables of several kinds, and files that are none."""
    top = tmp_path / "in"
    (top / "deep").mkdir(parents=True)
    frame = pd.DataFrame({"text": TEXTS, "n": range(6)})
    frame.to_csv(top / "b.csv", index=False)
    frame.to_json(top / "a.jsonl", orient="records", lines=True)
    frame.rename(columns={"n": "m"}).to_parquet(top / "deep" / "c.parquet")
    frame.to_feather(top / "deep" / "d.arrow")
    for name in ("README.txt", ".hidden.csv", "old.csv.rejected.jsonl"):
        (top / name).write_text("text\nx\n")
    (top / "x.csv.partial").mkdir()
    (top / "x.csv.partial" / "00000-000000.arrow").write_text("")
    return top


@pytest.mark.parametrize("scheme", ["memory", "file"])
@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet", "arrow"])
def test_predict_file_reads_and_writes_uris(
    bundle: Path, tmp_path: Path, memory: Any, scheme: str, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "WINDOW_TEXTS", 4)
    top = "memory://bucket" if scheme == "memory" else f"file://{tmp_path}"
    frame = pd.DataFrame({"text": [*TEXTS, None], "n": range(7)})
    data = io.BytesIO()
    {
        "csv": lambda: frame.to_csv(data, index=False),
        "jsonl": lambda: frame.to_json(data, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(data),
        "arrow": lambda: frame.to_feather(data),
    }[extension]()
    place = find_place(f"{top}/in.{extension}")
    place.fs.pipe_file(place.path, data.getvalue())
    done = predict_file(bundle, place.address, f"{top}/out.csv")
    assert (done.n_labelled, done.n_rejected) == (6, 1)
    assert done.rejected == (f"{top}/out.csv.rejected.jsonl",)
    found = pd.read_csv(io.BytesIO(find_place(f"{top}/out.csv").read_bytes()))
    assert found["prediction"].tolist() == LABELS
    assert found["n"].tolist() == list(range(6))
    left = {Path(path).name for path in place.fs.ls(str(Path(place.path).parent), detail=False)}
    assert left == {f"in.{extension}", "out.csv", "out.csv.rejected.jsonl"}


def test_stopped_call_goes_on_in_an_object_store(
    bundle: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "WINDOW_TEXTS", 2)
    memory.pipe_file("/bucket/in.csv", b"text\n" + "\n".join(TEXTS).encode())
    write, written = Parts.write, []

    def stop(self: Parts, *words: Any) -> None:
        write(self, *words)
        written.append(words[1])
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_file(bundle, "memory://bucket/in.csv", "memory://bucket/out.parquet")
    assert memory.exists("/bucket/out.parquet.partial/00000-000001.arrow")
    predict_file(bundle, "memory://bucket/in.csv", "memory://bucket/out.parquet")
    assert written == [0, 1, 2]
    assert pd.read_parquet(io.BytesIO(memory.cat("/bucket/out.parquet")))["prediction"].tolist() == LABELS
    assert not memory.exists("/bucket/out.parquet.partial")


def test_folder_to_a_folder_mirrors_names(bundle: Path, folder: Path, tmp_path: Path) -> None:
    assert predict_file(bundle, folder, tmp_path / "out").n_labelled == 24
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert found == {"a.jsonl", "b.csv", "deep/c.parquet", "deep/d.arrow.parquet"}
    assert pd.read_parquet(tmp_path / "out" / "deep" / "d.arrow.parquet")["prediction"].tolist() == LABELS
    with pytest.raises(DataError, match=r"a\.jsonl exists and is not written over"):
        predict_file(bundle, folder, tmp_path / "out")


def test_folder_to_a_file_holds_all_rows_in_order(bundle: Path, folder: Path, tmp_path: Path) -> None:
    with (folder / "b.csv").open("a") as file:
        file.write("too,many,cells\n")
    done = predict_file(bundle, folder, tmp_path / "out.parquet")
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert list(found.columns) == ["text", "n", "m", "prediction", "p:down", "p:up"]
    assert found["text"].tolist() == TEXTS * 4
    assert found["m"].dropna().tolist() == [0, 1, 2, 3, 4, 5]
    assert found["n"].dropna().tolist() == [str(n) for n in range(6)] * 3  # a csv among them has no numbers
    assert done.first_rejected == "row 7 (line 8) of b.csv: 3 cells where the header has 2"
    rejected = json.loads((tmp_path / "out.parquet.rejected.jsonl").read_text())
    assert rejected["file"] == "b.csv"


def test_pattern_takes_what_fits(bundle: Path, folder: Path, tmp_path: Path) -> None:
    inputs = find_inputs(f"{folder}/deep/*.*")
    assert [entry.relative for entry in inputs.files] == ["c.parquet", "d.arrow"]
    assert predict_file(bundle, f"{folder}/*.csv", f"{tmp_path}/out/").n_labelled == 6
    assert (tmp_path / "out" / "b.csv").exists()
    with pytest.raises(DataError, match="no file fits the pattern"):
        predict_file(bundle, f"{folder}/*.xlsx", tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nosuch://bucket/x.csv", "nosuch://bucket/x.csv: 'nosuch://' is no scheme that fsspec knows: give a path, or "
         "a URI such as s3:// or gs://."),
        ("memory://bucket/none.csv", "memory://bucket/none.csv doesn't exist: check the path"),
        ("/nowhere/x.csv", "/nowhere/x.csv doesn't exist: check the path"),
    ],
)  # fmt: skip
def test_inputs_that_are_not_there_are_one_line(
    bundle: Path, tmp_path: Path, address: str, message: str
) -> None:
    with pytest.raises(DataError) as error:
        predict_file(bundle, address, tmp_path / "out.csv")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_command_from_standard_input_to_standard_output(bundle: Path, form: str) -> None:
    frame = pd.DataFrame({"text": [*TEXTS, " "]})
    data = io.BytesIO()
    {
        "csv": lambda: frame.to_csv(data, index=False),
        "jsonl": lambda: frame.to_json(data, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(data),
    }[form]()
    words = ["predict", str(bundle), "-", "-o", "-", "--format", form]
    found = CliRunner().invoke(app, words, input=data.getvalue())
    assert found.exit_code == 0
    read = {
        "csv": pd.read_csv,
        "jsonl": lambda file: pd.read_json(file, lines=True),
        "parquet": pd.read_parquet,
    }[form]
    assert read(io.BytesIO(found.stdout_bytes))["prediction"].tolist() == LABELS
    line = {"csv": " (line 8)", "jsonl": " (line 7)", "parquet": ""}[form]
    assert found.stderr.splitlines()[-1] == (
        f"6 texts labelled: -; 1 rows rejected, first row 7{line} of standard input: no text"
    )


def test_command_says_what_was_done(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,sales rose\n2,\n")
    words = ["predict", str(bundle), str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.csv")]
    found = CliRunner().invoke(app, [*words, "--rejected", str(tmp_path / "bad.jsonl")])
    assert found.exit_code == 0
    assert found.stdout == (
        f"1 texts labelled: {tmp_path / 'out.csv'}; 1 rows rejected: {tmp_path / 'bad.jsonl'}\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-", "-o", "x.csv"], "standard input has no extension: say what it is with --format csv, say."),
        (["x.csv", "-o", "-", "--format", "xlsx"], "can't write '.xlsx' files (standard output)"),
    ],
)
def test_standard_streams_need_a_format(bundle: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "x.csv").write_text("text\nsales rose\n")
    words = [str(tmp_path / word) if word == "x.csv" else word for word in words]
    found = CliRunner().invoke(app, ["predict", str(bundle), *words], input=b"text\nsales rose\n")
    assert found.exit_code == 2
    assert message in found.stderr


def test_closed_standard_output_ends_quietly(bundle: Path, tmp_path: Path) -> None:
    pd.DataFrame({"text": TEXTS * 1000}).to_csv(tmp_path / "in.csv", index=False)
    command = [
        sys.executable,
        "-m",
        "embedtune",
        "predict",
        str(bundle),
        str(tmp_path / "in.csv"),
        "-o",
        "-",
        "--format",
    ]
    with subprocess.Popen([*command, "csv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"text,prediction,p:down,p:up\n"
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_touched_input_is_another(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a")
    before = find_place(path).stamp()
    os.utime(path, (time.time() + 5, time.time() + 5))
    assert find_place(path).stamp() != before


def test_rejected_path_is_for_one_output(bundle: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--rejected is one file, and the output a folder"):
        predict_file(bundle, folder, tmp_path / "out", rejected_path=tmp_path / "bad.jsonl")
