"""Recipes: a YAML file's settings, what differs from task to task, and the quirks that can be switched on.

::

    name: …            every key of `Experiment`, and beside them
    by_task:           settings of single tasks
      mr: {embed.views.llama.max_length: 512}
    quirks:            what the original did otherwise, off unless `compat` names it
      padded_mean:
        description: the mean runs over padding too
        settings: {embed.views.llama.pooling: mean_padded}
        by_task: {mr: {embed.views.llama.max_length: 3000}}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from embedtune.errors import ConfigError, suggest_nearest

RECIPES_DIR = Path(__file__).parent / "recipes"


class Quirk(BaseModel):
    """Something the original does that the recipe corrects."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    settings: dict[str, Any]
    by_task: dict[str, dict[str, Any]] = {}


class _Extra(BaseModel):
    by_task: dict[str, dict[str, Any]] = {}
    quirks: dict[str, Quirk] = {}


class Recipe(NamedTuple):
    """A recipe's raw parts; `settings` is nested as in `Experiment`, the values of the others have dotted keys."""

    name: str
    settings: dict[str, Any]
    by_task: dict[str, dict[str, Any]]
    quirks: dict[str, Quirk]

    def resolve(self, overrides: Iterable[str] = (), *, task: str | None = None) -> dict[str, Any]:
        """Return an experiment's settings: the recipe's, then the tasks', the quirks', and the user's own.

        Parameters
        ----------
        overrides : iterable of str
            ``key=value``, for one of several tasks ``by_task.TASK.key=value``. Two keys are none of the experiment's:
            ``compat`` chooses quirks (``corrected`` is none, ``published`` all, or a list), ``backbones`` lists the
            models to read instead of the recipe's, in order.
        task : str, optional
            The only task, whose settings of ``by_task`` are merged with the others. Without it, what tasks have of
            their own stands under ``by_task``.

        Raises
        ------
        ConfigError
            If an override can't be read, or a quirk is unknown.
        """
        own = [read_override(text) for text in overrides]
        chosen = self._choose([value for key, value in own if key == "compat"])
        backbones = [value for key, value in own if key == "backbones"]
        own = [pair for pair in own if pair[0] not in ("compat", "backbones")]
        tasks = [task] if task else list(_as_mapping(self.settings.get("tasks")))
        own, of_tasks = _split_by_task(own, tasks)
        settings = set_keys(self.settings, [change for quirk in chosen for change in quirk.settings.items()])
        by_task = {
            name: {
                key: value
                for part in (self.by_task, *(quirk.by_task for quirk in chosen))
                for key, value in part.get(name, {}).items()
                if not any(_overlap(key, given) for given in (*dict(own), *of_tasks[name]))
            }
            | of_tasks[name]
            for name in tasks
        }
        if task:
            settings = set_keys(settings, by_task[task].items())
        elif kept := {name: changes for name, changes in by_task.items() if changes}:
            settings["by_task"] = kept
        if backbones:
            settings = swap_backbones(settings, backbones[-1])
        return set_keys(settings, own)

    def _choose(self, compat: list[Any]) -> list[Quirk]:
        if not compat or compat[-1] == "corrected":
            return []
        if compat[-1] == "published" and self.quirks:
            return list(self.quirks.values())
        names = compat[-1] if isinstance(compat[-1], list) else [compat[-1]]
        for name in names:
            if not isinstance(name, str) or name not in self.quirks:
                allowed = ", ".join(("corrected", "published", *self.quirks)) if self.quirks else "corrected"
                raise ConfigError(
                    f"compat '{name}' is unknown to recipe {self.name}{suggest_nearest(str(name), self.quirks)}: "
                    f"choose among {allowed}, several as [a, b]."
                )
        return [self.quirks[name] for name in names]


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


