from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from embedtune.errors import ResourceError, RunFolderError
from embedtune.files import replace_dir, write_json, write_sealed
from embedtune.runfolder import RunFolder, check_outputs, lock_folder, read_output


def test_run_step_with_the_same_key_is_not_done_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", identity="a")
    calls: list[int] = []

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"n": len(calls)}

    assert folder.run_step("fit.x", "k1", compute) == {"n": 1}
    assert RunFolder(tmp_path / "run", identity="a").run_step("fit.x", "k1", compute) == {"n": 1}
    assert folder.run_step("fit.x", "k2", compute) == {"n": 2}


def test_run_step_with_a_missing_output_is_done_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", identity="a")
    output = tmp_path / "run" / "out.txt"

    def compute() -> dict[str, str]:
        output.write_text("x")
        return {}

    folder.run_step("s", "k", compute, outputs=[output])
    output.unlink()
    folder.run_step("s", "k", compute, outputs=[output])
    assert output.exists()


def test_run_step_that_fails_leaves_no_record(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", identity="a")
    folder.run_step("s", "k1", dict)

    def fail() -> dict[str, int]:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        folder.run_step("s", "k2", fail)
    assert folder.read_record("s") is None


def test_newer_release_s_folder_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", identity="a").run_step("s", "k", dict)
    write_sealed(tmp_path / "run" / ".state" / "identity.json", {"schema": 2, "identity": "a"})
    with pytest.raises(RunFolderError, match=r"schema 2, and this one reads 1\): upgrade embedtune\.$"):
        RunFolder(tmp_path / "run", identity="a")


def test_record_of_another_make_is_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", identity="a")
    folder.run_step("s", "k", dict)
    write_sealed(tmp_path / "run" / ".state" / "s.json", {"key": "k", "result": {"n": 1}})
    check_outputs(tmp_path / "run", "out.txt")
    assert folder.run_step("s", "k", lambda: {"n": 2}) == {"n": 2}


def test_forget_drops_one_stage_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", identity="a")
    for step in ("embed.x", "embed-tuned.x", "fit.frozen"):
        folder.run_step(step, "k", dict)
    folder.forget("embed")
    assert folder.read_record("embed.x") is None
    assert folder.read_record("embed-tuned.x") is not None
    assert folder.read_record("fit.frozen") is not None


def test_folder_of_another_experiment_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunFolder(path, identity="a: x.csv").run_step("prepare", "k", dict)
    with pytest.raises(RunFolderError) as caught:
        RunFolder(path, identity="b: y.csv")
    assert str(caught.value) == (
        f"{path} holds another experiment (a: x.csv), and this is b: y.csv: choose another --out, or delete it."
    )


def test_folder_belongs_to_nobody_until_a_step_is_finished(tmp_path: Path) -> None:
    """A run that failed on its first column name can be repeated with the right one."""
    path = tmp_path / "run"

    def fail() -> dict[str, int]:
        raise RuntimeError("no such column")

    with pytest.raises(RuntimeError):
        RunFolder(path, identity="a: text").run_step("prepare", "k", fail)
    (path / "config.yaml").write_text("name: a")
    RunFolder(path, identity="a: body").run_step("prepare", "k", dict)
    with pytest.raises(RunFolderError, match="holds another experiment"):
        RunFolder(path, identity="a: text")


def test_first_finished_task_claims_the_folder_of_all_tasks(tmp_path: Path) -> None:
    whole = RunFolder(tmp_path / "run", identity="demo: x, y")
    RunFolder(whole.path / "x", identity="demo/x", inside=whole).run_step("prepare", "k", dict)
    with pytest.raises(RunFolderError, match="holds another experiment"):
        RunFolder(whole.path, identity="demo: x, z")


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError) as caught:
        RunFolder(tmp_path, identity="a")
    assert (
        str(caught.value) == f"{tmp_path} is not empty and holds no run: choose another --out, or empty it."
    )


def test_lock_folder_held_elsewhere_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path, identity="a")
    with lock_folder(tmp_path), pytest.raises(RunFolderError) as caught, lock_folder(tmp_path):
        pass
    assert str(caught.value) == (
        f"another process is running in {tmp_path}: wait for it, stop it, or choose another --out."
    )


