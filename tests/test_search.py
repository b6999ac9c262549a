"""Searching fine-tuning settings within a budget: by itself, and as part of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedtune.config import build_experiment
from embedtune.errors import ConfigError, MissingExtraError, RunFolderError
from embedtune.finetune import search as search_module
from embedtune.finetune.search import Search, search_settings
from finetune_child import WORDS, make_rows
from run_cases import write_recipe, write_rows
from test_run import call, list_times

GIVEN = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 8}


def search(model: Path, output_dir: Path, *, budget: float, **changes: Any) -> Search:
    texts, labels = make_rows(48)
    return search_settings(
        model,
        texts,
        labels=labels,
        label_names=list(WORDS),
        output_dir=output_dir,
        budget=budget,
        max_length=32,
        precision="float32",
        device="cpu",
        **{**GIVEN, **changes},
    )


def have_trials_last_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the search see a clock that only trials move on, whatever else the machine does."""
    original, now = search_module.fine_tune, 0

    def tune(*args: Any, **options: Any) -> Any:
        nonlocal now
        try:
            return original(*args, **options)
        finally:
            now += 1

    monkeypatch.setattr(search_module, "fine_tune", tune)
    monkeypatch.setattr(search_module, "time", SimpleNamespace(perf_counter=lambda: now))


def test_first_trial_has_the_given_settings_and_ends(tiny_bert: Path, tmp_path: Path) -> None:
    found = search(tiny_bert, tmp_path, budget=1e-6)
    assert len(found.trials) == 1
    assert found.settings == GIVEN
    assert found.macro_f1 == found.given_macro_f1 == found.trials[0]["macro_f1"]


