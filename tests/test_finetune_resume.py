"""Fine-tuning killed by SIGKILL and repeated ends with the weights of an undisturbed run, bit by bit."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedtune.errors import RunFolderError
from embedtune.finetune import checkpoints, loop
from embedtune.finetune.saved import read_finetuned
from embedtune.finetune.train import fine_tune
from finetune_child import WORDS, main, make_rows

# Six steps per epoch.
THREE_EPOCHS = {"epochs": 3, "learning_rate": 1e-3}


def run_child(order: dict[str, Any]) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("finetune_child.py"))]
    return subprocess.run([*command, json.dumps(order)], env=environment, check=False).returncode


def read_results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def read_history(folder: Path) -> Any:
    found = read_finetuned(folder)
    return found.history, found.best_epoch, found.macro_f1


@pytest.fixture
def finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run an order here, in-process."""

    def run(order: dict[str, Any]) -> Path:
        monkeypatch.setattr(loop, "STEPS_PER_CHECKPOINT", order.get("steps_per_checkpoint", 400))
        monkeypatch.setattr(loop, "MIN_STEPS_PER_CHECKPOINT", 1)
        main({**order, "kill": None})
        return Path(order["output_dir"])

    return run


KILLS = [
    pytest.param("full", {"step": 3}, 400, id="before-the-first-checkpoint"),
    pytest.param("full", {"step": 10}, 2, id="mid-epoch-after-a-step-checkpoint"),
    pytest.param("lora", {"at": "weights", "call": 2}, 400, id="half-of-the-weights-written"),
    pytest.param("full", {"at": "optimizer", "call": 4}, 400, id="half-of-the-optimizer-written"),
    pytest.param("upper", {"at": "ready", "call": 3}, 400, id="last-checkpoint-without-its-mark"),
    pytest.param("full", {"at": "delete", "call": 3}, 400, id="trained-but-not-saved"),
    pytest.param("lora", {"at": "facts", "call": 1}, 400, id="saved-but-not-declared"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kill", "steps"), KILLS)
def test_fine_tune_killed_and_repeated_ends_with_equal_weights(
    method: str, kill: dict[str, Any], steps: int, tiny_bert: Path, tmp_path: Path, finish: Any
) -> None:
    order = {
        "model": str(tiny_bert),
        "settings": {**THREE_EPOCHS, "method": method},
        "steps_per_checkpoint": steps,
    }
    undisturbed = finish({**order, "output_dir": str(tmp_path / "undisturbed")})
    killed = tmp_path / "killed"
    assert run_child({**order, "output_dir": str(killed), "kill": kill}) == -signal.SIGKILL
    assert not (killed / "finetune.json").exists()
    last = checkpoints.find_last(killed / "checkpoints")
    assert (last is None) == (kill.get("step") == 3)
    finish({**order, "output_dir": str(killed)})
    assert read_results(killed) == read_results(undisturbed)
    assert read_history(killed) == read_history(undisturbed)
    assert not (killed / "checkpoints").exists()


def test_fine_tune_killed_after_an_early_stop_does_not_train_on(
    tiny_bert: Path, tmp_path: Path, finish: Any
) -> None:
    order = {"model": str(tiny_bert), "settings": {"epochs": 9, "learning_rate": 0.05, "patience": 1}}
    undisturbed = finish({**order, "output_dir": str(tmp_path / "undisturbed")})
    n_epochs = len(read_finetuned(undisturbed).history)
    assert n_epochs < 9
    killed = tmp_path / "killed"
    kill = {"at": "head", "call": 1}
    assert run_child({**order, "output_dir": str(killed), "kill": kill}) == -signal.SIGKILL
    finish({**order, "output_dir": str(killed)})
    assert read_results(killed) == read_results(undisturbed)
    assert read_history(killed) == read_history(undisturbed)


@pytest.mark.parametrize("objective", ["classification", "contrastive"])
def test_fine_tune_killed_without_validation_ends_with_equal_weights(
    objective: str, tiny_bert: Path, tmp_path: Path, finish: Any
) -> None:
    settings = {
        **THREE_EPOCHS,
        "validation_fraction": 0.0,
        "precision": "bfloat16",
        "objective": objective,
    }
    order = {"model": str(tiny_bert), "settings": settings}
    undisturbed = finish({**order, "output_dir": str(tmp_path / "undisturbed")})
    killed = tmp_path / "killed"
    assert run_child({**order, "output_dir": str(killed), "kill": {"step": 18}}) == -signal.SIGKILL
    finish({**order, "output_dir": str(killed)})
    assert read_results(killed) == read_results(undisturbed)


def test_fine_tune_with_other_arguments_ignores_the_checkpoints_of_a_killed_call(
    tiny_bert: Path, tmp_path: Path, finish: Any
) -> None:
    order = {"model": str(tiny_bert), "settings": THREE_EPOCHS}
    other = {**order, "settings": {**THREE_EPOCHS, "weight_decay": 0.2}}
    undisturbed = finish({**other, "output_dir": str(tmp_path / "undisturbed")})
    killed = tmp_path / "killed"
    assert run_child({**order, "output_dir": str(killed), "kill": {"step": 8}}) == -signal.SIGKILL
    assert checkpoints.find_last(killed / "checkpoints") is not None
    finish({**other, "output_dir": str(killed)})
    assert read_results(killed) == read_results(undisturbed)


def test_fine_tune_finished_is_read_back_without_training(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, labels = make_rows(24)
    arguments: dict[str, Any] = {
        "labels": labels,
        "label_names": list(WORDS),
        "output_dir": tmp_path / "out",
        "epochs": 1,
        "device": "cpu",
    }
    first = fine_tune(tiny_bert, texts, **arguments)
    monkeypatch.setattr(loop.ClassifierTrainer, "train", None)
    second = fine_tune(tiny_bert, texts, **arguments)
    assert (second.seconds, second.history) == (first.seconds, first.history)


def test_open_checkpoints_ignores_a_damaged_key_file(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoints.open_checkpoints(folder, {"a": 1})
    (folder / "checkpoint-3").mkdir()
    checkpoints.mark_ready(folder / "checkpoint-3", seconds=1.5)
    checkpoints.open_checkpoints(folder, {"a": 1})
    assert checkpoints.find_last(folder) == folder / "checkpoint-3"
    (folder / "key.json").write_text('{"a": ')
    checkpoints.open_checkpoints(folder, {"a": 1})
    assert checkpoints.find_last(folder) is None


def test_find_last_skips_checkpoints_without_mark(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        checkpoints.mark_ready(tmp_path / f"checkpoint-{step}", seconds=step)
    last = checkpoints.find_last(tmp_path)
    assert last == tmp_path / "checkpoint-10"
    assert checkpoints.read_seconds(last) == 10


def make_epochs(*scores: tuple[float, float]) -> list[checkpoints.Epoch]:
    return [checkpoints.Epoch(10 * i, i, f1, loss) for i, (f1, loss) in enumerate(scores, start=1)]


def test_find_best_breaks_ties_by_lower_loss_then_earlier() -> None:
    epochs = make_epochs((0.8, 0.5), (0.9, 0.6), (0.9, 0.4), (0.9, 0.4), (0.7, 0.1))
    assert checkpoints.find_best(epochs).step == 30


def test_has_stalled_counts_evaluations_since_the_best() -> None:
    epochs = make_epochs((0.8, 0.5), (0.9, 0.6), (0.9, 0.7), (0.7, 0.1))
    assert checkpoints.has_stalled(epochs, patience=2)
    assert not checkpoints.has_stalled(epochs, patience=3)
    assert not checkpoints.has_stalled(epochs, patience=None)
    assert not checkpoints.has_stalled([], patience=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "trainer_state.json", "ready.json"])
def test_fine_tune_with_a_changed_checkpoint_begins_anew(
    name: str, tiny_bert: Path, tmp_path: Path, finish: Any, caplog: pytest.LogCaptureFixture
) -> None:
    order = {"model": str(tiny_bert), "settings": THREE_EPOCHS}
    undisturbed = finish({**order, "output_dir": str(tmp_path / "undisturbed")})
    killed = tmp_path / "killed"
    kill = {"at": "delete", "call": 2}
    assert run_child({**order, "output_dir": str(killed), "kill": kill}) == -signal.SIGKILL
    path = max((killed / "checkpoints").glob(f"checkpoint-*/{name}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    finish({**order, "output_dir": str(killed)})
    assert f"{path.parent} is not as it was written: the training begins anew" in caplog.messages
    assert read_results(killed) == read_results(undisturbed)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_fine_tune_with_a_forged_checkpoint_is_refused_in_a_line(
    name: str, tiny_bert: Path, tmp_path: Path, finish: Any
) -> None:
    order = {"model": str(tiny_bert), "settings": THREE_EPOCHS, "output_dir": str(tmp_path / "killed")}
    assert run_child({**order, "kill": {"at": "delete", "call": 2}}) == -signal.SIGKILL
    last = checkpoints.find_last(tmp_path / "killed" / "checkpoints")
    assert last is not None
    path = last / name
    path.write_bytes(pickle.dumps(print))
    (path.parent / "ready.json").unlink()
    checkpoints.mark_ready(path.parent, seconds=1.0)
    with pytest.raises(RunFolderError) as refused:
        finish(order)
    told = str(refused.value)
    assert told.startswith(f"'{path.parent}' can't be gone on from (")
    assert told.endswith(f"): delete '{path.parent.parent}', and the training begins anew.")


def test_checkpoint_with_a_forged_log_counts_as_damaged(tmp_path: Path) -> None:
    for log in (["eval_macro_f1"], 3, [{"eval_macro_f1": 1.0}]):
        checkpoint = tmp_path / "checkpoint-3"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        checkpoints.mark_ready(checkpoint, seconds=1.0)
        assert checkpoints.find_last(tmp_path) is None
        assert not checkpoint.exists()
