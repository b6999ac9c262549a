"""The arm tuned+ through the whole flow: no adapter reads for the head what it was fine-tuned on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import log_softmax

from embedtune import EmbedClassifier, TransformerEncoder, load_bundle, pipeline
from embedtune.data.splits import read_splits
from embedtune.embed.crossfitted import CrossFittedEncoder
from embedtune.finetune.saved import read_finetuned
from embedtune.heads.calibration import Calibrator
from embedtune.results import sum_costs
from run_cases import write_recipe, write_rows
from test_run import call, list_times

SETTINGS = ["compare.arms=[frozen+,tuned+,end-to-end]", "finetune.epochs=2"]


@pytest.fixture(scope="module")
def recipe(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = write_rows(folder / "moves.csv")
    return write_recipe(folder / "tiny.yaml", model=tiny_bert, data=rows, store=folder / "store")


class Spy:
    """What each adapter was fine-tuned on, and what it read for the head and for new texts."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.trained: dict[str, set[str]] = {}
        self.read_to_fit: dict[str, list[str]] = {}
        self.n_averaged: set[int] = set()
        self._fitting = False
        fine_tune, transform = pipeline.fine_tune, TransformerEncoder.transform
        fit_transform, average = CrossFittedEncoder.fit_transform, CrossFittedEncoder.transform

        def spy_fine_tune(model: str, texts: list[str], **options: Any) -> Any:
            self.trained[str(options["output_dir"])] = set(texts)
            return fine_tune(model, texts, **options)

        def spy_transform(encoder: TransformerEncoder, X: list[str]) -> Any:
            if self._fitting:
                self.read_to_fit.setdefault(str(encoder.adapter), []).extend(X)
            return transform(encoder, X)

        def spy_fit_transform(encoder: CrossFittedEncoder, X: list[str], y: Any = None) -> Any:
            self._fitting = True
            try:
                return fit_transform(encoder, X, y)
            finally:
                self._fitting = False

        def spy_average(encoder: CrossFittedEncoder, X: list[str]) -> Any:
            self.n_averaged.add(len(encoder.encoders))
            return average(encoder, X)

        patch.setattr(pipeline, "fine_tune", spy_fine_tune)
        patch.setattr(TransformerEncoder, "transform", spy_transform)
        patch.setattr(CrossFittedEncoder, "fit_transform", spy_fit_transform)
        patch.setattr(CrossFittedEncoder, "transform", spy_average)


@pytest.fixture(scope="module")
def spied(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Spy]:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        spy = Spy(patch)
        result = call("run", recipe, "--out", out, *SETTINGS)
    assert result.exit_code == 0, result.output
    return out, spy


def test_no_row_reaches_the_head_through_an_adapter_that_saw_it_or_its_group(spied: tuple[Path, Spy]) -> None:
    out, spy = spied
    splits = read_splits(out / "data")
    group = dict(zip(splits.texts, splits.groups, strict=True))
    assert len(spy.read_to_fit) == 3
    for adapter, texts in spy.read_to_fit.items():
        seen = {group[text] for text in spy.trained[adapter]}
        assert texts
        assert not seen & {group[text] for text in texts}


def test_every_training_row_is_read_once_and_no_test_row_was_trained_on(spied: tuple[Path, Spy]) -> None:
    out, spy = spied
    splits = read_splits(out / "data")
    read = sorted(text for texts in spy.read_to_fit.values() for text in texts)
    assert read == sorted(splits.texts[i] for i in splits.rows("tune", "train"))
    trained = set().union(*spy.trained.values())
    assert not trained & {splits.texts[i] for i in splits.rows("test")}


def test_test_rows_are_read_by_all_adapters_and_averaged(spied: tuple[Path, Spy]) -> None:
    out, spy = spied
    assert spy.n_averaged == {3}
    splits = read_splits(out / "data")
    texts = [splits.texts[i] for i in splits.rows("test")]
    bundle = load_bundle(out / "arms" / "tuned+")
    (_, bert), (_, lexical) = bundle.views_
    read = []
    for encoder, (weight, bias) in zip(bert.encoders, bert.heads, strict=True):
        layers = encoder.transform(texts)
        last = layers[:, :32] if encoder.layers_[0] == 4 else layers[:, 32:]
        read.append(np.hstack([layers, log_softmax(last @ weight.T + bias, axis=1)]))
    mean = np.mean(read, axis=0)
    for block in (mean[:, :32], mean[:, 32:64]):
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    X = np.hstack([mean, lexical.transform(texts).toarray()])
    table = pq.read_table(out / "predictions" / "tuned+.parquet")
    found = bundle.calibrator_.transform(bundle.head_.predict_proba(X))
    np.testing.assert_allclose(found[:, 0], table["p:down"].to_numpy(), atol=5e-3)


def test_loaded_bundle_predicts_what_the_arm_predicted(spied: tuple[Path, Spy]) -> None:
    out, _ = spied
    splits = read_splits(out / "data")
    found = load_bundle(out / "arms" / "tuned+").predict_proba([splits.texts[i] for i in splits.rows("test")])
    table = pq.read_table(out / "predictions" / "tuned+.parquet")
    np.testing.assert_allclose(found[:, 0], table["p:down"].to_numpy(), atol=5e-3)
    assert sorted(path.name for path in (out / "arms/tuned+/adapters/bert").iterdir()) == [
        "fold0",
        "fold1",
        "fold2",
    ]


