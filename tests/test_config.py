from __future__ import annotations

from pathlib import Path

import pytest

from embedtune.config import (
    apply_overrides,
    build_experiment,
    dump_experiment,
    list_recipes,
    read_settings,
)
from embedtune.errors import ConfigError


def fail(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build_experiment(apply_overrides(read_settings("demo"), overrides), where="recipe demo")
    return str(caught.value)


@pytest.mark.parametrize("recipe", list_recipes())
def test_shipped_recipe_survives_dump_and_read(recipe: str, tmp_path: Path) -> None:
    experiment = build_experiment(read_settings(recipe), where=recipe)
    path = tmp_path / "config.yaml"
    path.write_text(dump_experiment(experiment), encoding="utf-8")
    assert build_experiment(read_settings(str(path)), where="it") == experiment


def test_apply_overrides_leaves_the_settings_given_alone() -> None:
    settings = read_settings("default")
    changed = apply_overrides(
        settings, ["finetune.learning_rate=2e-5", "seeds=[1, 2]", "fit.class_weight=null"]
    )
    assert changed["finetune"]["learning_rate"] == 2e-5
    assert changed["seeds"] == [1, 2]
    assert changed["fit"]["class_weight"] is None
    assert "finetune" not in settings


def test_build_experiment_names_all_problems_at_once() -> None:
    assert fail("finetune.epoch=3", "fit.head=forest", "xx=1") == (
        "3 problems in recipe demo: unknown key 'finetune.epoch' (did you mean 'epochs'?), allowed here: backbones, "
        "method, "
        "n_upper_layers, lora_rank, lora_alpha, epochs, learning_rate, batch_size, validation_fraction, patience, "
        "class_weight; 'fit.head' is 'forest': input should be 'auto', 'logistic', 'ridge', 'stack' or 'cooccurrence'; "
        "unknown key 'xx', allowed here: name, tasks, prepare, embed, finetune, fit, compare, seeds."
    )


def test_build_experiment_refuses_a_backbone_that_no_view_reads() -> None:
    assert fail("finetune.backbones=[bert]") == (
        "1 problem in recipe demo: finetune.backbones names 'bert', which no view reads: the views read "
        "['sentence-transformers/all-MiniLM-L6-v2']."
    )


def test_unknown_recipe_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings("dmo")
    assert str(caught.value) == (
        f"no recipe named 'dmo' (did you mean 'demo'?): there are {', '.join(list_recipes())}. "
        "Give one of them, a .yaml file, or your own texts with --data."
    )


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\nembed: [\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml is not valid YAML: .* line 3.*\. Mend that line\."):
        read_settings(str(path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "'epochs' is not a setting: write key=value, for example finetune.epochs=3."),
        ("seeds=[1", "can't read the value of seeds: '[1' is not YAML. Quote it."),
        ("name.x=1", "can't set name.x: name is a single value. See `embedtune recipes NAME`."),
    ],
)
def test_malformed_override_is_refused(override: str, message: str) -> None:
    assert fail(override) == message
