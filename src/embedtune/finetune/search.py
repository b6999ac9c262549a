"""Fine-tuning settings sought within a time budget, on a part of the training rows that is kept aside."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from embedtune.errors import ConfigError, MissingExtraError, RunFolderError
from embedtune.finetune.checkpoints import Epoch
from embedtune.finetune.train import fine_tune

log = logging.getLogger(__name__)

#: Share of the rows that judges a trial.
VALIDATION_FRACTION = 0.25
#: A learning rate is sought between the given one over this and times this; epochs between half and twice theirs.
_RATE_FACTOR = 4.0
_JOURNAL = "trials.log"


class Search(NamedTuple):
    """What a search found.

    Attributes
    ----------
    settings : dict
        ``learning_rate``, ``epochs`` and ``batch_size`` of the best trial.
    macro_f1, given_macro_f1 : float
        Of the best trial, and of the settings as given, on the rows kept aside.
    trials : list of dict
        In the order run: the settings, ``macro_f1`` (None where it was stopped early), ``log_loss`` and ``seconds``.
    seconds : float
        Over all calls.
    """

    settings: dict[str, Any]
    macro_f1: float
    given_macro_f1: float
    trials: list[dict[str, Any]]
    seconds: float


def search_settings(
    model: str | Path,
    texts: Sequence[str],
    *,
    labels: Sequence[str] | Sequence[int],
    label_names: Sequence[str],
    output_dir: str | Path,
    budget: float,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Search:
    """Seek learning rate, epochs and batch size by the macro-F1 after the last epoch on a quarter of the rows.

    The first trial has the settings as given, the others are Optuna's (tree-structured Parzen estimator); a trial whose
    epoch is below the median of the earlier ones' is stopped, and one that diverges has lost. The quarter is the same
    for all trials. A call that was killed goes on with the trials it finished.

    Parameters
    ----------
    model, texts, labels, label_names, groups, seed, settings
        As `fine_tune` takes them; with ``trunk_texts`` the frozen lower layers are read once for all trials.
    output_dir : str or Path
        Where the trials are noted. Weights of trials aren't kept.
    budget : float
        Seconds. The first trial ends whatever it takes; a trial that is running when they are over is stopped after its
        epoch.
    learning_rate, epochs, batch_size
        Where the search starts.

    Raises
    ------
    MissingExtraError
        If Optuna isn't installed.
    ConfigError
        If the budget isn't above 0.
    DataError, BackboneError, RunFolderError
        As `fine_tune` does; RunFolderError also if the journal of trials can't be read.

    References
    ----------
    Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019.
    """
    optuna = _import_optuna()
    if not budget > 0:
        raise ConfigError(f"budget {budget!r} is out of range: give seconds above 0.")
    from embedtune.finetune import loop  # noqa: F401 the first trial's time isn't for importing it

    folder = Path(output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    given = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size}
    study = _open_study(folder, seed=seed)
    started = time.perf_counter()
    before = sum(trial["seconds"] for trial in _list_trials(study))
    if not any(trial["macro_f1"] is not None for trial in _list_trials(study)):
        study.enqueue_trial(given)

    def spent() -> float:
        seconds: float = before + time.perf_counter() - started
        return seconds

    def attempt(trial: Any) -> float:
        chosen = {
            "learning_rate": trial.suggest_float(
                "learning_rate", learning_rate / _RATE_FACTOR, learning_rate * _RATE_FACTOR, log=True
            ),
            "epochs": trial.suggest_int("epochs", max(1, epochs // 2), 2 * epochs),
            "batch_size": trial.suggest_categorical(
                "batch_size", sorted({max(1, batch_size // 2), batch_size})
            ),
        }
        is_first = chosen == given

        def judge(epoch: Epoch) -> None:
            trial.report(epoch.macro_f1, round(epoch.epoch))
            trial.set_user_attr("log_loss", epoch.log_loss)
            is_last = round(epoch.epoch) == chosen["epochs"]
            if not is_first and not is_last and (spent() > budget or trial.should_prune()):
                raise optuna.TrialPruned

        place = Path(tempfile.mkdtemp(dir=folder))
        try:
            tuned = fine_tune(
                model,
                texts,
                labels=labels,
                label_names=label_names,
                groups=groups,
                output_dir=place / "trial",
                seed=seed,
                on_epoch=judge,
                **{**settings, **chosen, "validation_fraction": VALIDATION_FRACTION, "patience": None},
            )
        except ConfigError:
            if is_first:
                raise
            raise optuna.TrialPruned from None  # it diverged: whatever else is wrong, the first trial has met
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return float(tuned.history[-1]["macro_f1"])

    while not _list_trials(study) or spent() < budget:
        study.optimize(attempt, n_trials=1)
        log.info("trial %d: %s", len(study.trials), _list_trials(study)[-1])
    found = _list_trials(study)
    finished = [trial for trial in found if trial["macro_f1"] is not None]
    best = max(finished, key=lambda trial: (trial["macro_f1"], -trial["log_loss"]))
    return Search(
        settings={name: best[name] for name in given},
        macro_f1=best["macro_f1"],
        given_macro_f1=finished[0]["macro_f1"],
        trials=found,
        seconds=round(spent(), 3),
    )


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingExtraError(
            "searching fine-tuning settings needs optuna: pip install 'embedtune[search]'."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open_study(folder: Path, *, seed: int) -> Any:
    """Return the study whose journal lies in a folder, with the trials that it has."""
    optuna = _import_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / _JOURNAL))),
            study_name=_JOURNAL,
            load_if_exists=True,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
        )
        _list_trials(study)
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise RunFolderError(
            f"the journal '{folder / _JOURNAL}' is damaged, or of another release of optuna "
            f"({type(error).__name__}: {error!s:.80}): delete it, and the search begins anew."
        ) from error
    return study


def _list_trials(study: Any) -> list[dict[str, Any]]:
    """Return the trials that ended by themselves or by pruning; a killed one isn't among them."""
    return [
        {
            **trial.params,
            "macro_f1": trial.value if trial.state.name == "COMPLETE" else None,
            "log_loss": trial.user_attrs.get("log_loss"),
            "seconds": round(trial.duration.total_seconds(), 3),
        }
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name in ("COMPLETE", "PRUNED")
    ]