def test_write_json_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"value": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"value": math.nan})
    assert json.loads(path.read_text()) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_replace_dir_that_fails_keeps_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with replace_dir(path) as scratch:
        (scratch / "a").write_text("old")
    with pytest.raises(RuntimeError), replace_dir(path) as scratch:
        (scratch / "a").write_text("new")
        raise RuntimeError("stopped")
    assert (path / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_run_step_with_a_changed_output_is_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path / "run", identity="a")
    output = tmp_path / "run" / "data" / "out.txt"

    def compute() -> dict[str, str]:
        output.parent.mkdir(exist_ok=True)
        output.write_text("x")
        return {}

    folder.run_step("s", "k", compute, outputs=[output.parent])
    check_outputs(folder.path, "data/out.txt", "data/other.txt")
    output.write_text("y")
    with pytest.raises(RunFolderError) as caught:
        check_outputs(folder.path, "data/out.txt")
    assert str(caught.value) == (
        f"{output} is not the file that was written: give the command of the whole run again, which makes it anew."
    )
    folder.run_step("s", "k", compute, outputs=[output.parent])
    assert output.read_text() == "x"
    assert caplog.messages == [f"{output} is not the file that was written: it is made again"]


@pytest.mark.parametrize("damage", [b'{"n": 2', b'{"n": 1', b"\xff"])
def test_changed_record_counts_as_none(tmp_path: Path, damage: bytes) -> None:
    folder = RunFolder(tmp_path / "run", identity="a")
    folder.run_step("s", "k", lambda: {"n": 1})
    (path,) = (tmp_path / "run" / ".state").glob("s.json")
    path.write_bytes(path.read_bytes().replace(b'"n": 1', damage))
    assert folder.read_record("s") is None
    assert folder.run_step("s", "k", lambda: {"n": 1}) == {"n": 1}


def test_damaged_identity_is_one_line(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", identity="a").run_step("s", "k", dict)
    path = tmp_path / "run" / ".state" / "identity.json"
    path.write_text("{")
    with pytest.raises(RunFolderError, match="delete that file and give the command again"):
        RunFolder(tmp_path / "run", identity="a")


def test_replace_dir_keeps_the_old_folder_whole_until_the_new_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    seen: list[str] = []
    delete = shutil.rmtree

    def look(path: Path, **options: Any) -> None:
        seen.append((tmp_path / "out" / "a").read_text())
        delete(path, **options)

    monkeypatch.setattr(shutil, "rmtree", look)
    with replace_dir(tmp_path / "out") as scratch:
        (scratch / "a").write_text("new")
    assert seen == ["old", "new", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "told", ["Error while serializing: I/O error: File too large (os error 27)", "unexpected pos 128 vs 126"]
)
def test_failed_write_of_a_library_is_one_line(tmp_path: Path, told: str) -> None:
    def fail() -> dict[str, int]:
        raise RuntimeError(told)

    folder = RunFolder(tmp_path / "run", identity="a")
    with pytest.raises(ResourceError) as caught:
        folder.run_step("s", "k", fail)
    assert str(caught.value) == (
        f"'{folder.path}' can't be written ({told}): see to its disk, and to limits on the size of files, and give the "
        "same command again; what was finished is kept."
    )


@pytest.mark.parametrize(
    ("put", "told"),
    [
        (lambda path: path.write_text("root:x"), "Expecting value: line 1 column 1 (char 0)"),
        (
            lambda path: path.write_bytes(b"\xff"),
            "'utf-8' codec can't decode byte 0xff in position 0",
        ),
        (lambda path: path.write_text("[" * 100_000), "maximum recursion depth exceeded"),
        (lambda path: path.symlink_to("/dev/zero"), "[Errno 22] is a pipe or a device: "),
        (os.mkfifo, "[Errno 22] is a pipe or a device: "),
        (lambda path: path.mkdir(), "[Errno 21] Is a directory: "),
    ],
)
def test_read_output_tells_of_what_is_no_json(tmp_path: Path, put: Any, told: str) -> None:
    path = tmp_path / "results.json"
    put(path)
    with pytest.raises(RunFolderError) as refused:
        read_output(path)
    assert str(refused.value).startswith(f"{path} is damaged ({told}")
    assert str(refused.value).endswith("): run its stage again.")


def test_record_nested_too_deep_counts_as_not_done(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", identity="a")
    folder.run_step("s", "k", dict)
    (tmp_path / "run" / ".state" / "s.json").write_text("[" * 100_000)
    assert RunFolder(tmp_path / "run", identity="a").read_result("s", "k") is None
