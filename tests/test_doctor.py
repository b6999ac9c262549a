"""embedtune doctor, against a stand-in for the Hub that answers as the real one does."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from embedtune.cli import app
from embedtune.doctor import check_model, diagnose

SECRET = "hf_" + "s" * 34


class Hub(http.server.BaseHTTPRequestHandler):
    """`open/model` may be read by all, `gated/model` by nobody, and there is nothing else."""

    def do_GET(self) -> None:
        if "/gated/model" in self.path:
            self.reply(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        elif "/open/model" not in self.path:
            self.reply(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        elif self.path.endswith("/auth-check"):
            self.reply(200, {})
        else:
            files = [
                {"rfilename": "config.json", "size": 1},
                {"rfilename": "model.safetensors", "size": 2_500_000_000},
            ]
            self.reply(200, {"id": "open/model", "siblings": files})

    def reply(self, status: int, content: dict[str, object], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub_url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run_doctor(recipe: Path, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": SECRET,
        "COLUMNS": "400",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "embedtune", "doctor", str(recipe)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def write_recipe(path: Path, *models: str) -> Path:
    views = {f"v{i}": {"kind": "transformer", "model": model} for i, model in enumerate(models)}
    recipe = {"name": "x", "tasks": {"t": {"source": "sentiment"}}, "embed": {"views": views}}
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def test_doctor_tells_what_may_be_downloaded_and_what_is_gated(hub_url: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", "open/model", "gated/model", "absent/model")
    result = run_doctor(recipe, hub_url, tmp_path)
    assert result.returncode == 1
    rows = {line.split("│")[2].strip(): line for line in result.stdout.splitlines() if "│" in line}
    assert "on the Hub, 2.5 GB of safetensors to download" in rows["model open/model"]
    assert "problem" in rows["model gated/model"]
    assert "accept its licence" in rows["model gated/model"]
    assert "HF_TOKEN" in rows["model gated/model"]
    assert "neither a folder nor found on the Hub" in rows["model absent/model"]
    assert SECRET not in result.stdout + result.stderr


def test_doctor_without_a_connection_says_so(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", "open/model")
    result = run_doctor(recipe, "http://127.0.0.1:9", tmp_path)
    assert result.returncode == 1
    assert "the Hub can't be reached" in result.stdout
    assert "Traceback" not in result.stderr


def test_doctor_finds_nothing_wrong_with_the_demonstration() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "problem" not in result.output


def test_diagnose_names_folders_and_missing_configs(tiny_bert: Path, tmp_path: Path) -> None:
    found = {
        finding.what: finding.state for finding in diagnose([(str(tiny_bert), None), (str(tmp_path), None)])
    }
    assert found[f"model {tiny_bert}"] == "ok"
    assert found[f"model {tmp_path}"] == "problem"
    assert found["versions"] == "ok"


def test_store_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDTUNE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    states = {finding.what: finding for finding in diagnose()}
    assert states["store"].state == "problem"
    assert "EMBEDTUNE_STORE" in states["store"].advice


def test_packaged_model_is_found_offline() -> None:
    assert check_model("all-MiniLM-L6-v2").state == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device can do what is missing here")
def test_doctor_says_what_fine_tuning_lacks_on_this_machine(
    tiny_llama: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    result = CliRunner().invoke(app, ["doctor", "capstone", f"backbones=[{tiny_llama}, {tiny_bert}]"])
    assert result.exit_code == 1
    rows = {line.split("│")[2].strip(): line for line in result.stdout.splitlines() if "│" in line}
    assert "set optimizer to adamw" in rows[f"fine-tuning {tiny_llama}"]
    assert "classification, full, " in rows[f"fine-tuning {tiny_bert}"]


def test_every_extra_it_advises_is_one_that_holds_the_package() -> None:
    import tomllib
    from importlib.metadata import packages_distributions

    from embedtune.doctor import OPTIONAL

    root = Path(__file__).parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, (_, extra) in OPTIONAL.items():
        names = {re.split(r"[<>=;\[ ]", line)[0].replace("-", "_") for line in extras[extra]}
        given = {name.replace("-", "_") for name in packages_distributions().get(package, [])}
        assert names & {package, *given}
