"""docs/use.md: each of its commands and blocks of Python is run, in order, as it stands there."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from embedtune.cli import app
from hub_server import Hub, serve_hub
from interop_cases import make_task
from run_cases import write_recipe, write_rows
from serve_cases import start_command

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
#: A block of Python, or an indented line: a command.
STEPS = re.compile(r"^```python\n(?P<python>.*?)^```$|^    (?P<command>\S[^\n]*)$", re.MULTILINE | re.DOTALL)
#: Where the document has the server listen; the tests' one takes a free port.
ADDRESS = re.compile(r"(http://)?(localhost|127\.0\.0\.1):8000")


class Place:
    """The reader's machine: a working folder with two runs and some rows, a Hub on loopback, a server at a time."""

    def __init__(self, tiny_bert: Path, hub: Hub, server: ExitStack) -> None:
        self.hub, self.server, self.url = hub, server, ""
        self.rows = pd.read_csv(write_rows(Path("rows.csv"))).sample(48, random_state=0)
        recipe = write_recipe(Path("tiny.yaml"), model=tiny_bert, data=Path("rows.csv"), store=Path("store"))
        for name, arm in (("my", "frozen"), ("other", "floor")):
            self.embedtune(f"embedtune run {recipe} --out runs/{name} compare.arms=[{arm}]")
        self.rows.to_parquet("rows.parquet")
        self.rows.to_csv("rows.csv", index=False)
        Path("in").mkdir()
        for month in ("2024-01", "2024-02"):
            self.rows.to_csv(f"in/{month}.csv", index=False)
        with gzip.open("rows.jsonl.gz", "wt") as file:
            self.rows.to_json(file, orient="records", lines=True)
        shim = Path("bin/embedtune")
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m embedtune "$@"\n')
        shim.chmod(0o755)

    def python(self, code: str) -> None:
        """Run a block with the reader's texts at hand."""
        code = ADDRESS.sub(self.url, code)
        if "push_to_hub" in code:
            self.shell(shlex.join([sys.executable, "-c", code]))
            return
        names = {"texts": list(self.rows["text"]), "labels": list(self.rows["label"])}
        with warnings.catch_warnings():
            if "mteb" in code:
                warnings.simplefilter("ignore")  # of mteb's own imports
                names["tasks"] = [make_task(**names)]
            exec(compile(code, "docs/use.md", "exec"), names)

    def embedtune(self, command: str) -> None:
        """Run a command that writes what its -o names."""
        words = shlex.split(command)
        if "--engine" in words:  # whose workers are to end with the command
            self.shell(command)
        else:
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, result.output
        assert "-o" not in words or Path(words[words.index("-o") + 1]).exists()

    def shell(self, command: str) -> str:
        """Have a shell run a command with the Hub on loopback as its Hub."""
        hub = {
            "HF_ENDPOINT": self.hub.address,
            "HF_HOME": str(Path("hub").absolute()),
            "HF_TOKEN": "hf_right",
        }
        hub |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        hub |= {"RAY_ADDRESS": "local"}  # not a cluster that runs here, such as that of other tests
        path = f"{Path('bin').absolute()}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **hub, "PATH": path}
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def push(self, command: str) -> None:
        """Push to the Hub on loopback."""
        self.hub.files.clear()
        self.shell(command)
        assert "bundle.json" in self.hub.files[shlex.split(command)[-1]]

    def pipe(self, command: str) -> None:
        """Label standard input into the file that the command ends in."""
        self.shell(command)
        lines = Path(command.split("> ")[-1]).read_text().splitlines()
        assert [json.loads(line)["text"] for line in lines] == list(self.rows["text"])

    def serve(self, command: str) -> None:
        """Start a server in the place of the last one; it stays for the steps that follow."""
        bundles = shlex.split(command)[2:]
        self.server.close()
        _, self.url, _ = self.server.enter_context(start_command(bundles))
        served = httpx.get(f"{self.url}/v1/models").json()["data"]
        assert [model["id"] for model in served] == [Path(name.split("=")[0]).name for name in bundles]

    def ask(self, command: str) -> None:
        """Ask the server."""
        assert json.loads(self.shell(ADDRESS.sub(self.url, command)))["data"]

    def name_extra(self, command: str) -> None:
        """Install nothing: see that there is such an extra."""
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert set(re.findall(r"embedtune\[(\w+)\]", command)) <= set(extras["optional-dependencies"])


#: How a command begins -> how it is run.
WAYS: dict[str, Callable[[Place, str], Any]] = {
    "curl": Place.ask,
    "embedtune embed": Place.embedtune,
    "embedtune export": Place.embedtune,
    "embedtune predict": Place.embedtune,
    "embedtune push": Place.push,
    "embedtune report": Place.embedtune,
    "embedtune serve": Place.serve,
    "pip install": Place.name_extra,
    "zcat": Place.pipe,
}


class Step(NamedTuple):
    """What is done, and with which text of the document."""

    way: Callable[[Place, str], Any]
    text: str


def read_steps(document: str) -> list[Step]:
    """Return what the document has its reader do, in order."""
    steps = []
    for found in STEPS.finditer(document):
        if found["python"]:
            steps.append(Step(Place.python, found["python"]))
            continue
        ways = [way for start, way in WAYS.items() if found["command"].startswith(f"{start} ")]
        if not ways:
            raise LookupError(f"unknown command: add it to WAYS: {found['command']}")
        steps.append(Step(ways[0], found["command"]))
    return steps


@pytest.fixture(scope="module")
def place(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("use")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as server, serve_hub() as hub:
        patch.chdir(folder)
        patch.setenv("EMBEDTUNE_STORE", str(folder / "store"))
        patch.setenv("MTEB_CACHE", str(folder / "mteb"))
        yield Place(tiny_bert, hub, server)


@pytest.mark.slow
@pytest.mark.parametrize("step", read_steps(DOCUMENT), ids=lambda step: step.text.splitlines()[0])
def test_step_works_as_it_stands(step: Step, place: Place) -> None:
    step.way(place, step.text)


def test_steps_are_all_kinds_and_an_unknown_one_is_told() -> None:
    assert {step.way for step in read_steps(DOCUMENT)} == {Place.python, *WAYS.values()}
    with pytest.raises(LookupError, match="unknown command: add it to WAYS: embedtune fly"):
        read_steps("Then\n\n    embedtune fly away\n")


def test_commands_stand_on_lines_of_their_own() -> None:
    assert re.findall(r"`(?:embedtune|curl) [^`]*`", DOCUMENT) == []


def test_options_are_the_commands() -> None:
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    options = {name for command in commands for option in command.params for name in option.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", DOCUMENT)) <= options
