"""predict_file stopped at any moment goes on, and leaves what an undisturbed call does; memory stays flat."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from embedtune.classifier import EmbedClassifier
from embedtune.cli import app
from embedtune.data.places import Place
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.lexical import LexicalEncoder
from embedtune.errors import DataError, ResourceError
from embedtune.predict import job, predict_file
from embedtune.predict.labels import Labeller
from embedtune.predict.parts import Parts

TEXTS = ["sales rose", "profit rose", "orders rose", "sales fell", "profit fell", "orders fell"]

CHILD = """
import sys
from embedtune.predict import job
job.WINDOW_TEXTS = int(sys.argv[1])
job.predict_file(*sys.argv[2:5])
"""

WATCH = """
import resource, sys
from embedtune.predict import predict_file
for source, output in (sys.argv[2:4], sys.argv[4:6]):
    done = predict_file(sys.argv[1], source, output)
    print(done.n_labelled, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


class Stopped(Exception):
    """Stands for a process's end."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classifier = EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, ["up"] * 3 + ["down"] * 3)
    return classifier.save(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Forty rows, many of them alike, every seventh without a text."""
    rows = [{"id": i, "text": None if i % 7 == 6 else f"{TEXTS[i % 6]} {i % 9}"} for i in range(40)]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stop_after(monkeypatch: pytest.MonkeyPatch, n_parts: int) -> None:
    """Have the process end when so many parts are written."""
    written: list[int] = []
    write = Parts.write

    def count(self: Parts, *words: Any) -> None:
        write(self, *words)
        written.append(1)
        if len(written) == n_parts:
            raise Stopped

    monkeypatch.setattr(Parts, "write", count)


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("view", ["lexical", "transformer"])
def test_stopped_call_goes_on_to_the_same_bytes(
    tiny_bert: Path, tmp_path: Path, source: Path, view: str, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = LexicalEncoder() if view == "lexical" else TransformerEncoder(tiny_bert)
    bundle = (
        EmbedClassifier([encoder], "logistic").fit(TEXTS, ["up"] * 3 + ["down"] * 3).save(tmp_path / "bundle")
    )
    monkeypatch.setattr(job, "WINDOW_TEXTS", 8)
    whole, stopped = tmp_path / f"whole.{extension}", tmp_path / f"stopped.{extension}"
    done = predict_file(bundle, source, whole)
    run: list[int] = []
    find_cut = EmbedClassifier.find_cut
    for n_parts in (2, 1):
        with monkeypatch.context() as patch:
            stop_after(patch, n_parts)
            with pytest.raises(Stopped):
                predict_file(bundle, source, stopped)
        assert not stopped.exists()
    monkeypatch.setattr(
        EmbedClassifier, "find_cut", lambda self, texts: run.append(1) or find_cut(self, texts)
    )
    again = predict_file(bundle, source, stopped)
    assert len(run) <= 2
    assert again[:3] == done[:3]
    assert filecmp.cmp(whole, stopped, shallow=False)
    assert filecmp.cmp(f"{whole}.rejected.jsonl", f"{stopped}.rejected.jsonl", shallow=False)
    assert not (tmp_path / f"stopped.{extension}.partial").exists()


def test_known_answers_leave_the_memory_of_an_undisturbed_call(bundle: Path) -> None:
    from embedtune.classifier import load_bundle

    draw = random.Random(0)
    windows = [[f"{draw.choice(TEXTS)} {draw.randrange(30)}" for _ in range(20)] for _ in range(8)]
    first, second = (Labeller(load_bundle(bundle), memory_bytes=25 * 266) for _ in range(2))
    answers = [first.label(window) for window in windows]
    for window, known in zip(windows, answers, strict=True):
        found = second.label(window, known)
        np.testing.assert_array_equal(found.probabilities, known.probabilities)
    assert list(first._kept) == list(second._kept)


@pytest.mark.slow
def test_killed_process_leaves_parts_that_the_next_one_takes(bundle: Path, tmp_path: Path) -> None:
    source, whole, killed = tmp_path / "in.csv", tmp_path / "whole.csv", tmp_path / "killed.csv"
    draw = random.Random(1)
    frame = pd.DataFrame({"text": [f"{draw.choice(TEXTS)} {draw.randrange(4000)}" for _ in range(1200)]})
    frame.to_csv(source, index_label="id")
    command = [sys.executable, "-c", CHILD, "20", str(bundle), str(source)]
    subprocess.run([*command, str(whole)], check=True)
    n_parts, n_kills = 0, 0
    folder = tmp_path / "killed.csv.partial"
    for _ in range(2):
        enough = n_parts + draw.randrange(1, 25)
        with subprocess.Popen([*command, str(killed)]) as process:
            while process.poll() is None and len(list(folder.glob("*.arrow"))) < enough:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            n_kills += process.wait() == -signal.SIGKILL
        assert killed.exists() != folder.exists()
        n_parts = len(list(folder.glob("*.arrow")))
    assert n_kills == 2
    assert n_parts >= 2
    subprocess.run([*command, str(killed)], check=True)
    assert filecmp.cmp(whole, killed, shallow=False)
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "whole.csv", "killed.csv"}


@pytest.mark.parametrize(
    ("change", "said"),
    [("input", "another input"), ("settings", "other settings"), ("bundle", "another bundle")],
)
def test_other_input_bundle_or_settings_start_anew_and_say_so(
    bundle: Path,
    tmp_path: Path,
    source: Path,
    change: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    monkeypatch.setattr(job, "WINDOW_TEXTS", 8)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            predict_file(bundle, source, tmp_path / "out.csv")
    options: dict[str, Any] = {}
    if change == "input":
        with source.open("a") as file:
            file.write('{"id": 40, "text": "sales rose"}\n')
    elif change == "settings":
        options = {"coverage": 0.8}
    else:
        other = EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS, ["up", "down"] * 3)
        bundle = other.save(tmp_path / "other")
    predict_file(bundle, source, tmp_path / "out.csv", **options)
    assert caplog.messages == [f"{tmp_path / 'out.csv.partial'} is of {said}: starting anew."]
    predict_file(bundle, source, tmp_path / "fresh.csv", **options)
    assert filecmp.cmp(tmp_path / "out.csv", tmp_path / "fresh.csv", shallow=False)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff"])
def test_damaged_settings_start_anew(
    damage: bytes, bundle: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "WINDOW_TEXTS", 8)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            predict_file(bundle, source, tmp_path / "out.csv")
    (tmp_path / "out.csv.partial" / "settings.json").write_bytes(damage)
    predict_file(bundle, source, tmp_path / "out.csv")
    predict_file(bundle, source, tmp_path / "fresh.csv")
    assert filecmp.cmp(tmp_path / "out.csv", tmp_path / "fresh.csv", shallow=False)


def test_damaged_part_is_one_line(
    bundle: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "WINDOW_TEXTS", 8)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            predict_file(bundle, source, tmp_path / "out.csv")
    folder = tmp_path / "out.csv.partial"
    part = folder / "00000-000000.arrow"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(DataError) as told:
        predict_file(bundle, source, tmp_path / "out.csv")
    assert str(told.value) == f"{part} is damaged: delete {folder}, and give the command again."


def test_call_stopped_behind_its_end_is_finished_by_the_next(
    bundle: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "remove", lambda self: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            predict_file(bundle, source, tmp_path / "out.csv")
    before = (tmp_path / "out.csv").read_bytes()
    predict_file(bundle, source, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == before
    assert not (tmp_path / "out.csv.partial").exists()


def test_two_processes_do_not_write_one_output(bundle: Path, tmp_path: Path, source: Path) -> None:
    (tmp_path / "out.csv.partial").mkdir()
    with (
        FileLock(tmp_path / "out.csv.partial" / "lock"),
        pytest.raises(DataError, match="another process is writing"),
    ):
        predict_file(bundle, source, tmp_path / "out.csv")


def test_full_disk_is_one_line_and_keeps_what_is_finished(
    bundle: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "WINDOW_TEXTS", 8)
    write, n_written = Place.write_bytes, []

    def fill(self: Place, data: bytes) -> None:
        n_written.append(1)
        if len(n_written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "write_bytes", fill)
        with pytest.raises(ResourceError) as error:
            predict_file(bundle, source, tmp_path / "out.csv")
    assert str(error.value) == (
        f"the disk of '{tmp_path}' is full: free some space and give the same command again; what was finished is kept."
    )
    assert list((tmp_path / "out.csv.partial").glob("*.arrow"))
    assert predict_file(bundle, source, tmp_path / "out.csv").n_labelled == 35


@pytest.mark.parametrize("place", ["nowhere/out.csv", "in.jsonl/out.csv", "/proc/out.csv"])
def test_output_that_can_not_be_written_is_one_line(bundle: Path, source: Path, place: str) -> None:
    words = ["predict", str(bundle), str(source), "-o", str(source.parent / place)]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_memory_stays_flat_over_200_000_rows(bundle: Path, tmp_path: Path, extension: str) -> None:
    paths = []
    for n_rows in (20_000, 200_000):
        words = np.random.default_rng(0).integers(0, 3000, n_rows)
        texts = [f"{TEXTS[n % 6]} {n}" for n in words]
        table = pa.table({"id": np.arange(n_rows), "text": texts, "pad": ["x" * 200] * n_rows})
        source = tmp_path / f"{n_rows}.{extension}"
        if extension == "csv":
            table.to_pandas().to_csv(source, index=False)
        else:
            pq.write_table(table, source, row_group_size=n_rows, use_dictionary=False)
        paths += [source, tmp_path / f"out-{n_rows}.{extension}"]
    command = [sys.executable, "-c", WATCH, str(bundle), *map(str, paths)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found[::2] == ["20000", "200000"]
    small, large = int(found[1]), int(found[3])
    assert large - small < 150 << 20


@pytest.mark.parametrize("name", ["00000-000000.arrow", "00000-000001.jsonl"])
def test_changed_byte_of_a_part_is_one_line(
    name: str, bundle: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "WINDOW_TEXTS", 8)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            predict_file(bundle, source, tmp_path / "out.csv")
    folder = tmp_path / "out.csv.partial"
    part = min(folder.glob(f"*{Path(name).suffix}"))
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 1
    part.write_bytes(data)
    with pytest.raises(DataError) as told:
        predict_file(bundle, source, tmp_path / "out.csv")
    assert str(told.value) == f"{part} is damaged: delete {folder}, and give the command again."
    assert not (tmp_path / "out.csv").exists()
