from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from embedtune import PromptClassifier
from embedtune.config import Experiment, FinetuneConfig, PromptConfig, build_experiment, dump_experiment
from embedtune.errors import ConfigError
from embedtune.recipe import list_recipes, read_recipe

PROMPT_KEYS = ", ".join(PromptConfig.model_fields)


def fail(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build_experiment(read_recipe("demo").resolve(overrides), where="recipe demo")
    return str(caught.value)


@pytest.mark.parametrize("recipe", list_recipes())
def test_shipped_recipe_survives_dump_and_read(recipe: str, tmp_path: Path) -> None:
    experiment = build_experiment(read_recipe(recipe).resolve(), where=recipe)
    path = tmp_path / "config.yaml"
    path.write_text(dump_experiment(experiment), encoding="utf-8")
    assert build_experiment(read_recipe(str(path)).resolve(), where="it") == experiment


def test_resolve_leaves_the_settings_given_alone() -> None:
    recipe = read_recipe("default")
    changed = recipe.resolve(["finetune.learning_rate=2e-5", "seeds=[1, 2]", "fit.class_weight=null"])
    assert changed["finetune"]["learning_rate"] == 2e-5
    assert changed["seeds"] == [1, 2]
    assert changed["fit"]["class_weight"] is None
    assert "finetune" not in recipe.settings


def test_build_experiment_names_all_problems_at_once() -> None:
    assert fail("finetune.epoch=3", "fit.head=forest", "xx=1") == (
        "3 problems in recipe demo: unknown key 'finetune.epoch' (did you mean 'epochs'?), allowed here: "
        f"{', '.join(FinetuneConfig.model_fields)}; 'fit.head' is 'forest': input should be 'auto', 'logistic', "
        "'ridge', 'stack' or 'cooccurrence'; "
        "unknown key 'xx', allowed here: name, tasks, prepare, embed, finetune, fit, prompt, compare, by_task, seeds, "
        "track."
    )


def test_build_experiment_refuses_a_backbone_that_no_view_reads() -> None:
    assert fail("finetune.backbones=[bert]") == (
        "1 problem in recipe demo: finetune.backbones names 'bert', which no view reads: the views read "
        "['sentence-transformers/all-MiniLM-L6-v2']."
    )


def test_unknown_recipe_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe("dmo")
    assert str(caught.value) == (
        f"no recipe named 'dmo' (did you mean 'demo'?): there are {', '.join(list_recipes())}. "
        "Give one of them, a .yaml file, or your own texts with --data."
    )


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\nembed: [\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml is not valid YAML: .* line 3.*\. Mend that line\."):
        read_recipe(str(path))


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


QUIRKY = """
name: quirky
tasks: {a: {source: x.csv}}
embed: {views: {m: {kind: transformer, model: tiny, max_length: 64}}}
by_task: {b: {embed.views.m.max_length: 32}}
quirks:
  padded:
    description: the mean runs over padding too
    settings: {embed.views.m.pooling: mean_padded}
    by_task: {b: {embed.views.m.max_length: 256}}
  hot:
    description: no dropout
    settings: {fit.cooccurrence.dropout: 0.0}
"""


@pytest.mark.parametrize(
    ("overrides", "task", "pooling", "max_length", "dropout"),
    [
        ([], None, "mean", 64, 0.5),
        ([], "b", "mean", 32, 0.5),
        (["compat=published"], None, "mean_padded", 64, 0.0),
        (["compat=published"], "b", "mean_padded", 256, 0.0),
        (["compat=[hot]"], "b", "mean", 32, 0.0),
        (["compat=padded", "embed.views.m.max_length=8"], "b", "mean_padded", 8, 0.5),
    ],
)
def test_quirks_are_switched_by_name_and_the_users_own_settings_win(
    tmp_path: Path, overrides: list[str], task: str | None, pooling: str, max_length: int, dropout: float
) -> None:
    path = tmp_path / "quirky.yaml"
    path.write_text(QUIRKY, encoding="utf-8")
    experiment = build_experiment(read_recipe(str(path)).resolve(overrides, task=task), where="it")
    view = experiment.embed.views["m"]
    assert (view.pooling, view.max_length) == (pooling, max_length)  # type: ignore[union-attr]
    assert experiment.fit.cooccurrence.dropout == dropout


@pytest.mark.parametrize(
    ("recipe", "quirk"),
    [(name, quirk) for name in list_recipes() for quirk in read_recipe(name).quirks],
)
def test_every_shipped_quirk_changes_its_recipe(recipe: str, quirk: str) -> None:
    found = read_recipe(recipe)
    tasks = found.quirks[quirk].by_task or [None]
    for task in tasks:
        plain, changed = (
            build_experiment(found.resolve([f"compat={compat}"], task=task), where=recipe)
            for compat in ("corrected", f"[{quirk}]")
        )
        assert plain != changed


def test_unknown_quirk_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "quirky.yaml"
    path.write_text(QUIRKY, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_recipe(str(path)).resolve(["compat=[paded]"])
    assert str(caught.value) == (
        f"compat 'paded' is unknown to recipe {path} (did you mean 'padded'?): "
        "choose among corrected, published, padded, hot, several as [a, b]."
    )


MANY = """
name: many
tasks: {a: {source: x.csv}, b: {source: y.csv}}
prepare: {max_rows: 500}
embed: {views: {one: {kind: transformer, model: org/a}, two: {kind: transformer, model: org/a, pooling: cls},
  three: {kind: transformer, model: org/b, max_length: 9}, words: {kind: lexical}}}
finetune: {backbones: [org/a, org/b], by_backbone: {org/b: {epochs: 1}}}
by_task: {b: {prepare.max_rows: 70, fit.head: ridge}}
"""


def read_many(path: Path, *overrides: str) -> Experiment:
    path.write_text(MANY, encoding="utf-8")
    return build_experiment(read_recipe(str(path)).resolve(overrides), where="it")


def test_tasks_of_one_run_may_differ_and_the_users_own_settings_win(tmp_path: Path) -> None:
    experiment = read_many(tmp_path / "many.yaml", "fit.head=stack")
    a, b = experiment.of("a"), experiment.of("b")
    assert (list(a.tasks), a.prepare.max_rows, a.fit.head) == (["a"], 500, "stack")
    assert (list(b.tasks), b.prepare.max_rows, b.fit.head) == (["b"], 70, "stack")
    saved = tmp_path / "saved.yaml"
    saved.write_text(dump_experiment(experiment), encoding="utf-8")
    assert build_experiment(read_recipe(str(saved)).resolve(), where="it") == experiment


def test_settings_of_a_task_are_checked_like_the_others(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text(MANY.replace("prepare.max_rows: 70", "prepare.max_row: 7"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"by_task\.b: unknown key 'prepare\.max_row'"):
        build_experiment(read_recipe(str(path)).resolve(), where="it")


@pytest.mark.parametrize(
    ("backbones", "reads", "tuned", "own"),
    [
        ("[x, y]", {"one": "x", "two": "x", "three": "y"}, ("x", "y"), {"y": {"epochs": 1}}),
        ("[x]", {"one": "x", "two": "x"}, ("x",), {}),
        (
            "[x, y, z]",
            {"one": "x", "two": "x", "three": "y", "backbone3": "z"},
            ("x", "y"),
            {"y": {"epochs": 1}},
        ),
    ],
)
def test_backbones_are_swapped_in_order(
    tmp_path: Path, backbones: str, reads: dict[str, str], tuned: tuple[str, ...], own: dict[str, Any]
) -> None:
    experiment = read_many(tmp_path / "many.yaml", f"backbones={backbones}")
    views = {name: view for name, view in experiment.embed.views.items() if name != "words"}
    assert {name: view.model for name, view in views.items()} == reads  # type: ignore[union-attr]
    assert (experiment.finetune.backbones, experiment.finetune.by_backbone) == (tuned, own)
    if "backbone3" in views:
        assert views["backbone3"].max_length == 9  # type: ignore[union-attr]


def test_settings_of_one_task_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    experiment = read_many(
        tmp_path / "many.yaml", "by_task.b.fit.head=stack", "by_task.a.prepare.max_rows=60"
    )
    a, b = experiment.of("a"), experiment.of("b")
    assert (a.prepare.max_rows, a.fit.head) == (60, "auto")
    assert (b.prepare.max_rows, b.fit.head) == (70, "stack")


@pytest.mark.parametrize("overrides", [[], ["backbones=[x]"]])
@pytest.mark.parametrize(
    "broken",
    [
        "tasks: [{a: b}]",
        "embed: [1]",
        "embed: {views: {m: 3}}",
        "embed: {views: 3}",
        "finetune: 5",
        "by_task: {}",
    ],
)
def test_malformed_sections_are_refused_in_one_line(
    tmp_path: Path, broken: str, overrides: list[str]
) -> None:
    whole = {"name": "name: x", "tasks": "tasks: {t: {source: x.csv}}", "embed": "embed: {views: {m: 3}}"}
    key = broken.partition(":")[0]
    path = tmp_path / "odd.yaml"
    path.write_text("\n".join({**whole, key: broken}.values()), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        build_experiment(read_recipe(str(path)).resolve(overrides), where="it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fit.cooccurrence.epochs=[]"], r"fit\.cooccurrence\.epochs.*at least 1 item"),
        (
            ["fit.head=cooccurrence", "fit.cooccurrence.validation_fraction=0"],
            r"fit\.cooccurrence leaves sigma to be chosen, and validation_fraction is 0: set it above 0",
        ),
    ],
)
def test_choices_that_cannot_be_made_are_refused(overrides: list[str], message: str) -> None:
    assert re.search(message, fail(*overrides))


def test_backbones_that_are_no_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_many(tmp_path / "many.yaml", "backbones=x")
    assert str(caught.value) == "backbones is 'x': give a list of models, for example backbones=[A, B]."


def test_a_backbone_may_have_settings_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    views = "{a: {kind: transformer, model: org/a}, b: {kind: transformer, model: org/b}}"
    text = f"name: two\ntasks: {{t: {{source: x.csv}}}}\nembed: {{views: {views}}}\n"
    path.write_text(f"{text}finetune: {{epochs: 3, by_backbone: {{org/b: {{method: lora, epochs: 1}}}}}}\n")
    finetune = build_experiment(read_recipe(str(path)).resolve(), where="it").finetune
    assert (finetune.of("org/a").method, finetune.of("org/a").epochs) == ("full", 3)
    assert (finetune.of("org/b").method, finetune.of("org/b").epochs) == ("lora", 1)
    for wrong, message in (
        ("{org/c: {epochs: 1}}", "finetune.by_backbone names 'org/c', which no view reads"),
        ("{org/b: {epoch: 1}}", "'finetune.by_backbone.org/b.epoch' is 1"),
    ):
        path.write_text(f"{text}finetune: {{by_backbone: {wrong}}}\n")
        with pytest.raises(ConfigError, match=message):
            build_experiment(read_recipe(str(path)).resolve(), where="it")


@pytest.mark.parametrize(
    "part", ["quirks: [a]", "quirks: {a: {settings: {}}}", "by_task: 3", "by_task: {a: 1}"]
)
def test_recipe_with_malformed_parts_is_refused_in_one_line(tmp_path: Path, part: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(f"name: odd\n{part}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"of .*odd\.yaml can't be read .*: by_task holds settings by task"):
        read_recipe(str(path))


def test_prompt_arm_needs_somebody_to_ask() -> None:
    assert fail("compare.arms=[frozen+, prompt]") == (
        "1 problem in recipe demo: compare.arms names 'prompt', and there is nothing to ask: set prompt.model to a "
        "decoder's folder or Hub name, or prompt.endpoint to a server such as http://127.0.0.1:8000/v1."
    )
    for setting in ("prompt.model=org/a", "prompt.endpoint=http://127.0.0.1:8000/v1"):
        recipe = read_recipe("demo").resolve(["compare.arms=[prompt]", setting])
        assert build_experiment(recipe, where="it").compare.arms == ("prompt",)


@pytest.mark.parametrize(
    ("override", "variable"),
    [
        ("tasks.sentiment.source=s3://me:secret@bucket/rows.csv", "AWS_SECRET_ACCESS_KEY"),
        ("tasks.sentiment.source=s3://me:sec/ret@bucket/rows.csv", "AWS_SECRET_ACCESS_KEY"),
        ("tasks.sentiment.test_source=simplecache::sftp://me:secret@bucket/rows.csv", "FSSPEC_SFTP_PASSWORD"),
        ("embed.store=sftp://:secret@bucket/store", "FSSPEC_SFTP_PASSWORD"),
    ],
)
def test_password_in_an_address_is_refused_and_not_told(override: str, variable: str) -> None:
    scheme = "s3" if "s3:" in override else "sftp"
    assert fail(override) == (
        f"1 problem in recipe demo: an address ({scheme}://…) is given with a password: leave it out, and set it in "
        f"the environment ({variable})."
    )


@pytest.mark.parametrize("address", ["sftp://me@host/rows@2024:1.csv", "sftp://host:22/rows@2024.csv"])
def test_address_without_password_is_taken(address: str) -> None:
    experiment = build_experiment(
        read_recipe("demo").resolve([f"tasks.sentiment.source={address}"]), where="demo"
    )
    assert experiment.tasks["sentiment"].source == address


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["prompt.instruction=Rate it."],
            "prompt.instruction 'Rate it.' doesn't say what may be answered: put {options} where the labels go",
        ),
        (
            ["prompt.endpoint=http://x/v1", "prompt.calibrate=true"],
            "prompt.calibrate and prompt.normalisation need the likelihoods of a local model: "
            "leave them out, or prompt.endpoint",
        ),
        (
            ["prompt.endpoint=https://me:secret@x/v1"],
            "prompt.endpoint is given with a name or password: leave it out, and set the environment "
            "variable OPENAI_API_KEY to the key",
        ),
        (
            ["prompt.modell=a"],
            f"unknown key 'prompt.modell' (did you mean 'model'?), allowed here: {PROMPT_KEYS}",
        ),
    ],
)
def test_prompt_settings_that_cannot_work_are_refused(overrides: list[str], message: str) -> None:
    assert fail(*overrides) == f"1 problem in recipe demo: {message}."


def test_labels_that_yaml_reads_as_numbers_are_the_labels_texts() -> None:
    for given, expected in [
        ("{0: down, 1: up}", {"0": "down", "1": "up"}),
        ("{false: down, true: up}", {"false": "down", "true": "up"}),
    ]:
        settings = read_recipe("demo").resolve([f"prompt.options={given}"])
        assert build_experiment(settings, where="here").prompt.options == expected


def test_prompt_has_the_librarys_defaults() -> None:
    library = PromptClassifier().get_params()
    for name, value in PromptConfig().model_dump().items():
        assert library[name] == value or (name, value) == ("options", {})


def test_cross_fitted_arm_refuses_heads_trained_on_test_rows() -> None:
    settings = read_recipe("demo").resolve(["compare.arms=[frozen+,tuned+]", "fit.train_rows=test"])
    with pytest.raises(ConfigError) as caught:
        build_experiment(settings, where="here")
    assert str(caught.value) == (
        "1 problem in here: fit.train_rows is 'test' and compare.arms has 'tuned+', whose head is trained on the rows "
        "that its backbones are cross-fitted on: leave tuned+ out, or set fit.train_rows to own."
    )


@pytest.mark.parametrize("text", ["a: &a [1]\nb: *a", "a: &a {b: *a}", "[" * 3000, "a: 2024-99-99"])
def test_yaml_that_stands_for_more_than_it_says_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_recipe(str(path))


@pytest.mark.parametrize("value", ["!!set {a}", "[[a]]", "{a: b}"])
def test_compat_that_is_no_name_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^compat '.*' is unknown to recipe demo"):
        read_recipe("demo").resolve([f"compat={value}"])


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!include"])
def test_yaml_tag_is_refused(tmp_path: Path, tag: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: {tag} ['touch {tmp_path / 'ran'}']\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml is not valid YAML: could not determine a constructor"):
        read_recipe(str(path))
    assert not (tmp_path / "ran").exists()