def test_results_compare_it_and_count_the_cost_of_all_folds(spied: tuple[Path, Spy]) -> None:
    results = json.loads((spied[0] / "results.json").read_text())
    pairs = {(row["a"], row["b"]) for row in results["comparisons"]}
    assert pairs == {("tuned+", "frozen+"), ("end-to-end", "frozen+")}
    whole, once = (results["arms"][arm]["cost"] for arm in ("tuned+", "end-to-end"))
    assert whole["trained_parameters"] == 3 * once["trained_parameters"]
    steps = (spied[0] / ".state").glob("finetune.*-fold*.json")
    seconds = [json.loads(path.read_text())["result"]["seconds"] for path in steps]
    assert whole["finetune_seconds"] == pytest.approx(sum(seconds))


def test_parameters_are_summed_over_folds_and_backbones_but_not_over_seeds() -> None:
    once = {"seconds": 2.0, "peak_memory_bytes": 1, "trained_parameters": 10, "total_parameters": 30}
    found = sum_costs(fit=[], finetune=[once] * 6, n_seeds=2)
    assert (found["finetune_seconds"], found["trained_parameters"], found["total_parameters"]) == (
        12.0,
        30,
        90,
    )


def test_folds_calibrate_the_end_to_end_arm(spied: tuple[Path, Spy]) -> None:
    """What the folds' own heads say of the rows they haven't seen is what the calibrator learned from."""
    out = spied[0]
    splits = read_splits(out / "data")
    calibrator = load_bundle(out / "arms" / "end-to-end").calibrator_
    assert calibrator is not None
    rows = splits.rows("tune", "train")
    assert len(calibrator.conformity_) == len(rows)
    folds = load_bundle(out / "arms" / "tuned+").views_[0][1].encoders
    raw = np.zeros((len(rows), len(splits.label_names)))
    for path, encoder in zip(sorted(out.glob("adapters/*/*-fold*")), folds, strict=True):
        tuned = read_finetuned(path)
        seen = spied[1].trained[str(path)]
        unseen = [i for i, row in enumerate(rows) if splits.texts[row] not in seen]
        own = EmbedClassifier.from_finetuned(
            encoder.set_params(layers=(-1,)),
            weight=tuned.head_weight,
            bias=tuned.head_bias,
            labels=tuned.label_names,
        )
        raw[unseen] = own.predict_proba([splits.texts[rows[i]] for i in unseen])
    y = splits.codes[rows]
    groups = np.unique(np.asarray(splits.groups)[rows], return_inverse=True)[1]
    again = Calibrator(random_state=0).fit(raw, y, groups)
    np.testing.assert_allclose(again.conformity_, calibrator.conformity_, atol=2e-3)
    table = pq.read_table(out / "predictions" / "out-of-fold" / "end-to-end.parquet")
    assert table["row_id"].to_pylist() == [splits.row_ids[row] for row in rows]
    arm = json.loads((out / "results.json").read_text())["arms"]["end-to-end"]
    assert arm["calibration"]["method"] == calibrator.method_
    assert arm["sets"]["covered"] > 0.5


@pytest.mark.parametrize(
    ("arms", "more", "n_rows"),
    [
        ("[frozen+,tuned,end-to-end]", [], "train"),
        ("[frozen+,end-to-end]", [], None),
        ("[tuned,end-to-end]", ["fit.calibration=none"], None),
    ],
)
def test_end_to_end_is_calibrated_by_what_the_run_has(
    recipe: Path, tmp_path: Path, arms: str, more: list[str], n_rows: str | None
) -> None:
    out = tmp_path / "run"
    settings = [f"compare.arms={arms}", "finetune.epochs=1", *more]
    assert call("run", recipe, "--out", out, *settings).exit_code == 0
    calibrator = load_bundle(out / "arms" / "end-to-end").calibrator_
    if n_rows is None:
        assert calibrator is None
    else:
        assert len(calibrator.conformity_) == len(read_splits(out / "data").rows(n_rows))


def test_second_call_trains_nothing(recipe: Path, spied: tuple[Path, Spy]) -> None:
    before = list_times(spied[0])
    assert call("run", recipe, "--out", spied[0], *SETTINGS).exit_code == 0
    assert list_times(spied[0]) == before


def test_lost_fold_is_trained_again_alone(recipe: Path, spied: tuple[Path, Spy], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(spied[0], out)
    (out / ".state").glob("finetune.*-fold1-*.json").__next__().unlink()
    shutil.rmtree(next(out.glob("adapters/*/*-fold1-*")))
    with pytest.MonkeyPatch.context() as patch:
        spy = Spy(patch)
        assert call("run", recipe, "--out", out, *SETTINGS).exit_code == 0
    assert [Path(path).name for path in spy.trained] == ["tune+train-fold1-seed0"]


def test_changed_number_of_folds_redoes_what_reads_the_folds_only(
    recipe: Path, spied: tuple[Path, Spy], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(spied[0], out)
    before = list_times(out)
    assert call("run", recipe, "--out", out, *SETTINGS, "finetune.n_folds=2").exit_code == 0
    changed = {name for name, at in list_times(out).items() if before.get(name) != at}
    assert "fit.tuned+.json" in changed
    assert all(
        "-fold" in name
        or name.split(".json")[0]
        in ("fit.tuned+", "fit.end-to-end", "fit.suspects", "compare", "report", "bundle")
        for name in changed
    )
    assert sorted(path.name for path in out.glob("adapters/*/*")) == [
        "tune+train-fold0-seed0", "tune+train-fold1-seed0", "tune+train-seed0",
    ]  # fmt: skip


def test_more_folds_than_rows_allow_are_refused(recipe: Path, tmp_path: Path) -> None:
    result = call("run", recipe, "--out", tmp_path / "run", *SETTINGS, "finetune.n_folds=400")
    assert result.exit_code == 2
    assert "rows of tune and train make" in result.output
    assert "or leave tuned+ out of compare.arms." in result.output