def read_recipe(recipe: str) -> Recipe:
    """Read a recipe, by its name or by the path of a YAML file.

    Raises
    ------
    ConfigError
        If there is no such recipe, the file isn't a YAML mapping, or its quirks are not as described above.
    """
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        names = list_recipes()
        if recipe not in names:
            raise ConfigError(
                f"no recipe named '{recipe}'{suggest_nearest(recipe, names)}: there are {', '.join(names)}. "
                "Give one of them, a .yaml file, or your own texts with --data."
            )
        path = RECIPES_DIR / f"{recipe}.yaml"
    settings = _read_yaml(path)
    try:
        extra = _Extra.model_validate(
            {key: settings.pop(key) for key in ("by_task", "quirks") if key in settings}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(
            f"{where} of {path} can't be read ({problem['msg'].lower()}): by_task holds settings by task, "
            "and each of the quirks has a description and settings."
        ) from None
    return Recipe(recipe, settings, extra.by_task, extra.quirks)


def read_override(text: str) -> tuple[str, Any]:
    """Split ``key=value`` into a dotted key and the value, which is YAML.

    Raises
    ------
    ConfigError
        If it isn't ``key=value`` or its value isn't YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[\w.+-]+", key):
        raise ConfigError(f"'{text}' is not a setting: write key=value, for example finetune.epochs=3.")
    try:
        return key, _number(_parse_yaml(value))
    except yaml.YAMLError:
        raise ConfigError(f"can't read the value of {key}: '{value}' is not YAML. Quote it.") from None


def set_keys(settings: Mapping[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Set dotted keys in a copy of nested settings.

    Raises
    ------
    ConfigError
        If a key leads through a single value.
    """
    result: dict[str, Any] = _copy(settings)
    for key, value in changes:
        place = result
        *parents, last = key.split(".")
        for parent in parents:
            child = place.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(
                    f"can't set {key}: {parent} is a single value. See `embedtune recipes NAME`."
                )
            place = child
        place[last] = value
    return result


def swap_backbones(settings: Mapping[str, Any], models: Any) -> dict[str, Any]:
    """Return nested settings in which the views read other models.

    The n-th model takes the n-th one's place in its views and in the fine-tuning settings. Views of models beyond the
    list's end go; models beyond the recipe's are read as its last one is.

    Raises
    ------
    ConfigError
        If `models` isn't a list of names, or no view reads a backbone.
    """
    if not isinstance(models, list) or not models or not all(isinstance(model, str) for model in models):
        raise ConfigError(f"backbones is {models!r}: give a list of models, for example backbones=[A, B].")
    result: dict[str, Any] = _copy(settings)
    views = _as_mapping(_as_mapping(result.get("embed")).get("views"))
    reads = {name: view["model"] for name, view in views.items() if "model" in _as_mapping(view)}
    before = list(dict.fromkeys(reads.values()))
    if not before:
        raise ConfigError("backbones can't be swapped: no view of this recipe reads one.")
    swapped = dict(zip(before, models, strict=False))
    for name, model in reads.items():
        if model in swapped:
            views[name]["model"] = swapped[model]
        else:
            del views[name]
    last = next(view for view in reversed(list(views.values())) if "model" in _as_mapping(view))
    for number, model in enumerate(models[len(before) :], start=len(before) + 1):
        views[f"backbone{number}"] = {**last, "model": model}
    finetune = _as_mapping(result.get("finetune"))
    if isinstance(finetune.get("backbones"), list):
        finetune["backbones"] = [swapped[model] for model in finetune["backbones"] if model in swapped]
    if isinstance(finetune.get("by_backbone"), dict):
        kept = {swapped[model]: own for model, own in finetune["by_backbone"].items() if model in swapped}
        finetune["by_backbone"] = kept
    return result


def _split_by_task(
    changes: Iterable[tuple[str, Any]], tasks: Iterable[str]
) -> tuple[list[tuple[str, Any]], dict[str, dict[str, Any]]]:
    """Return the changes to what tasks share, and those to single tasks (``by_task.TASK.key``), by task."""
    shared: list[tuple[str, Any]] = []
    of_tasks: dict[str, dict[str, Any]] = {name: {} for name in tasks}
    for key, value in changes:
        for name, own in of_tasks.items():
            if key.startswith(f"by_task.{name}."):
                own[key.removeprefix(f"by_task.{name}.")] = value
                break
        else:
            shared.append((key, value))
    return shared, of_tasks


def _as_mapping(value: Any) -> dict[str, Any]:
    """Return settings that are a mapping; nothing in the place of others, which `build_experiment` refuses."""
    return value if isinstance(value, dict) else {}


def _overlap(key: str, other: str) -> bool:
    """Tell whether one dotted key is the other or lies inside it."""
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


class _Loader(yaml.SafeLoader):
    """Reads no aliases: a few lines of them stand for more than memory holds, or for themselves."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases, as in *name, aren't read here")
        return super().compose_node(parent, index)


def _parse_yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (RecursionError, ValueError) as error:  # nesting; dates and numbers that are none
        raise yaml.YAMLError(str(error)) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = _parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}. Give the path of a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {where}. Mend that line.") from None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path} holds no settings: write 'key: value' lines; see `embedtune recipes demo`."
        )
    return settings


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _number(value: Any) -> Any:
    """Read ``1e-4``, which YAML 1.1 takes for a string, as the number it is."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value
