"""What bad input gets from the command line: one line, exit code 2, nothing written over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors
from typer.testing import CliRunner

from embedtune.cli import app
from embedtune.files import read_sealed, write_sealed
from run_cases import write_recipe, write_rows

GOOD = "".join(f"sales {i} rose,up\nsales {i} fell,down\n" for i in range(12))


def call(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def refuse(*words: Any) -> str:
    """Return the one line that a command fails with."""
    result = call(*words)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.output
    assert result.stderr.splitlines()[-1] == lines[0]
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", "text,label\n", "none.csv has no rows"),
        ("one.csv", "text,label\n" + "sales rose,up\n" * 9, "one has one class as read, 'up'"),
        ("few.csv", f"text,label\n{GOOD}a,odd\nb,odd\n", "fewer than 5 rows as read in class 'odd' (2)"),
        ("column.csv", f"txet,label\n{GOOD}", "did you mean 'txet'?"),
        ("ragged.csv", f"text,label\n{GOOD}a,up,x\n", "row 25 (line 26) has 3 cells where the header has 2"),
        ("twice.csv", "text,text,label\n" + "a,b,up\na,b,down\n" * 9, "two columns called 'text'"),
        ("nul.csv", f"text,label\n{GOOD}a\0b,up\n", "holds a NUL character (line 26)"),
        ("long.csv", f"text,label\n{GOOD}{'word ' * 2_000_000},up\n", "has a cell of more than 1,000,000"),
        ("ids.csv", "text,label\n" + "".join(f"t{i},l{i}\n" for i in range(600)), "is this the text column"),
        ("cell.jsonl", '{"text": ["a"], "label": "up"}\n' * 9, "holds a list in row 1, not a text"),
        ("notes.docx", "x", "extension '.docx' isn't one I can read"),
    ],
)
def test_bad_file_gets_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    columns = () if name == "notes.docx" else ("--text-column", "text", "--label-column", "label")
    assert message in refuse("run", "--data", path, *columns, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_missing_file_gets_one_line(tmp_path: Path) -> None:
    assert "absent.csv" in refuse("run", "--data", tmp_path / "absent.csv", "--out", tmp_path / "run")


def test_wrong_column_can_be_put_right_in_the_same_folder(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"body,label\n{GOOD}", encoding="utf-8")
    command = [
        "run",
        "--data",
        path,
        "--label-column",
        "label",
        "--out",
        tmp_path / "run",
        "--until",
        "prepare",
    ]
    refuse(*command, "--text-column", "txet")
    assert call(*command, "--text-column", "body").exit_code == 0


def test_label_names_are_those_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "text,label\n" + GOOD.replace(",up\n", ",1\n").replace(",down\n", ",0\n"), encoding="utf-8"
    )
    command = ["run", "--data", path, "--out", tmp_path / "run", "--until", "prepare", "--label-names"]
    assert "--label-names has 'up', which isn't LABEL=NAME: write it as" in refuse(*command, "up,0=down")
    assert "--label-names names the label '1' twice: leave one out." in refuse(*command, "1=up,1=down")
    assert "names the label '2', which no row has: the labels are 0, 1." in refuse(*command, "2=up")
    assert call(*command, "1=up, 0=down").exit_code == 0
    assert set(pd.read_parquet(tmp_path / "run" / "data" / "splits.parquet")["label"]) == {"up", "down"}


def test_all_unknown_settings_are_told_at_once(tmp_path: Path) -> None:
    message = refuse("run", "finetune.epoch=3", "fit.haed=ridge", "--out", tmp_path / "run")
    assert "finetune.epoch" in message
    assert "fit.haed" in message
    assert not (tmp_path / "run").exists()


@pytest.fixture
def tiny(tiny_bert: Path, tmp_path: Path) -> Path:
    rows = write_rows(tmp_path / "moves.csv")
    return write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=rows, store=tmp_path / "store")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("embed.views.bert.layers=[9]", "layer 9 does not exist in"),
        ("embed.views.bert.max_length=9999", "max_length 9999 is out of range"),
        ("embed.views.bert.model=./no-folder", "neither a folder nor found on the Hub"),
    ],
)
def test_unusable_backbone_is_told_before_anything_is_read(
    tiny: Path, tmp_path: Path, setting: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert message in refuse("run", tiny, setting, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_model_with_code_of_its_own_is_refused(tiny_bert: Path, tiny: Path, tmp_path: Path) -> None:
    own_bert = Path(shutil.copytree(tiny_bert, tmp_path / "own"))
    config = json.loads((own_bert / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.OwnConfig", "AutoModel": "code.Own"}}
    (own_bert / "config.json").write_text(json.dumps(config))
    (own_bert / "code.py").write_text("raise SystemExit('ran')")
    message = refuse("run", tiny, f"embed.views.bert.model={own_bert}", "--out", tmp_path / "run")
    assert "trust_remote_code" in message


def test_full_disk_gets_one_line_and_the_run_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("embedtune.finetune.loop.save_file", fail)
        assert refuse("run", tiny, "--out", out) == (
            f"the disk of '{out}' is full: free some space and give the same command again; "
            "what was finished is kept."
        )
    assert call("run", tiny, "--out", out).exit_code == 0


def test_folder_of_another_experiment_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("run", tiny, "--out", out, "--until", "prepare").exit_code == 0
    before = (out / "config.yaml").read_bytes()
    assert "holds another experiment" in refuse("run", "demo", "--out", out)
    assert (out / "config.yaml").read_bytes() == before


def test_changed_and_newer_bundles_are_refused(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("run", tiny, "--out", out, "compare.arms=[floor]").exit_code == 0
    rows, output = tmp_path / "moves.csv", tmp_path / "out.csv"
    facts = out / "bundle" / "bundle.json"
    kept = facts.read_text()
    write_sealed(facts, {**read_sealed(facts, {}, again=""), "schema": 99})
    assert "99" in refuse("predict", out / "bundle", rows, "-o", output)
    facts.write_text(kept)
    changed = max(
        (path for path in (out / "bundle").rglob("*") if path != facts), key=lambda p: p.stat().st_size
    )
    changed.write_bytes(changed.read_bytes()[:-1] + b"?")
    assert changed.name in refuse("predict", out / "bundle", rows, "-o", output)
    assert not output.exists()
