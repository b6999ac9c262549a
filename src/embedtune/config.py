"""Experiment: every setting of a run, its default and its allowed values, and nothing else.

Defaults live here only. Library classes take flat arguments; `pipeline` hands them over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from embedtune.errors import ConfigError, suggest_nearest
from embedtune.recipe import set_keys

Pooling = Literal["mean", "weighted_mean", "cls", "last", "max", "pooler", "mean_padded"]
Arm = Literal["majority", "floor", "frozen", "frozen+", "tuned", "tuned+", "end-to-end", "prompt"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8", "nf4"]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _check_address(address: str) -> str:
    """Return a path or URI, unless it holds a password, which would be written to config.yaml."""
    if found := _PASSWORD.search(address):
        scheme = found[1]
        raise ValueError(
            f"an address ({scheme}://…) is given with a password: leave it out, and set it in the environment "
            f"({'AWS_SECRET_ACCESS_KEY' if scheme == 's3' else f'FSSPEC_{scheme.upper()}_PASSWORD'})"
        )
    return address


#: A colon and something before an @, but for a port; a secret may hold slashes.
_PASSWORD = re.compile(r"([\w+.-]+)://[^/\s@]*:(?!\d*/)[^\s@]+@")
Address = Annotated[str, AfterValidator(_check_address)]


def _spell_labels(words: object) -> object:
    """Return a mapping whose keys are labels as `read_label` has them: YAML reads ``0: negative`` as a number's."""
    if not isinstance(words, dict):
        return words
    return {str(key).lower() if isinstance(key, bool | int) else key: word for key, word in words.items()}


LabelWords = Annotated[dict[str, str], BeforeValidator(_spell_labels)]


class SourceConfig(_Part):
    """Where one task's labelled texts come from: the arguments of `load_dataset`, and a file of corrected `labels`."""

    source: Address
    task: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    time_column: str | None = None
    source_column: str | None = None
    test_source: Address | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    hub_test_split: str | None = None
    encoding: str | None = None
    label_names: LabelWords = {}
    labels: Address | None = None


class PrepareConfig(_Part):
    """How rows are cleaned and split."""

    tune_fraction: Fraction = 0.3
    test_fraction: Fraction = 0.2
    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    max_rows: int | None = Field(default=None, ge=50)
    keep_together: bool = True


class TransformerView(_Part):
    """Hidden layers of a backbone.

    ``layers: auto`` leaves the choice to a probe inside the training rows, and ``pooling: auto`` that of pooling with
    it; `test_max_length` reads test rows at another length, as published LLMEmbed does; `precision` is by default that
    of `embed`.
    """

    kind: Literal["transformer"] = "transformer"
    model: str
    layers: Literal["all", "auto"] | str | tuple[int, ...] = "last5"
    pooling: Pooling | Literal["auto"] = "mean"
    max_length: int = Field(default=128, ge=4)
    test_max_length: int | None = Field(default=None, ge=4)
    long_texts: Literal["cut", "split"] = "cut"
    prefix: str = ""
    precision: Precision | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _check_layers(self) -> TransformerView:
        if self.layers == "auto" and self.pooling == "pooler":
            raise ValueError(
                "layers is 'auto' where pooling is 'pooler', which reads the last layer only: set layers to [-1]"
            )
        if self.pooling == "auto" and self.layers != "auto":
            raise ValueError(
                f"pooling is 'auto' where layers is {self.layers!r}, and the two are chosen together: set layers to "
                "auto, or name a pooling"
            )
        return self


class StaticView(_Part):
    """A table of static token vectors."""

    kind: Literal["static"] = "static"
    source: str = "wordllama"


class LexicalView(_Part):
    """TF-IDF of words and character n-grams; see `LexicalEncoder`."""

    kind: Literal["lexical"] = "lexical"
    max_features: int | None = Field(default=200_000, ge=1)
    n_components: int | None = Field(default=None, ge=1)


View = Annotated[TransformerView | StaticView | LexicalView, Field(discriminator="kind")]


class EmbedConfig(_Part):
    """The views, and how and where they are computed."""

    views: dict[str, View] = Field(min_length=1)
    precision: Precision = "auto"
    backend: Literal["auto", "torch", "openvino"] = "auto"
    device: str = "auto"
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=16)] = "auto"
    store: Address = "auto"


