"""What cases break: a tiny backbone, rows, a finished run, made once and copied for each try."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from torture import ROOT

#: Arms that touch every kind of artefact; tuned+ would only repeat them, five times.
SETTINGS = ("compare.n_resamples=100", "compare.probe_layers=false", "finetune.epochs=2")


class Workshop:
    """A folder that is thrown away, and what is made in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._n_fresh = 0

    def fresh(self, name: str = "try") -> Path:
        """Return a path that nothing lies at."""
        self._n_fresh += 1
        return self.folder / f"{name}-{self._n_fresh}"

    @functools.cached_property
    def backbone(self) -> Path:
        """A random three-layer BERT."""
        from tiny_models import build_tiny_bert

        return build_tiny_bert(self.folder / "bert")

    @functools.cached_property
    def rows(self) -> Path:
        """240 labelled sentences."""
        from run_cases import write_rows

        return write_rows(self.folder / "moves.csv")

    @functools.cached_property
    def recipe(self) -> Path:
        """A recipe that runs every stage in seconds."""
        from run_cases import write_recipe

        return write_recipe(
            self.folder / "tiny.yaml", model=self.backbone, data=self.rows, store=self.folder / "store"
        )

    @functools.cached_property
    def service(self) -> Any:
        """A bundle of MiniLM to be served, and how fast its server is."""
        from torture.load import measure

        return measure(self)

    @functools.cached_property
    def run(self) -> Path:
        """The folder of a finished run."""
        out = self.folder / "run"
        code, said = call("run", self.recipe, "--out", out, "-q", *SETTINGS)
        if code:
            raise RuntimeError(said)
        return out


def call(*words: Any) -> tuple[int, str]:
    """Run the command line here and return its exit code and what it said; 1 is a traceback."""
    from typer.testing import CliRunner

    from embedtune.cli import app

    found = CliRunner().invoke(app, [str(word) for word in words])
    said = found.output
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        said += f"{type(found.exception).__name__}: {found.exception}"
    return found.exit_code, said


def start(*words: Any, **environment: str) -> subprocess.Popen[str]:
    """Start the command line in a process, and a session, of its own."""
    source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-m", "embedtune", *(str(word) for word in words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
