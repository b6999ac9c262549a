"""Runs told to MLflow, TensorBoard and Weights & Biases: what arrives there, once, and what never does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedtune.data.splits import read_splits
from embedtune.errors import MissingExtraError
from embedtune.finetune.loop import Steering
from embedtune.trackers import About, Found, Link, open_links
from embedtune.trackers.secrets import hide_secrets
from run_cases import read_figures, write_recipe, write_rows
from test_run import call, list_times

SECRET = "sesame-0123456789"
SETTINGS = ("finetune.validation_fraction=0.2", f"finetune.instruction=Say {SECRET}. {{options}}")


def list_runs(uri: str) -> dict[str, Any]:
    """Return MLflow's runs by name, none of which is there twice."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    names = [run.info.run_name for run in runs]
    assert len(set(names)) == len(names)
    return dict(zip(names, runs, strict=True))


def read_history(uri: str, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [
        (point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, name)
    ]


def read_offline(path: Path) -> list[Any]:
    """Return the records of a W&B file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, records, part = path.read_bytes(), 7, [], b""
    while place < len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            records.append(record)
            part = b""
    return records


def read_sent(*folders: Path) -> bytes:
    return b"".join(path.read_bytes() for one in folders for path in one.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder, with a tracking URI in it, and a key in the environment."""
    folder = tmp_path_factory.mktemp("tracking")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("WANDB_MODE", "offline")
        Link("mlflow", folder).attempt(lambda: list_runs(make_uri(folder, "empty")))
        patch.setenv("OPENAI_API_KEY", SECRET)
        yield folder


def make_uri(folder: Path, name: str) -> str:
    """Return the address of a new MLflow database, a copy of one without runs: MLflow makes one in seconds."""
    path = folder / f"{name}.db"
    if name != "empty":
        shutil.copy(folder / "empty.db", path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def uri(place: Path) -> str:
    return make_uri(place, "mlflow")


@pytest.fixture(scope="module")
def recipe(tiny_bert: Path, place: Path) -> Path:
    rows = write_rows(place / "moves.csv")
    return write_recipe(place / "tiny.yaml", model=tiny_bert, data=rows, store=place / "store")


@pytest.fixture(scope="module")
def trainings(tiny_bert: Path) -> list[str]:
    """The tracked fine-tunings' names."""
    return [f"{tiny_bert.name}.tune+train-seed0", f"{tiny_bert.name}.tune-seed0"]


@pytest.fixture(scope="module")
def tracked(recipe: Path, place: Path, uri: str) -> Path:
    result = call("run", recipe, "--out", place / "run", "track=[mlflow,tensorboard,wandb]", *SETTINGS)
    assert result.exit_code == 0, result.output
    assert "the run goes on" not in result.output
    return place / "run"


@pytest.mark.slow
def test_mlflow_has_one_run_with_the_fine_tunings_nested_in_it(
    tracked: Path, uri: str, trainings: list[str]
) -> None:
    runs = list_runs(uri)
    assert sorted(runs) == [*trainings, "moves"]
    parent = runs["moves"]
    assert [runs[name].data.tags["mlflow.parentRunId"] for name in trainings] == [parent.info.run_id] * 2
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert parent.data.params["finetune.epochs"] == "3"
    assert parent.data.params["embed.views.bert.layers"] == "[-1, 1]"
    audit = json.loads((tracked / "data" / "audit.json").read_text())
    assert parent.data.params["data_fingerprint"] == audit["fingerprint"]
    assert runs[trainings[1]].data.params["learning_rate"] == "0.001"


def test_mlflow_has_the_figures_of_results_json(tracked: Path, uri: str) -> None:
    parent, results = list_runs(uri)["moves"], json.loads((tracked / "results.json").read_text())
    for arm, scores in results["arms"].items():
        name = arm.replace("+", "-plus")
        for metric in ("macro_f1", "accuracy", "log_loss", "calibration_error"):
            found = [parent.data.metrics[f"{name}/{metric}{end}"] for end in ("", "_low", "_high")]
            assert found == [scores[metric][key] for key in ("value", "low", "high")]
        assert parent.data.metrics.get(f"{name}/seconds") == scores["cost"]["seconds"]
        assert parent.data.metrics.get(f"{name}/joules") == scores["cost"]["joules"]
    assert parent.data.tags["verdict"] == results["verdict"]


def test_mlflow_has_each_epoch_of_a_fine_tuning(tracked: Path, uri: str, trainings: list[str]) -> None:
    runs = list_runs(uri)
    for name in trainings:
        facts = json.loads((tracked / "adapters" / name.replace(".", "/") / "finetune.json").read_text())
        expected = [(epoch["step"], epoch["macro_f1"]) for epoch in facts["history"]]
        assert read_history(uri, runs[name], "eval_macro_f1") == expected
        for metric in ("loss", "learning_rate"):
            assert [step for step, _ in read_history(uri, runs[name], metric)] == [
                step for step, _ in expected
            ]


def test_mlflow_has_results_report_and_settings_as_files(tracked: Path, uri: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    folder = Path(
        MlflowClient(uri).download_artifacts(list_runs(uri)["moves"].info.run_id, "", str(tmp_path))
    )
    assert {path.name for path in folder.iterdir()} == {"results.json", "report.html", "config.yaml"}
    sent = json.loads((folder / "results.json").read_text())
    assert sent == json.loads((tracked / "results.json").read_text())
    assert sent["verdict"].split(":")[0] in (folder / "report.html").read_text()


def test_tensorboard_has_the_same_figures_beside_the_adapters_curves(
    tracked: Path, trainings: list[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = json.loads((tracked / "results.json").read_text())
    events = EventAccumulator(str(tracked / "logs")).Reload()
    (point,) = events.Scalars("tuned/macro_f1")
    assert point.value == pytest.approx(results["arms"]["tuned"]["macro_f1"]["value"])
    curves = EventAccumulator(str(tracked / "adapters" / trainings[1].replace(".", "/") / "logs")).Reload()
    assert len(curves.Scalars("eval/macro_f1")) == 3


def test_wandb_has_a_run_for_the_results_and_one_for_each_fine_tuning_in_a_group(
    tracked: Path, place: Path, trainings: list[str]
) -> None:
    found: dict[str, list[Any]] = {}
    for path in place.glob("wandb/offline-run-*/*.wandb"):
        records = read_offline(path)
        (started,) = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
        found[started.display_name] = [started, *records]
    assert sorted(found) == [*trainings, "moves"]
    assert {started.run_group for started, *_ in found.values()} == {found["moves"][0].run_id}
    results = json.loads((tracked / "results.json").read_text())
    summary = {
        "/".join([update.key, *update.nested_key]): json.loads(update.value_json)
        for record in found["moves"][1:]
        for update in record.summary.update
    }
    assert summary["tuned/macro_f1"] == results["arms"]["tuned"]["macro_f1"]["value"]
    assert summary["verdict"] == results["verdict"]
    logged = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in found[trainings[1]][1:]
        if record.WhichOneof("record_type") == "history"
    ]
    facts = json.loads((tracked / "adapters" / trainings[1].replace(".", "/") / "finetune.json").read_text())
    scores = [row["eval/macro_f1"] for row in logged if "eval/macro_f1" in row]
    assert scores == [epoch["macro_f1"] for epoch in facts["history"]]


def test_no_text_and_no_key_is_sent(tracked: Path, place: Path) -> None:
    folders = [place / "mlruns", place / "wandb", tracked / "logs"]
    sent = read_sent(*folders) + (place / "mlflow.db").read_bytes()
    texts = [text.encode() for text in read_splits(tracked / "data").texts]
    assert any(text in (tracked / "report.html").read_bytes() for text in texts)
    assert not [text for text in texts if text in sent]
    assert SECRET.encode() in (tracked / "config.yaml").read_bytes()
    assert SECRET.encode() not in sent
    assert b"Say \xe2\x80\xa6. {options}" in sent


def test_second_call_sends_nothing_again_and_redoes_nothing(
    recipe: Path, tracked: Path, place: Path, uri: str
) -> None:
    before, times, n_offline = list_runs(uri), list_times(tracked), len(list(place.glob("wandb/offline-*")))
    assert call("run", recipe, "--out", tracked, "track=[mlflow,tensorboard,wandb]", *SETTINGS).exit_code == 0
    after = list_runs(uri)
    assert list_times(tracked) == times
    assert {name: run.info.run_id for name, run in after.items()} == {
        name: run.info.run_id for name, run in before.items()
    }
    assert len(read_history(uri, after["moves"], "tuned/macro_f1")) == 1
    assert len(list(place.glob("wandb/offline-*"))) == n_offline


def test_unreachable_tracker_is_told_once_and_gets_everything_from_the_next_call(
    recipe: Path, tracked: Path, place: Path, uri: str, monkeypatch: pytest.MonkeyPatch, trainings: list[str]
) -> None:
    out, other = place / "later", make_uri(place, "later")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pass@127.0.0.1:9")
    started = time.perf_counter()
    result = call("run", recipe, "--out", out, "track=mlflow", *SETTINGS)
    assert time.perf_counter() - started < 120
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if "the run goes on" in line]
    assert line.startswith("mlflow can't be reached or refuses (") and "pass" not in line
    assert read_figures(out) == read_figures(tracked)

    times = list_times(out)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    assert call("run", recipe, "--out", out, "track=mlflow", *SETTINGS).exit_code == 0
    assert {name: at for name, at in list_times(out).items() if not name.startswith("track.")} == times
    runs, live = list_runs(other), list_runs(uri)
    assert sorted(runs) == sorted(live)
    for name in trainings:
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["moves"].info.run_id
        for metric in ("loss", "learning_rate", "eval_macro_f1"):
            sent, direct = read_history(other, runs[name], metric), read_history(uri, live[name], metric)
            assert [step for step, _ in sent] == [step for step, _ in direct]
            assert [value for _, value in sent] == pytest.approx([value for _, value in direct])


def test_stopped_fine_tuning_goes_on_in_its_tracked_run(
    recipe: Path, place: Path, monkeypatch: pytest.MonkeyPatch, trainings: list[str]
) -> None:
    out, uri = place / "stopped", make_uri(place, "stopped")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = ["run", recipe, "--out", out, "--until", "finetune", "track=mlflow", *SETTINGS]
    on_save = Steering.on_save

    def stop(self: Steering, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_save(self, args, state, control, **kwargs)
        if state.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Steering, "on_save", stop)
        assert call(*words).exit_code == 130
    before = list_runs(uri)[trainings[1]]
    assert before.info.status == "KILLED"
    assert len(read_history(uri, before, "loss")) == 2
    assert call(*words).exit_code == 0
    after = list_runs(uri)[trainings[1]]
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    steps = [step for step, _ in read_history(uri, after, "loss")]
    assert steps == [steps[0], 2 * steps[0], 3 * steps[0]]


def test_changed_setting_is_a_tracked_run_of_its_own_and_a_deleted_one_is_begun_again(
    recipe: Path, tracked: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    out, uri = place / "changed", make_uri(place, "changed")
    shutil.copytree(tracked, out)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for settings in ([], ["compare.n_resamples=200"]):
        assert call("run", recipe, "--out", out, "track=mlflow", *SETTINGS, *settings).exit_code == 0
    client = MlflowClient(uri)

    def find() -> dict[str, str]:
        experiments = [one.experiment_id for one in client.search_experiments()]
        runs = client.search_runs(experiments, "attributes.run_name = 'moves'")
        return {run.data.params["compare.n_resamples"]: run.info.run_id for run in runs}

    first = find()
    assert sorted(first) == ["100", "200"]
    client.delete_run(first["200"])
    assert (
        call("run", recipe, "--out", out, "track=mlflow", *SETTINGS, "compare.n_resamples=200").exit_code == 0
    )
    assert find()["100"] == first["100"]
    assert find()["200"] != first["200"]


def test_folder_of_files_is_served(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    link, about = Link("mlflow", tmp_path), About("e", "n", {"a+b": "1"})

    def tell() -> str:
        run_id = link.tracker.start(about)
        link.tracker.write(run_id, about, Found({"x/y": 0.5}, {"verdict": "no"}))
        return run_id

    assert link.attempt(tell) is not None
    run = link.attempt(lambda: list_runs(uri)["n"])
    assert run is not None
    assert (run.data.metrics, run.data.params) == ({"x/y": 0.5}, {"a_b": "1"})


def test_missing_package_is_told_before_anything_starts(
    recipe: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    result = call("run", recipe, "--out", tmp_path / "run", "track=mlflow")
    assert result.exit_code == 2
    assert (
        "error: track names mlflow, which isn't installed: pip install 'embedtune[track]'." in result.output
    )
    assert not (tmp_path / "run" / "data").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'wandb>=0\.31'\.$"):
        open_links(["wandb"], tmp_path)


def test_unknown_tracker_is_refused(recipe: Path, tmp_path: Path) -> None:
    result = call("run", recipe, "--out", tmp_path / "run", "track=mlfow")
    assert result.exit_code == 2
    assert "'track.0' is 'mlfow': input should be 'mlflow', 'tensorboard' or 'wandb'" in result.output


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("s3://me:word@bucket/rows.csv", "s3://bucket/rows.csv"),
        ("http://host/a.csv?x=1&X-Amz-Signature=abc&y=2", "http://host/a.csv?x=1&X-Amz-Signature=…&y=2"),
        ("http://host/a?x=1&amp;token=abc", "http://host/a?x=1&amp;token=…"),
        (f"key {SECRET}", "key …"),
        ("me@example.org learning_rate=0.1", "me@example.org learning_rate=0.1"),
    ],
)
def test_hide_secrets(text: str, hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    assert hide_secrets(text) == hidden


TELL = """
from pathlib import Path
from embedtune.trackers import About, Found, Link
for name in {names}:
    link, about = Link(name, Path()), About("e", "n", {{}})
    link.attempt(lambda: link.tracker.write(link.tracker.start(about), about, Found({{"a": 1.0}})))
    print(name, link.failed)
"""
PLAIN = "import mlflow, time; mlflow.MlflowClient().create_experiment('e'); time.sleep(2)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "calls"),
    [(TELL.format(names=["mlflow", "wandb"]), False), (PLAIN, True)],
    ids=["ours", "theirs"],
)
def test_nobody_else_is_told(code: str, calls: bool, tmp_path: Path) -> None:
    """Whatever the libraries would send to their makers goes through this proxy."""
    proxy = socket.create_server(("127.0.0.1", 0))
    callers: list[Any] = []

    def listen() -> None:
        while True:
            try:
                caller, _ = proxy.accept()
            except OSError:
                return
            callers.append(caller)
            caller.close()

    thread = threading.Thread(target=listen)
    thread.start()
    address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_CURRENT_TEST")
    }
    environment |= {"HTTPS_PROXY": address, "HTTP_PROXY": address, "WANDB_MODE": "offline"}
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_TRACKING_URI", "WANDB_ERROR_REPORTING", "NO_PROXY"):
        environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    proxy.shutdown(socket.SHUT_RDWR)
    proxy.close()
    thread.join()
    assert result.returncode == 0, result.stderr
    assert "True" not in result.stdout
    assert bool(callers) == calls


@pytest.mark.slow
def test_unreachable_wandb_is_given_up_soon(tmp_path: Path) -> None:
    environment = {**os.environ, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    environment.pop("WANDB_MODE", None)
    code = TELL.format(names=["wandb"])
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.split() == ["wandb", "True"]
    assert "wandb can't be reached or refuses" in result.stderr
    assert "0" * 40 not in result.stderr
