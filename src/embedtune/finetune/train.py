"""fine_tune: a backbone and a linear head trained on labelled texts, restartable at any time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedtune.embed.backbone import Description, describe_backbone
from embedtune.embed.checkpoints import SCHEMA
from embedtune.embed.precision import resolve_device, resolve_precision
from embedtune.embed.quantization import QUANTIZED
from embedtune.embed.quiet import hush_libraries
from embedtune.embed.tokens import pick_pad_id, tokenize
from embedtune.errors import ConfigError, DataError
from embedtune.finetune import saved
from embedtune.finetune.checkpoints import Epoch, find_last, open_checkpoints
from embedtune.finetune.contrastive import fit_head, write_label_texts
from embedtune.finetune.folder import CHECKPOINTS, LOGS, hold_folder, publish, read_finished
from embedtune.finetune.group import find_group
from embedtune.finetune.instruction import tune_by_instruction
from embedtune.finetune.model import PooledClassifier, build_classifier, count_parameters
from embedtune.finetune.randomness import keep_random_state
from embedtune.finetune.rows import index_labels, split_validation
from embedtune.finetune.saved import FineTuned, read_finetuned
from embedtune.finetune.settings import Settings, check_requirements, check_settings
from embedtune.finetune.trunk import stand_on_trunk
from embedtune.memory import explain_out_of_memory
from embedtune.prompt.template import INSTRUCTION

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from embedtune.finetune.loop import Rows, Trained


def fine_tune(
    model: str | Path,
    texts: Sequence[str],
    *,
    labels: Sequence[str] | Sequence[int],
    label_names: Sequence[str],
    output_dir: str | Path,
    groups: Sequence[Hashable] | None = None,
    objective: str = "classification",
    instruction: str = INSTRUCTION,
    label_templates: Sequence[str] = ("{label}", "This is {label}."),
    method: str = "full",
    n_upper_layers: int = 2,
    lora_rank: int = 8,
    lora_alpha: int = 16,
    lora_targets: str = "all-linear",
    epochs: int = 5,
    min_steps: int = 0,
    learning_rate: float = 1e-4,
    head_learning_rate: float | None = None,
    batch_size: int = 32,
    max_length: int = 128,
    pooling: str = "mean",
    prefix: str = "",
    dropout: float = 0.1,
    validation_fraction: float = 0.0,
    patience: int | None = None,
    class_weight: str | None = None,
    warmup_fraction: float = 0.1,
    weight_decay: float = 0.01,
    scheduler: str = "linear",
    max_grad_norm: float = 1.0,
    gradient_checkpointing: bool = False,
    quantization: str = "none",
    optimizer: str = "adamw",
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
    trunk_texts: Sequence[str] | None = None,
    replace: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> FineTuned:
    """Fine-tune a backbone on labelled texts.

    For classification the last layer's pooled vector goes through dropout and a linear head; cross-entropy is
    minimised with AdamW. By default all rows are trained on and the last epoch is kept; with a validation part it is
    the epoch of highest macro-F1 there, of lowest log loss on a tie.

    By contrast, which suits few rows, the pooled vectors of a step's rows are drawn together where labels are equal and
    apart where they aren't (`finetune.contrastive.contrast`), the labels' names among them; a logistic regression on
    the vectors of all rows is the head then. All rows are trained on and the last epoch is kept: `groups`,
    `head_learning_rate`, `validation_fraction` and `patience` play no part.

    By instruction a decoder learns to answer with the label: it is asked as the arm ``prompt`` asks it, and the loss
    is on the answer's tokens alone. There is no head then; all rows are trained on and the last epoch is kept, so
    `groups`, `head_learning_rate`, `pooling`, `prefix`, `validation_fraction`, `patience` and `class_weight` play no
    part.

    A call that was killed goes on where it was when repeated with the same arguments, and ends with the same
    weights; a finished one is read back. Global random generators are left as they were.

    Called by several processes with torch.distributed set up between them, all with the same arguments, it has them
    train together: each takes its share of every step's rows, so steps are those of one process, to rounding and to
    what dropout leaves out. Not by contrast.

    Parameters
    ----------
    model : str or Path
        As `TransformerEncoder` takes it: a folder, a Hub name or a packaged model.
    texts : sequence of str, length n_rows
    labels : sequence of str or int, length n_rows
        Label names, or positions in `label_names`.
    label_names : sequence of str
        All labels, in the order of the head's rows.
    output_dir : str or Path
        Made if missing; may hold an unfinished call's files, or a finished one's of the same arguments (of any, with
        `replace`).
    groups : sequence, length n_rows, optional
        Rows of equal value stay on one side of the validation split.
    objective : {"classification", "contrastive", "instruction"}
    instruction : str
        The question's first lines; holds ``{options}``, which becomes the labels.
    label_templates : sequence of str
        Texts that by contrast are read beside each label's rows; hold ``{label}``, which becomes the label's name.
        Names without a letter make none.
    method : {"full", "upper", "lora"}
        Train all weights, the last `n_upper_layers` layers (not by instruction), or LoRA adapters.
    lora_targets : {"all-linear", "attention"}
    head_learning_rate : float, optional
        By default `learning_rate`.
    min_steps : int
        Go through the rows as many times more as it takes to make this many steps: `epochs` of few rows are too little.
    batch_size : int
        Rows per step.
    max_length, pooling, prefix
        As `TransformerEncoder` takes them; use the same ones there. By instruction `max_length` counts the text's own
        tokens, and the prompt's come on top.
    dropout : float
        On the pooled vector, and on the input of LoRA adapters.
    validation_fraction : float
        Share of the rows set aside, stratified, to choose the epoch; of little use where rows are few.
    patience : int, optional
        Stop after this many epochs in a row without a new best one. By default never: the schedule does most of its
        good in the last epochs.
    class_weight : {"balanced"}, optional
        Weight labels in the loss by the inverse of their frequency.
    warmup_fraction : float
        Share of the steps in which the learning rate rises.
    scheduler : {"linear", "cosine", "constant"}
        What the learning rate does after that; the first two end at 0.
    max_grad_norm : float
        Gradients of a larger norm are scaled down to it.
    gradient_checkpointing : bool
        Compute activations anew in the backward pass instead of keeping them: less memory, about a third more time.
    quantization : {"none", "int8", "nf4"}
        Hold the frozen weights under LoRA adapters in 8 or 4 bits (QLoRA, arXiv 2305.14314); products are computed in
        `precision`. Reading with the adapter later takes the base in any precision.
    optimizer : {"adamw", "paged_adamw"}
        The second keeps its state, float32 as well, in pages that leave a CUDA device when memory is short.
    precision : {"auto", "float32", "bfloat16", "float16"}
        Of the forward pass (autocast); weights stay float32. See `resolve_training_precision` for ``"auto"``.
    device : str
        ``"auto"`` or a torch device.
    revision, trust_remote_code
        As `TransformerEncoder` takes them.
    trunk_texts : sequence of str, optional
        Texts that the frozen lower layers read together, where there are such: those of all trainings that are to
        share the trunk, `texts` among them. By default `texts`.
    replace : bool
        Let this fine-tuning take the place of one that finished with other arguments.
    on_epoch : callable, optional
        Called after each epoch with its evaluation on the validation part; what it raises stops the training, and is
        raised here.
    callbacks : sequence of transformers.TrainerCallback
        The Trainer's further ones, of trackers for one. What they do is no part of the arguments that a finished call
        is known by.

    Returns
    -------
    FineTuned

    Raises
    ------
    ConfigError
        If a setting is unknown, out of range, or can't be had on this device.
    DataError
        If texts, labels and groups differ in length, a text isn't among `trunk_texts`, a label is unknown, or only one
        label occurs.
    BackboneError, MissingExtraError
        If the model can't be loaded or trained, or a package that a setting needs isn't there.
    RunFolderError
        If `output_dir` holds something else, or another process is writing into it.
    """
    settings = Settings(
        label_names=tuple(label_names),
        objective=objective,
        instruction=instruction,
        label_templates=tuple(label_templates),
        method=method,
        n_upper_layers=n_upper_layers,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_targets=lora_targets,
        epochs=epochs,
        min_steps=min_steps,
        learning_rate=learning_rate,
        head_learning_rate=learning_rate if head_learning_rate is None else head_learning_rate,
        batch_size=batch_size,
        max_length=max_length,
        pooling=pooling,
        prefix=prefix,
        dropout=dropout,
        validation_fraction=validation_fraction,
        patience=patience,
        class_weight=class_weight,
        warmup_fraction=warmup_fraction,
        weight_decay=weight_decay,
        scheduler=scheduler,
        max_grad_norm=max_grad_norm,
        gradient_checkpointing=gradient_checkpointing,
        quantization=quantization,
        optimizer=optimizer,
        seed=seed,
    )
    check_settings(settings)
    for name, column in (("labels", labels), ("groups", groups)):
        if column is not None and len(column) != len(texts):
            raise DataError(f"{len(texts)} texts but {len(column)} {name}: give one per text.")
    if trunk_texts is not None and (absent := set(texts).difference(trunk_texts)):
        raise DataError(
            f"{len(absent)} of the texts aren't among trunk_texts: give all texts of all trainings there."
        )
    shared = list(dict.fromkeys(trunk_texts)) if trunk_texts is not None and has_trunk(settings) else None
    y = index_labels(labels, settings.label_names)
    group = find_group()
    if group.size > 1 and objective == "contrastive":
        raise ConfigError(
            "contrastive fine-tuning compares all rows of a step, so one process does it: set --train-together to 1."
        )
    device = resolve_device(device)
    if group.size > 1 and device == "cuda":
        device = f"cuda:{torch.cuda.current_device()}"
    precision = resolve_training_precision(precision, device)
    check_requirements(
        objective=objective, method=method, quantization=quantization, optimizer=optimizer, device=device
    )
    description = describe_backbone(model, revision=revision, trust_remote_code=trust_remote_code)
    _check_length(settings, description)
    key = _make_key(description, settings, texts, y, groups, precision=precision, device=device)
    if shared is not None:  # batches of other texts give other last bits
        key["trunk"] = hashlib.sha256(json.dumps(shared).encode()).hexdigest()
    facts = {
        "key": key,
        "model_id": description.model_id,
        "weights_hash": description.weights_hash,
        **settings.as_dict(),
        "precision": precision,
        "device": device,
    }
    folder = Path(output_dir).expanduser()
    with contextlib.ExitStack() as stack:
        group.ask_leader(lambda: stack.enter_context(hold_folder(folder)))
        if (done := group.ask_leader(lambda: read_finished(folder, key, replace=replace))) is not None:
            return done
        group.ask_leader(lambda: open_checkpoints(folder / CHECKPOINTS, key))
        if group.leads and find_last(folder / CHECKPOINTS) is None:
            shutil.rmtree(folder / LOGS, ignore_errors=True)  # of another training
        options: dict[str, Any] = {
            "folder": folder,
            "facts": facts,
            "trust_remote_code": trust_remote_code,
            "callbacks": callbacks,
        }
        with keep_random_state(seed), explain_out_of_memory(_tell_memory(settings, device)):
            if objective == "instruction":
                tune_by_instruction(description, settings, texts, y, **options)
            else:
                _fit(
                    description, settings, texts, y, groups, trunk_texts=shared, on_epoch=on_epoch, **options
                )
        group.ask_leader(lambda: shutil.rmtree(folder / CHECKPOINTS))
    return read_finetuned(folder)


def _tell_memory(settings: Settings, device: str) -> str:
    return (
        f"a step of {settings.batch_size} texts does not fit into the memory of {device}: set finetune.batch_size or "
        "finetune.max_length lower, finetune.gradient_checkpointing to true, or finetune.method to lora."
    )


def resolve_training_precision(precision: str, device: str) -> str:
    """Return the precision of the forward pass in training.

    As `embed.precision.resolve_precision`. On a CPU that multiplies bfloat16 in hardware, fine-tuning MiniLM on
    PhraseBank took 0.63 of float32's processor time and ended at the same macro-F1.

    Raises
    ------
    ConfigError
        If it is unknown, of quantized weights, or float16 on a CPU.
    """
    if precision in QUANTIZED:
        raise ConfigError(
            f"precision {precision!r} is for reading only: to train adapters on such weights, set quantization to it."
        )
    if precision == "float16" and device == "cpu":
        raise ConfigError("precision 'float16' can't train on a CPU: set it to auto, float32 or bfloat16.")
    return resolve_precision(precision, device)


def has_trunk(settings: Settings) -> bool:
    """Tell whether frozen lower layers are read once, not in every step."""
    return settings.method == "upper" and settings.pooling != "mean_padded"  # which reads padding as well


def _fit(
    description: Description,
    settings: Settings,
    texts: Sequence[str],
    y: NDArray[np.int64],
    groups: Sequence[Hashable] | None,
    *,
    trunk_texts: list[str] | None,
    on_epoch: Callable[[Epoch], None] | None,
    folder: Path,
    facts: dict[str, Any],
    trust_remote_code: bool,
    callbacks: Sequence[TrainerCallback],
) -> None:
    from embedtune.finetune.loop import Rows, train_classifier  # the Trainer takes seconds to import

    device, precision = facts["device"], facts["precision"]
    n_given, fraction = len(texts), settings.validation_fraction
    if settings.objective == "contrastive":
        groups, fraction = None, 0.0
        named, of_labels = write_label_texts(settings.label_names, settings.label_templates)
        texts, y = [*texts, *named], np.concatenate([y, of_labels])
        trunk_texts = None if trunk_texts is None else list(dict.fromkeys([*trunk_texts, *named]))
    training, validation = split_validation(y, groups=groups, fraction=fraction, seed=settings.seed)
    settings = settings.for_rows(len(training))
    tokenizer = description.tokenizer
    rows = Rows(
        tokens=tokenize(tokenizer, texts, max_length=settings.max_length, prefix=settings.prefix),
        labels=y,
        pad_id=pick_pad_id(tokenizer),
        n_tokens=settings.max_length if settings.pooling == "mean_padded" else None,
    )
    half = settings.method == "lora" and device.startswith("cuda") and precision != "float32"
    model = build_classifier(
        description,
        settings,
        label_weights=_weigh_labels(y[training], settings),
        dtype=getattr(torch, precision) if half or settings.quantization != "none" else torch.float32,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    trunk_tokens = rows.tokens
    if trunk_texts is not None:
        numbers = {text: number for number, text in enumerate(trunk_texts)}
        rows = rows._replace(places=np.array([numbers[text] for text in texts], dtype=np.intp))
        trunk_tokens = tokenize(
            tokenizer, trunk_texts, max_length=settings.max_length, prefix=settings.prefix
        )
    with stand_on_trunk(
        model,
        trunk_tokens,
        n_lower=description.n_layers - settings.n_upper_layers if has_trunk(settings) else 0,
        n_layers=description.n_layers,
        pad_id=rows.pad_id,
        weights=(description.weights_hash, description.config_hash),
        device=device,
        precision=precision,
    ) as (trunk, trunk_seconds):
        trained = train_classifier(
            model,
            rows._replace(trunk=trunk),
            training=training,
            validation=validation,
            settings=settings,
            folder=folder / CHECKPOINTS,
            logs_dir=folder / LOGS,
            device=device,
            precision=precision,
            description=f"fine-tune {description.model_id}",
            on_epoch=on_epoch,
            callbacks=callbacks,
        )
        if settings.objective == "contrastive":
            _fit_head(
                model, rows._replace(trunk=trunk), n_given, settings, device=device, precision=precision
            )
    trained = trained._replace(seconds=trained.seconds + trunk_seconds)
    found = {
        **_describe_training(model, trained),
        "epochs": settings.epochs,
        "trunk_seconds": round(trunk_seconds, 3),
        "n_training": n_given - len(validation),
        "n_validation": len(validation),
    }
    find_group().ask_leader(lambda: _save(model, folder, settings=settings, facts={**facts, **found}))


def _fit_head(
    model: PooledClassifier, rows: Rows, n_given: int, settings: Settings, *, device: str, precision: str
) -> None:
    """Put a logistic regression on the vectors of the rows that were given, the first, in the place of the head."""
    from embedtune.finetune.loop import pool_rows

    weight, bias = fit_head(
        pool_rows(model, rows, device=device, precision=precision)[:n_given],
        rows.labels[:n_given],
        n_labels=len(settings.label_names),
        class_weight=settings.class_weight,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))


def _describe_training(model: PooledClassifier, trained: Trained) -> dict[str, Any]:
    n_trained, n_parameters = count_parameters(model)
    best = max((epoch.macro_f1 for epoch in trained.epochs), default=None)
    return {
        "n_trained_parameters": n_trained,
        "n_parameters": n_parameters,
        "best_epoch": trained.best_epoch,
        "macro_f1": best,
        "history": [epoch._asdict() for epoch in trained.epochs],
        "seconds": round(trained.seconds, 3),
    }


def _save(model: PooledClassifier, folder: Path, *, settings: Settings, facts: dict[str, Any]) -> None:
    def write(temporary: Path) -> None:
        saved.write_head(temporary, model.head.weight.detach().numpy(), model.head.bias.detach().numpy())
        with hush_libraries():
            # Embeddings are never trained with LoRA; peft would look on the Hub whether they were.
            options = {"save_embedding_layers": False} if settings.method == "lora" else {}
            model.backbone.save_pretrained(temporary, **options)  # type: ignore[operator]

    model.eval()
    if settings.quantization == "none":
        model.cpu()
    model.head.cpu()
    publish(folder, write, facts)


def _weigh_labels(y: NDArray[np.int64], settings: Settings) -> torch.Tensor | None:
    if settings.class_weight is None:
        return None
    counts = np.bincount(y, minlength=len(settings.label_names))
    weights = len(y) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(weights).float()


def _check_length(settings: Settings, description: Description) -> None:
    limit = description.max_positions
    if limit is not None and settings.max_length > limit:
        raise ConfigError(
            f"max_length {settings.max_length} is out of range for '{description.model_id}': set it to 1 to {limit}."
        )


def _make_key(
    description: Description,
    settings: Settings,
    texts: Sequence[str],
    y: NDArray[np.int64],
    groups: Sequence[Hashable] | None,
    *,
    precision: str,
    device: str,
) -> dict[str, Any]:
    """Return what a checkpoint must agree on to be gone on with."""
    places: dict[Hashable, int] = {}
    numbered = None if groups is None else [places.setdefault(group, len(places)) for group in groups]
    rows = json.dumps([list(texts), y.tolist(), numbered], ensure_ascii=True)
    return {
        "schema": SCHEMA,
        "weights": description.weights_hash,
        "config": description.config_hash,
        "tokenizer": description.tokenizer_hash,
        "rows": hashlib.sha256(rows.encode()).hexdigest(),
        "settings": settings.as_dict(),
        "precision": precision,
        "device": device.partition(":")[0],
        "torch": torch.__version__,
    }
