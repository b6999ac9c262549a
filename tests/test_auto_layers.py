"""``layers: auto`` through the whole flow, on a backbone whose second layer alone tells labels apart."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

from embedtune import load_bundle, scan
from embedtune.config import TransformerView
from embedtune.data.splits import read_splits
from run_cases import read_figures, write_recipe, write_rows
from test_run import call, list_times
from tiny_models import build_tiny_bert

SETTINGS = [
    "embed.views.bert.layers=auto",
    "embed.views.bert.pooling=cls",
    "compare.arms=[frozen,frozen+,tuned]",
    "finetune.epochs=1",
    "embed.backend=torch",
]
N_PILOT = 100


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A five-layer BERT whose [CLS] has read nothing before layer 2 and is a constant from layer 3 on."""
    folder = build_tiny_bert(tmp_path_factory.mktemp("model") / "bert", n_layers=5)
    bert = BertModel.from_pretrained(folder)
    with torch.no_grad():
        bert.encoder.layer[0].attention.output.dense.weight.zero_()
        bert.encoder.layer[1].attention.output.dense.weight.mul_(5)
        bert.encoder.layer[2].output.LayerNorm.weight.zero_()
    bert.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = write_rows(folder / "moves.csv")
    return write_recipe(folder / "tiny.yaml", model=model, data=rows, store=folder / "store")


@pytest.fixture(scope="module")
def counted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counter[int]]:
    """A run with a small pilot, and how many rows went through each layer while the frozen backbone read them."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    n_rows: Counter[int] = Counter()
    forward = BertLayer.forward

    def count(layer: BertLayer, hidden: torch.Tensor, *rest: Any, **options: Any) -> Any:
        stack_place = layer.attention.self.layer_idx
        n_rows[stack_place] += len(hidden)
        return forward(layer, hidden, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "N_PILOT", N_PILOT)
        with patch.context() as inner:
            inner.setattr(BertLayer, "forward", count)
            assert call("run", recipe, "--out", out, "--until", "embed", *SETTINGS).exit_code == 0
        result = call("run", recipe, "--out", out, *SETTINGS)
        assert result.exit_code == 0, result.output
    return out, n_rows


def read_scan(out: Path) -> dict[str, Any]:
    (path,) = (out / ".state").glob("embed.*-scan.json")
    found: dict[str, Any] = json.loads(path.read_text())["result"]
    return found


def test_lowest_good_layer_is_chosen_with_those_below(counted: tuple[Path, Counter[int]]) -> None:
    found = read_scan(counted[0])
    assert found["layers"] == [2, 1, 0]
    assert max(found["scores"]["cls"][:2]) < 0.5 < 0.65 < found["scores"]["cls"][2]
    assert json.loads((counted[0] / "results.json").read_text())["automatic_layers"] == {"bert": [2, 1, 0]}


def test_layers_above_are_run_for_the_pilot_rows_only(counted: tuple[Path, Counter[int]]) -> None:
    out, n_rows = counted
    n_pilot, n_probe = (
        read_scan(out)["n_rows"],
        3 * 2,
    )  # loading runs two texts through a backbone, to find its layers
    assert n_pilot < len(read_splits(out / "data").rows("train"))
    assert n_rows[0] - n_rows[2] == len(read_splits(out / "data")) - n_pilot
    assert n_pilot <= n_rows[4] <= n_pilot + n_probe
    assert n_rows[2] == n_rows[3] == n_rows[4]


def test_pilot_is_inside_the_train_rows(recipe: Path, counted: tuple[Path, Counter[int]]) -> None:
    splits = read_splits(counted[0] / "data")
    texts: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        probe = scan._probe

        def spy(run: Any, splits: Any, encoder: Any, rows: Any) -> Any:
            texts.extend(splits.texts[i] for i in rows)
            return probe(run, splits, encoder, rows)

        patch.setattr(scan, "_probe", spy)
        out = counted[0].parent / "again"
        assert call("run", recipe, "--out", out, "--until", "embed", *SETTINGS).exit_code == 0
    assert texts
    assert set(texts) <= {splits.texts[i] for i in splits.rows("train")}


def test_fine_tuned_backbone_is_read_at_its_last_layers(counted: tuple[Path, Counter[int]]) -> None:
    layers = {arm: load_bundle(counted[0] / "arms" / arm).views_[0][1].layers for arm in ("frozen+", "tuned")}
    assert layers == {"frozen+": (2, 1, 0), "tuned": (5, 4, 3, 2, 1)}


def test_report_says_what_was_chosen_and_draws_the_scan(counted: tuple[Path, Counter[int]]) -> None:
    curves = json.loads((counted[0] / "probes.json").read_text())["curves"]
    assert [(curve["adapter"], curve["layers"]) for curve in curves] == [
        ("frozen", [0, 1, 2, 3, 4, 5]),
        ("tuned", [0, 1, 2, 3, 4, 5]),
    ]
    assert curves[0]["scores"] == read_scan(counted[0])["scores"]["cls"]
    page = (counted[0] / "report.html").read_text()
    n_rows = read_scan(counted[0])["n_rows"]
    assert (
        f"bert: layers 0 to 2 of 5 are read by the frozen arms, pooling cls, chosen on {n_rows} train rows. "
        "Each point of its plot reads a layer and those just below it, 5 together; "
        "the lowest within one standard error of the best was taken."
    ) in page


@pytest.fixture(scope="module")
def pooled(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with pooling left open, which takes the settings and the arms from the folder above."""
    out = tmp_path_factory.mktemp("pooled") / "tiny"
    settings = [*SETTINGS, "embed.views.bert.pooling=auto"]
    result = call("run", recipe, "--out", out, *settings)
    assert result.exit_code == 0, result.output
    return out


