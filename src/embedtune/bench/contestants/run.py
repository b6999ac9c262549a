"""A whole run by the command, into a new folder and an empty store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare(job: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return the run of ``job["data"]`` with ``job["settings"]``, a list of KEY=VALUE."""

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="embedtune-bench-") as place:
            folder = Path(place) / "run"
            arguments = ["run", *job["settings"], "--data", job["data"], "--out", str(folder), "--quiet"]
            environment = os.environ | {"EMBEDTUNE_STORE": str(Path(place) / "store")}
            done = subprocess.run(
                [sys.executable, "-m", "embedtune", *arguments],
                env=environment,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise RuntimeError(
                    f"embedtune {' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1]}"
                )
            arms = json.loads((folder / "results.json").read_text(encoding="utf-8"))["arms"]
            return {"macro_f1": {arm: found["macro_f1"]["value"] for arm, found in arms.items()}}

    return run