class FinetuneSettings(_Part):
    """How one backbone is fine-tuned; see `embedtune.finetune.train.fine_tune`. `max_length` None is its view's."""

    objective: Literal["classification", "contrastive", "instruction"] = "classification"
    instruction: str = "Classify the text. Answer with one of: {options}."
    label_templates: tuple[str, ...] = ("{label}", "This is {label}.")
    method: Literal["full", "upper", "lora"] = "full"
    n_upper_layers: int = Field(default=2, ge=1)
    lora_rank: int = Field(default=8, ge=1)
    lora_alpha: int = Field(default=16, ge=1)
    lora_targets: Literal["all-linear", "attention"] = "all-linear"
    epochs: int = Field(default=5, ge=1)
    min_steps: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    head_learning_rate: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, ge=1)
    max_length: int | None = Field(default=None, ge=4)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    patience: int | None = Field(default=None, ge=1)
    class_weight: Literal["balanced"] | None = None
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False
    quantization: Literal["none", "int8", "nf4"] = "none"
    optimizer: Literal["adamw", "paged_adamw"] = "adamw"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @field_validator("label_templates")
    @classmethod
    def _check_label_templates(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if "{label}" not in template:
                raise ValueError(
                    f"finetune.label_templates has {template!r}, which names no label: "
                    "put {label} where the name goes"
                )
        return templates

    @property
    def leaves_head(self) -> bool:
        """Whether fine-tuning leaves a classification head."""
        return self.objective != "instruction"


_SECONDS = {"s": 1, "m": 60, "h": 3600}


def _read_duration(value: Any) -> Any:
    """Return the seconds of a duration such as ``10m``; a number is left as it is."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", value)
    if found is None:
        raise ValueError(f"'{value}' is no duration: give seconds, or a time such as 90s, 10m or 1h")
    return float(found[1]) * _SECONDS[found[2]]


class FinetuneConfig(FinetuneSettings):
    """How backbones are fine-tuned.

    `backbones` names models of the views, or is ``"all"``; `by_backbone` holds, by model, what differs for it. The arm
    tuned+ fine-tunes each backbone `n_folds` times. With a `budget`, in seconds or as in ``10m``, each backbone's
    learning rate, epochs and batch size are first sought inside the tune rows for so long.
    """

    backbones: Literal["all"] | tuple[str, ...] = "all"
    by_backbone: dict[str, dict[str, Any]] = {}
    n_folds: int = Field(default=3, ge=2)
    budget: Annotated[PositiveFloat, BeforeValidator(_read_duration)] | None = None

    def of(self, model: str) -> FinetuneSettings:
        """Return the settings of one backbone."""
        shared = self.model_dump(exclude={"backbones", "by_backbone", "n_folds", "budget"})
        return FinetuneSettings.model_validate({**shared, **self.by_backbone.get(model, {})})


class CooccurrenceConfig(_Part):
    """LLMEmbed's head and its training; see `CooccurrenceHead`. Lists are candidates to choose from."""

    sigma: Literal["auto"] | PositiveFloat | Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        "auto"
    )
    n_branch_blocks: Literal["auto"] | PositiveInt = "auto"
    branch_width: Literal["auto"] | PositiveInt = "auto"
    hidden: tuple[PositiveInt, PositiveInt] = (1024, 256)
    epochs: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = 50
    batch_size: int = Field(default=256, ge=1)
    learning_rate: PositiveFloat | Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = 1e-3
    dropout: float = Field(default=0.5, ge=0, lt=1)
    softmax_output: bool = False
    concatenate_others: bool = False
    validation_fraction: float = Field(default=0.1, ge=0, le=0.5)


class FitConfig(_Part):
    """Which head is trained on the views, how its probabilities are calibrated, and what its sets of labels cover.

    `decision` says which label is named: the likeliest, or by weights that training rows chose for macro-F1.
    `train_rows` and `choose_rows` show what two faults do: heads trained, and their settings chosen, on the test rows.
    """

    head: Literal["auto", "logistic", "ridge", "stack", "cooccurrence"] = "auto"
    class_weight: Literal["balanced"] | None = None
    normalize: bool = True
    calibration: Literal["auto", "temperature", "adaptive", "isotonic", "none"] = "auto"
    decision: Literal["likeliest", "macro_f1"] = "likeliest"
    coverage: Fraction = 0.9
    cooccurrence: CooccurrenceConfig = CooccurrenceConfig()
    train_rows: Literal["own", "test"] = "own"
    choose_rows: Literal["training", "test"] = "training"

    @model_validator(mode="after")
    def _check_choice(self) -> FitConfig:
        if self.decision == "macro_f1" and self.calibration == "none":
            raise ValueError(
                "fit.decision is 'macro_f1', whose weights are chosen on out-of-fold rows, and fit.calibration 'none' "
                "makes none: set it to auto, or fit.decision to likeliest"
            )
        if self.choose_rows == "test" and self.head != "cooccurrence":
            raise ValueError(
                f"fit.choose_rows is 'test', which head '{self.head}' can't do: set fit.head to cooccurrence"
            )
        own = self.cooccurrence
        choices = [
            name
            for name in ("sigma", "epochs", "learning_rate")
            if isinstance(getattr(own, name), str | tuple) and self.head == "cooccurrence"
        ]
        if choices and own.validation_fraction == 0 and self.choose_rows == "training":
            raise ValueError(
                f"fit.cooccurrence leaves {' and '.join(choices)} to be chosen, and validation_fraction is 0: "
                "set it above 0, or give single values"
            )
        return self


