"""Weights & Biases: a run for the results and one for each fine-tuning, in a group; where WANDB_… variables say."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import WandbCallback, WandbLogModel

from embedtune.errors import ConfigError
from embedtune.trackers import About, Found

#: Nothing but what we give it: no console, command line, code, packages or host; and no waiting for hours.
_SETTINGS: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "init_timeout": 20,
    "finish_timeout": 60,
    "finish_timeout_raises": True,
    "x_graphql_retry_max": 1,
    "x_graphql_timeout_seconds": 10,
    "x_file_stream_retry_max": 2,
    "x_file_transfer_retry_max": 2,
}
_STEP = "train/global_step"


class Tracker:
    """W&B by ``wandb.init``, a run at a time."""

    def __init__(self, folder: Path) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # to its makers, from the import on
        import wandb

        self.wandb: Any = wandb
        self.settings = wandb.setup(wandb.Settings(**_SETTINGS)).settings

    @property
    def place(self) -> str:
        """Server, team and project."""
        return f"{self.settings.base_url} {self.settings.entity} {_name_project()}"

    def start(self, about: About) -> str:
        """Choose an id; the run is made with what is first written to it."""
        return secrets.token_hex(4)

    def knows(self, run_id: str) -> bool:
        """Take it for there: one that isn't is made again."""
        return True

    def watch(self, run_id: str, about: About) -> WandbTraining:
        """Return the callback of a training."""
        return WandbTraining(lambda: self._open(run_id, about))

    def write(self, run_id: str, about: About, found: Found) -> None:
        """Log the curves, set figures and words as the summary, and end the run."""
        run = self._open(run_id, about)
        points: dict[int, dict[str, float]] = {}
        for step, name, value in found.curves:
            shown = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
            points.setdefault(step, {_STEP: step})[shown] = value
        for step in sorted(points):
            run.log(points[step])
        run.summary.update({**found.figures, **found.words})
        folder = Path(run.dir) / "embedtune"
        for path in found.files:
            folder.mkdir(exist_ok=True)
            shutil.copy(path, folder)
            run.save(str(folder / path.name), base_path=run.dir, policy="end")
        run.finish()

    def _open(self, run_id: str, about: About) -> Any:
        online = self.settings.mode in ("online", "run", "shared")
        if online and not self.wandb.login(prompt=False, verify=False):  # wandb.init would ask the terminal
            raise ConfigError("no key: give `wandb login`, or set WANDB_API_KEY, or WANDB_MODE to offline")
        run = self.wandb.init(
            id=run_id,
            resume="allow",
            project=_name_project(),
            group=about.parent or run_id,
            job_type="run" if about.parent is None else "finetune",
            name=about.name,
            settings=self.wandb.Settings(**_SETTINGS),
        )
        run.config.update(dict(about.settings), allow_val_change=True)
        run.define_metric(_STEP)
        run.define_metric("*", step_metric=_STEP, step_sync=True)
        return run


class WandbTraining(WandbCallback):
    """transformers' callback, in a run of ours: with our settings, in the run's group, and without weights."""

    def __init__(self, open_run: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.open_run = open_run
        self.run: Any = None
        self._log_model = WandbLogModel.FALSE

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        """Go on in the run, or make it."""
        self._initialized = True
        self.run = self.open_run()

    def close(self, *, failed: bool) -> None:
        """End the run."""
        if self.run is not None:
            self.run.finish(exit_code=1 if failed else 0)


def _name_project() -> str:
    return os.environ.get("WANDB_PROJECT") or "embedtune"
