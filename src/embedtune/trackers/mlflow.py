"""MLflow: a run, its fine-tunings nested in it; wherever MLFLOW_TRACKING_URI or MLflow's own default says."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import MLflowCallback

from embedtune.trackers import About, Found

#: Unless the user has said otherwise: MLflow tries for minutes by default, and holds files to be a thing of the past.
_MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
#: Servers take no more in one request; older ones no longer values.
_PARAMS_PER_REQUEST, _METRICS_PER_REQUEST, _MOST_CHARACTERS = 100, 1000, 500


class Tracker:
    """MLflow by its client, so that no run of the user's own is touched."""

    def __init__(self, folder: Path) -> None:
        self.mlflow = _import_mlflow()
        self.client = self.mlflow.MlflowClient()

    @property
    def place(self) -> str:
        """The tracking URI."""
        return str(self.mlflow.get_tracking_uri())

    def start(self, about: About) -> str:
        """Create a run with its settings as parameters."""
        nested = {} if about.parent is None else {"mlflow.parentRunId": about.parent}
        run = self.client.create_run(
            self._find_experiment(about.experiment), run_name=about.name, tags=nested
        )
        settings = [
            self.mlflow.entities.Param(_clean(key), value[:_MOST_CHARACTERS])
            for key, value in about.settings.items()
        ]
        run_id = str(run.info.run_id)
        for start in range(0, len(settings), _PARAMS_PER_REQUEST):
            self.client.log_batch(run_id, params=settings[start : start + _PARAMS_PER_REQUEST])
        return run_id

    def knows(self, run_id: str) -> bool:
        """Tell whether a run is there and wasn't deleted."""
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except self.mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def watch(self, run_id: str, about: About) -> MlflowTraining:
        """Return the callback of a training."""
        return MlflowTraining(run_id)

    def write(self, run_id: str, about: About, found: Found) -> None:
        """Log what isn't there yet of the curves, all else anew, and end the run."""
        now = int(time.time() * 1000)
        metric = self.mlflow.entities.Metric
        metrics = [metric(_clean(key), value, now, 0) for key, value in found.figures.items()]
        names = {name for _, name, _ in found.curves}
        there = {
            (point.step, name)
            for name in names
            for point in self.client.get_metric_history(run_id, _clean(name))
        }
        metrics += [
            metric(_clean(name), value, now, step)
            for step, name, value in found.curves
            if (step, name) not in there
        ]
        for start in range(0, len(metrics), _METRICS_PER_REQUEST):
            self.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_REQUEST])
        for key, words in found.words.items():
            self.client.set_tag(run_id, key, words)
        for path in found.files:
            self.client.log_artifact(run_id, str(path))
        self.client.set_terminated(run_id)

    def _find_experiment(self, name: str) -> str:
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
        known = self.client.get_experiment_by_name(name)
        return str(self.client.create_experiment(name) if known is None else known.experiment_id)


class MlflowTraining(MLflowCallback):
    """transformers' callback, in a run that is there already and has our settings, not the Trainer's hundred."""

    def __init__(self, run_id: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run_id = run_id

    def setup(self, args: Any, state: Any, model: Any) -> None:
        """Go on in the run."""
        self._async_log = False  # what fails later, in a thread, can't be told
        self._ml_flow.start_run(run_id=self.run_id, nested=True)
        self._auto_end_run, self._initialized = True, True

    def close(self, *, failed: bool) -> None:
        """End the run, if the training's end hasn't."""
        self._auto_end_run = False
        active = self._ml_flow.active_run()
        if active is not None and active.info.run_id == self.run_id:
            self._ml_flow.end_run("KILLED" if failed else "FINISHED")


def _import_mlflow() -> Any:
    """Import MLflow as we want it: without telemetry, which is sent from the import on."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name, value in _MANNERS.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


def _clean(name: str) -> str:
    """Return a name in the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)