class PromptConfig(_Part):
    """What the arm `prompt` asks, and whom; see `embedtune.prompt.classifier.PromptClassifier`.

    The key of an endpoint is no setting: it is read from the environment variable OPENAI_API_KEY.
    """

    model: str | None = None
    endpoint: str | None = None
    n_examples: int = Field(default=0, ge=0)
    instruction: str = "Classify the text. Answer with one of: {options}."
    options: LabelWords = {}
    max_length: int = Field(default=512, ge=4)
    normalisation: Literal["sum", "mean"] = "sum"
    calibrate: bool = False
    revision: str | None = None
    trust_remote_code: bool = False
    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=16)] = "auto"
    n_parallel: int = Field(default=4, ge=1)
    timeout: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> PromptConfig:
        if "{options}" not in self.instruction:
            raise ValueError(
                f"prompt.instruction {self.instruction!r} doesn't say what may be answered: "
                "put {options} where the labels go"
            )
        if self.endpoint is not None and (self.calibrate or self.normalisation != "sum"):
            raise ValueError(
                "prompt.calibrate and prompt.normalisation need the likelihoods of a local model: "
                "leave them out, or prompt.endpoint"
            )
        # it would be written to config.yaml
        if self.endpoint is not None and "@" in self.endpoint:
            raise ValueError(
                "prompt.endpoint is given with a name or password: leave it out, and set the environment "
                "variable OPENAI_API_KEY to the key"
            )
        return self


class CompareConfig(_Part):
    """Which arms stand against each other, and how they are judged.

    `abstain_cost` is what leaving a row undecided costs, an error costing 1. `label_counts`, such as [8, 16, 32, 64],
    asks for a learning curve over so many labels per class.
    """

    arms: tuple[Arm, ...] = ("majority", "floor", "frozen", "frozen+", "tuned", "end-to-end")
    n_resamples: int = Field(default=1000, ge=100)
    confidence: Fraction = 0.95
    probe_layers: bool = True
    abstain_cost: Fraction = 0.25
    label_counts: tuple[PositiveInt, ...] = ()


def _list_once(value: Any) -> Any:
    """Return a single name as a list of it, and of a list each name once."""
    if isinstance(value, str):
        return [value]
    return list(dict.fromkeys(value)) if isinstance(value, list | tuple) else value