def test_best_trial_wins_and_a_later_call_goes_on(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_trials_last_a_second(monkeypatch)
    first = search(tiny_bert, tmp_path, budget=4)
    assert (len(first.trials), first.seconds) == (4, 4)
    assert first.macro_f1 == max(trial["macro_f1"] or 0 for trial in first.trials) >= first.given_macro_f1
    best = max(
        (trial for trial in first.trials if trial["macro_f1"] is not None),
        key=lambda trial: (trial["macro_f1"], -trial["log_loss"]),
    )
    assert first.settings == {name: best[name] for name in GIVEN}
    for trial in first.trials:
        assert 2.5e-4 <= trial["learning_rate"] <= 4e-3
        assert 1 <= trial["epochs"] <= 4
        assert trial["batch_size"] in (4, 8)
    again = search(tiny_bert, tmp_path, budget=1e-6)
    assert again.trials == first.trials
    assert again.settings == first.settings
    more = search(tiny_bert, tmp_path, budget=sum(trial["seconds"] for trial in first.trials) + 2)
    assert more.trials[: len(first.trials)] == first.trials
    assert len(more.trials) > len(first.trials)


def test_weights_of_trials_are_not_kept(tiny_bert: Path, tmp_path: Path) -> None:
    search(tiny_bert, tmp_path, budget=1)
    assert [path.name for path in tmp_path.iterdir()] == ["trials.log"]


@pytest.mark.parametrize("line", ['{"op_code": 42}', "{"])
def test_journal_that_can_not_be_read_is_told(line: str, tiny_bert: Path, tmp_path: Path) -> None:
    search(tiny_bert, tmp_path, budget=1e-6)
    journal = tmp_path / "trials.log"
    journal.write_text(f"{line}\n{journal.read_text()}")
    with pytest.raises(
        RunFolderError, match=r"trials\.log' is damaged, .*: delete it, and the search begins anew"
    ):
        search(tiny_bert, tmp_path, budget=1e-6)


def test_trial_that_is_running_when_time_is_up_is_stopped(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time as the second trial sees it jumps past the budget within its first epoch."""
    original = search_module.fine_tune
    calls: list[dict[str, Any]] = []

    def tune(*args: Any, **options: Any) -> Any:
        calls.append(options)
        if len(calls) == 2:
            real = search_module.time.perf_counter
            monkeypatch.setattr(search_module.time, "perf_counter", lambda: real() + 1000)
        return original(*args, **{**options, "epochs": 4 if len(calls) == 2 else options["epochs"]})

    monkeypatch.setattr(search_module, "fine_tune", tune)
    found = search(tiny_bert, tmp_path, budget=500, epochs=4)
    assert [trial["macro_f1"] is None for trial in found.trials] == [False, True]
    assert found.settings == {**GIVEN, "epochs": 4}


@pytest.mark.parametrize("n_good", [0, 1])
def test_trial_that_diverges_has_lost_unless_it_is_the_given_one(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_good: int
) -> None:
    original, n_calls = search_module.fine_tune, 0

    def tune(*args: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls > n_good:
            options = {**options, "learning_rate": 1e30}
        return original(*args, **options)

    monkeypatch.setattr(search_module, "fine_tune", tune)
    have_trials_last_a_second(monkeypatch)
    if not n_good:
        with pytest.raises(ConfigError, match="fine-tuning diverged"):
            search(tiny_bert, tmp_path, budget=2)
        return
    found = search(tiny_bert, tmp_path, budget=2)
    assert found.settings == GIVEN
    assert len(found.trials) == 2
    assert all(trial["macro_f1"] is None for trial in found.trials[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["trials.log"]


def test_search_without_optuna_says_what_to_install(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"needs optuna: pip install 'embedtune\[search\]'"):
        search(tiny_bert, tmp_path, budget=1)


def test_budget_of_nothing_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="budget 0 is out of range: give seconds above 0"):
        search(tiny_bert, tmp_path, budget=0)


@pytest.fixture(scope="module")
def run(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    folder = tmp_path_factory.mktemp("search")
    recipe = write_recipe(
        folder / "tiny.yaml", model=tiny_bert, data=write_rows(folder / "moves.csv"), store=folder / "store"
    )
    settings = [
        "finetune.budget=3s",
        "finetune.method=upper",
        "finetune.n_upper_layers=1",
        "compare.arms=[frozen,frozen+,tuned]",
    ]
    out = folder / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        have_trials_last_a_second(monkeypatch)
        result = call("run", recipe, "--out", out, *settings)
    assert result.exit_code == 0, result.output
    return recipe, out, settings


def test_backbones_are_fine_tuned_with_what_was_found(run: tuple[Path, Path, list[str]]) -> None:
    out = run[1]
    (found,) = json.loads((out / "results.json").read_text())["search"].values()
    facts = json.loads(next((out / "adapters").glob("*/*/finetune.json")).read_text())
    assert {name: facts[name] for name in found["settings"]} == found["settings"]
    assert found["n_trials"] == 3
    assert found["macro_f1"] >= found["given_macro_f1"]


def test_search_is_paid_for_by_the_tuned_arms(run: tuple[Path, Path, list[str]]) -> None:
    out = run[1]
    results = json.loads((out / "results.json").read_text())
    (found,) = results["search"].values()
    facts = json.loads(next((out / "adapters").glob("*/*/finetune.json")).read_text())
    assert results["arms"]["tuned"]["cost"]["finetune_seconds"] == pytest.approx(
        found["seconds"] + facts["seconds"]
    )
    assert results["arms"]["frozen"]["cost"]["finetune_seconds"] == 0


def test_report_names_what_was_found(run: tuple[Path, Path, list[str]]) -> None:
    page = (run[1] / "report.html").read_text()
    assert "learning rate" in page
    assert "sought for" in page


def test_second_run_does_not_search_again(run: tuple[Path, Path, list[str]]) -> None:
    recipe, out, settings = run
    before = list_times(out)
    assert call("run", recipe, "--out", out, *settings).exit_code == 0
    assert list_times(out) == before


@pytest.mark.parametrize(
    ("budget", "seconds"), [("90s", 90), ("10m", 600), ("1.5 h", 5400), (45, 45), (None, None)]
)
def test_budget_is_a_duration_or_seconds(budget: Any, seconds: float | None) -> None:
    assert build_experiment(make_settings(budget), where="test").finetune.budget == seconds


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("10 parsecs", r"'10 parsecs' is no duration: give seconds, or a time such as 90s, 10m or 1h"),
        ("-3m", r"'-3m' is no duration"),
        (0, r"'finetune\.budget' is 0: input should be greater than 0"),
    ],
)
def test_budget_that_is_none_is_refused(budget: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_experiment(make_settings(budget), where="test")


def test_budget_with_instruction_tuning_is_refused() -> None:
    settings = make_settings("1m", objective="instruction")
    with pytest.raises(ConfigError, match="tuned by instruction, which has no validation part to search on"):
        build_experiment(settings, where="test")


def make_settings(budget: Any, **finetune: Any) -> dict[str, Any]:
    return {
        "name": "one",
        "tasks": {"moves": {"source": "moves.csv"}},
        "embed": {"views": {"bert": {"kind": "transformer", "model": "bert"}}},
        "finetune": {"budget": budget, **finetune},
        "compare": {"arms": ["frozen", "tuned"]},
    }