def test_pooling_is_chosen_with_the_layers(pooled: Path) -> None:
    found = read_scan(pooled)
    assert set(found["scores"]) == {"mean", "cls", "last", "max"}
    best = max(found["scores"], key=lambda name: max(found["scores"][name]))
    assert max(found["scores"][found["pooling"]]) > max(found["scores"][best]) - 0.05
    results = json.loads((pooled / "results.json").read_text())
    assert results["automatic_pooling"] == {"bert": found["pooling"]}
    for arm in ("frozen+", "tuned"):
        assert load_bundle(pooled / "arms" / arm).views_[0][1].pooling == found["pooling"]
    adapter = json.loads(next((pooled / "adapters").glob("*/*/finetune.json")).read_text())
    assert adapter["pooling"] == found["pooling"]


def test_pooling_scan_is_drawn_and_its_cost_counted(pooled: Path) -> None:
    page = (pooled / "report.html").read_text()
    assert f"pooling {read_scan(pooled)['pooling']}, chosen on" in page
    assert "frozen, max" in page
    step = next(path for path in (pooled / ".state").glob("embed.*.json") if "scan" not in path.name)
    seconds = [json.loads(step.read_text())["result"]["seconds"], read_scan(pooled)["seconds"]]
    assert None not in seconds
    cost = json.loads((pooled / "results.json").read_text())["arms"]["frozen"]["cost"]
    assert cost["embed_seconds"] == pytest.approx(sum(seconds))


def test_report_says_what_each_view_brings(recipe: Path, pooled: Path) -> None:
    settings = [*SETTINGS, "embed.views.bert.pooling=auto", "fit.head=stack"]
    assert call("run", recipe, "--out", pooled, *settings).exit_code == 0
    views = json.loads((pooled / "results.json").read_text())["arms"]["frozen+"]["views"]
    assert any(step["taken"] for step in views)
    page = (pooled / "report.html").read_text()
    assert "What each view brings" in page
    assert f"<bdi>{views[0]['view']}</bdi>" in page


def test_cost_of_reading_includes_the_scan(counted: tuple[Path, Counter[int]]) -> None:
    out = counted[0]
    step = next(path for path in (out / ".state").glob("embed.*.json") if "scan" not in path.name)
    rest = json.loads(step.read_text())["result"]["seconds"]
    cost = json.loads((out / "results.json").read_text())["arms"]["frozen"]["cost"]
    assert cost["embed_seconds"] == pytest.approx(rest + read_scan(out)["seconds"])


def test_second_call_does_nothing_again(
    recipe: Path, counted: tuple[Path, Counter[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list_times(counted[0])
    assert call("run", recipe, "--out", counted[0], *SETTINGS).exit_code == 0
    assert list_times(counted[0]) == before


def test_chosen_layers_named_in_the_settings_give_the_same_frozen_figures(
    recipe: Path, counted: tuple[Path, Counter[int]], tmp_path: Path
) -> None:
    named = [
        SETTINGS[0].replace("auto", "[2,1,0]"),
        *SETTINGS[1:2],
        SETTINGS[-1],
        "compare.arms=[frozen,frozen+]",
    ]
    assert call("run", recipe, "--out", tmp_path / "run", *named).exit_code == 0
    found, expected = read_figures(tmp_path / "run"), read_figures(counted[0])
    assert found["arms"]["frozen"] == expected["arms"]["frozen"]
    assert found["automatic_layers"] == {}


def test_scan_is_reported_without_probing_fine_tuned_layers(
    recipe: Path, counted: tuple[Path, Counter[int]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(counted[0], out)
    assert call("run", recipe, "--out", out, *SETTINGS, "compare.probe_layers=false").exit_code == 0
    (curve,) = json.loads((out / "probes.json").read_text())["curves"]
    assert (curve["adapter"], curve["chosen"]) == ("frozen", [2, 1, 0])


def test_changed_rows_need_a_new_scan(
    recipe: Path, counted: tuple[Path, Counter[int]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(counted[0], out)
    assert call("prepare", out, "prepare.tune_fraction=0.4").exit_code == 0
    result = call("fit", out)
    assert result.exit_code == 2
    assert "has no finished 'embed' stage for these settings" in result.output


def test_pooling_is_not_chosen_for_given_layers() -> None:
    with pytest.raises(
        ValueError, match="pooling is 'auto' where layers is 'last5', and the two are chosen together"
    ):
        TransformerView(model="bert", pooling="auto")


def test_pooler_has_no_layers_to_choose() -> None:
    with pytest.raises(ValueError) as caught:
        TransformerView(model="bert", layers="auto", pooling="pooler")
    assert (
        "layers is 'auto' where pooling is 'pooler', which reads the last layer only: set layers to [-1]"
        in str(caught.value)
    )