class Experiment(_Part):
    """One run: its tasks and the settings of each stage.

    Attributes
    ----------
    tasks : dict of str to SourceConfig
        One comparison each; a run with one task has its files directly in the run folder.
    by_task : dict of str to dict
        What differs for a task, by dotted key: ``{"yes_no": {"prepare.max_rows": 35000}}``.
    seeds : tuple of int
        Every arm is trained once per seed. The first one also seeds the split and makes the bundle.
    track : tuple of str
        Who is told of the run; results don't depend on it.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    tasks: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], SourceConfig] = Field(
        min_length=1
    )
    prepare: PrepareConfig = PrepareConfig()
    embed: EmbedConfig
    finetune: FinetuneConfig = FinetuneConfig()
    fit: FitConfig = FitConfig()
    prompt: PromptConfig = PromptConfig()
    compare: CompareConfig = CompareConfig()
    by_task: dict[str, dict[str, Any]] = {}
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    track: Annotated[tuple[Literal["mlflow", "tensorboard", "wandb"], ...], BeforeValidator(_list_once)] = ()

    def of(self, task: str) -> Experiment:
        """Return the experiment of one of its tasks."""
        shared = self.model_dump(exclude={"by_task"})
        changed = set_keys(shared, self.by_task.get(task, {}).items())
        return Experiment.model_validate({**changed, "tasks": {task: changed["tasks"][task]}})

    @model_validator(mode="after")
    def _check_tasks(self) -> Experiment:
        for task in self.by_task:
            if task not in self.tasks:
                raise ValueError(
                    f"by_task names '{task}', which is no task: there are {', '.join(self.tasks)}"
                    f"{suggest_nearest(task, self.tasks)}"
                )
            try:
                self.of(task)
            except ValidationError as error:
                problems = [_describe(problem) for problem in error.errors()]
                raise ValueError(f"by_task.{task}: {'; '.join(problems)}") from None
        return self

    @model_validator(mode="after")
    def _check_folds(self) -> Experiment:
        if "tuned+" in self.compare.arms and self.fit.train_rows == "test":
            raise ValueError(
                "fit.train_rows is 'test' and compare.arms has 'tuned+', whose head is trained on the rows that its "
                "backbones are cross-fitted on: leave tuned+ out, or set fit.train_rows to own"
            )
        return self

    @model_validator(mode="after")
    def _check_backbones(self) -> Experiment:
        models = {view.model for view in self.embed.views.values() if isinstance(view, TransformerView)}
        chosen = () if self.finetune.backbones == "all" else self.finetune.backbones
        for key, names in (("backbones", chosen), ("by_backbone", tuple(self.finetune.by_backbone))):
            for model in names:
                if model not in models:
                    raise ValueError(
                        f"finetune.{key} names '{model}', which no view reads: the views read "
                        f"{sorted(models)}{suggest_nearest(model, models)}"
                    )
        for model in self.finetune.by_backbone:
            try:
                self.finetune.of(model)
            except ValidationError as error:
                where = f"finetune.by_backbone.{model}"
                problems = [
                    f"'{where}.{problem['loc'][0]}' is {problem['input']!r}: {problem['msg'].lower()}"
                    for problem in error.errors()
                ]
                raise ValueError("; ".join(problems)) from None
        return self

    @model_validator(mode="after")
    def _check_heads(self) -> Experiment:
        models = {view.model for view in self.embed.views.values() if isinstance(view, TransformerView)}
        tuned = models if self.finetune.backbones == "all" else set(self.finetune.backbones)
        objectives = {self.finetune.of(model).objective for model in tuned}
        if "end-to-end" in self.compare.arms and objectives == {"instruction"}:
            raise ValueError(
                "compare.arms has 'end-to-end', which classifies with the head of a fine-tuned backbone, and all of "
                "them are tuned by instruction, which trains none: leave the arm out, or set the objective of one "
                "backbone to classification"
            )
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> Experiment:
        models = {view.model for view in self.embed.views.values() if isinstance(view, TransformerView)}
        tuned = models if self.finetune.backbones == "all" else set(self.finetune.backbones)
        for model in sorted(tuned) if self.finetune.budget is not None else []:
            if (objective := self.finetune.of(model).objective) != "classification":
                by = {"instruction": "instruction", "contrastive": "contrast"}[objective]
                raise ValueError(
                    f"finetune.budget is {self.finetune.budget:g} and {model} is tuned by {by}, which has no "
                    "validation part to search on: leave budget out, or set its objective to classification"
                )
        return self

    @model_validator(mode="after")
    def _check_prompt(self) -> Experiment:
        if "prompt" in self.compare.arms and self.prompt.model is None and self.prompt.endpoint is None:
            raise ValueError(
                "compare.arms names 'prompt', and there is nothing to ask: set prompt.model to a decoder's folder "
                "or Hub name, or prompt.endpoint to a server such as http://127.0.0.1:8000/v1"
            )
        return self


def build_experiment(settings: Mapping[str, Any], *, where: str) -> Experiment:
    """Check `settings` and return the Experiment they describe.

    Raises
    ------
    ConfigError
        Naming every unknown key and every value out of range at once; `where` says whose they are.
    """
    try:
        return Experiment.model_validate(settings)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise ConfigError(f"{count} in {where}: {'; '.join(problems)}.")


def dump_experiment(experiment: Experiment) -> str:
    """Return the resolved experiment as YAML; `build_experiment` reads it back to an equal one."""
    settings = experiment.model_dump(mode="json")
    text: str = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return text


def _describe(problem: Mapping[str, Any]) -> str:
    """Say one pydantic problem in our words: the key, the value got, what is allowed."""
    location: Sequence[str | int] = problem["loc"]
    kinds = {"transformer", "static", "lexical"}
    key = ".".join(str(part) for part in location if part not in kinds)
    if problem["type"] == "extra_forbidden":
        allowed = _keys_beside(location)
        name = str(location[-1])
        return f"unknown key '{key}'{suggest_nearest(name, allowed)}, allowed here: {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"'{key}' is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message.removesuffix(".")
    return f"'{key}' is {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _keys_beside(location: Sequence[str | int]) -> list[str]:
    """Return the keys allowed where an unknown one stood."""
    sections: dict[str, type[_Part]] = {
        "tasks": SourceConfig, "prepare": PrepareConfig, "embed": EmbedConfig, "finetune": FinetuneConfig,
        "fit": FitConfig, "cooccurrence": CooccurrenceConfig, "compare": CompareConfig, "prompt": PromptConfig,
        "transformer": TransformerView, "static": StaticView, "lexical": LexicalView,
    }  # fmt: skip
    for part in reversed(location[:-1]):
        if part in sections:
            return list(sections[str(part)].model_fields)
    return list(Experiment.model_fields)
