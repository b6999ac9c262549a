"""The training loop: transformers' Trainer with our batches, our checkpoints and nobody printing."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from embedtune.embed.quantization import hush_bitsandbytes, import_bitsandbytes
from embedtune.embed.quiet import hush_libraries
from embedtune.embed.tokens import Tokens, pad_tokens
from embedtune.errors import ConfigError, EmbedtuneError, RunFolderError
from embedtune.evaluate.metrics import compute_metrics
from embedtune.finetune import checkpoints
from embedtune.finetune.group import find_group
from embedtune.finetune.model import PooledClassifier
from embedtune.finetune.rows import EpochBatches, sort_batches
from embedtune.finetune.settings import Settings
from embedtune.finetune.trunk import Trunk
from embedtune.memory import is_out_of_memory
from embedtune.progress import Bar, track

with hush_bitsandbytes():  # the Trainer imports peft, which imports bitsandbytes, which logs what it lacks
    import transformers
    from transformers import Trainer, TrainerCallback, TrainingArguments

#: A checkpoint is written after each epoch, and after this many steps of a long one ...
STEPS_PER_CHECKPOINT = 400
#: ... but not after fewer than this many, where no validation part asks for one.
MIN_STEPS_PER_CHECKPOINT = 20

EVALUATION_BATCH_SIZE = 64


class Rows(NamedTuple):
    """Tokenized rows with their labels, int64 (n_rows,), and what the frozen layers made of them, if that is kept.

    `places` are the rows' numbers in the trunk, intp (n_rows,); None if they are its own.
    """

    tokens: Tokens
    labels: NDArray[np.int64]
    pad_id: int
    n_tokens: int | None
    trunk: Trunk | None = None
    places: NDArray[np.intp] | None = None

    def pad(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the given rows as the model's arguments."""
        batch = pad_tokens(
            self.tokens, np.asarray(rows, dtype=np.intp), pad_id=self.pad_id, n_tokens=self.n_tokens
        )
        inputs = {
            "input_ids": torch.from_numpy(batch.ids),
            "attention_mask": torch.from_numpy(batch.mask),
            "counted": torch.from_numpy(batch.counted),
            "labels": torch.from_numpy(self.labels[np.asarray(rows)]),
        }
        if self.trunk is not None:
            places = rows if self.places is None else self.places[np.asarray(rows)].tolist()
            inputs["states"] = self.trunk.pad(places, n_tokens=batch.ids.shape[1])
        return inputs

    def pad_part(self, rows: Sequence[int], label_weights: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Return this process's part of a step's rows, and its ``share`` of the loss.

        Averaged over processes, the shared losses are the whole step's (weighted) mean.
        """
        group = find_group()
        if group.size == 1:
            return self.pad(rows)

        def weigh(some: Sequence[int]) -> float:
            labels = self.labels[np.asarray(some, dtype=np.intp)]
            return float(len(labels) if label_weights is None else label_weights.cpu()[labels].sum())

        own = group.take(rows)
        share = group.size * weigh(own) / weigh(rows)
        return {**self.pad(own or rows[:1]), "share": torch.tensor(share)}


class Trained(NamedTuple):
    """What training left: evaluations (none without a validation part), best epoch, seconds over all calls."""

    epochs: list[checkpoints.Epoch]
    best_epoch: int
    seconds: float


def train_classifier(
    model: PooledClassifier,
    rows: Rows,
    *,
    training: NDArray[np.intp],
    validation: NDArray[np.intp],
    settings: Settings,
    folder: Path,
    logs_dir: Path,
    device: str,
    precision: str,
    description: str,
    on_epoch: Callable[[checkpoints.Epoch], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Train in place, going on from the last complete checkpoint in `folder`, and load the best epoch's weights.

    Without a validation part all epochs are run and the last one's weights stay. `on_epoch` is told each evaluation.
    """
    sampler = EpochBatches(rows.tokens.lengths[training], batch_size=settings.batch_size, seed=settings.seed)
    n_steps = len(sampler) * settings.epochs
    with hush_libraries():
        arguments = make_arguments(settings, folder, n_steps=n_steps, device=device, precision=precision)
        last = find_group().ask_leader(lambda: checkpoints.find_last(folder))
        with track(description, n_steps, unit="steps") as bar:
            steering = Steering(
                sampler,
                folder,
                settings,
                evaluates=len(validation) > 0,
                bar=bar,
                last=last,
                on_epoch=on_epoch,
            )
            trainer = ClassifierTrainer(
                model,
                arguments,
                rows=rows,
                training=training,
                validation=validation,
                sampler=sampler,
                callbacks=[steering, *make_logger(logs_dir), *callbacks],
                head_learning_rate=settings.head_learning_rate,
                paged=settings.optimizer == "paged_adamw",
            )
            epochs = checkpoints.read_epochs(checkpoints.read_log(last)) if last else []
            if not checkpoints.has_stalled(epochs, patience=settings.patience):
                go_on(trainer, steering, last)
                epochs = checkpoints.read_epochs(trainer.state.log_history)
    if not epochs:
        return Trained([], settings.epochs, steering.seconds)
    best = checkpoints.find_best(epochs)
    load_trained(model, folder / f"checkpoint-{best.step}")
    return Trained(epochs, round(best.epoch), steering.seconds)


def go_on(trainer: Trainer, steering: Steering, last: Path | None) -> None:
    """Train from a checkpoint on, or from the start; raises as `explain_checkpoint` says."""
    if last is None:
        trainer.train()
        return
    with explain_checkpoint(last, has_begun=lambda: steering.has_begun):
        trainer.train(resume_from_checkpoint=str(last))


@contextlib.contextmanager
def explain_checkpoint(checkpoint: Path, *, has_begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Tell of a checkpoint that is as it was marked, and yet nothing to go on from; once begun, errors are others'.

    Raises
    ------
    RunFolderError
    """
    try:
        yield
    except (EmbedtuneError, OSError):  # a full disk, say, tells of itself
        raise
    except Exception as error:  # readers of forged files raise whatever they meet
        if has_begun() or is_out_of_memory(error):
            raise
        raise RunFolderError(
            f"'{checkpoint}' can't be gone on from ({type(error).__name__}): delete '{checkpoint.parent}', and the "
            "training begins anew."
        ) from error


def pool_rows(model: PooledClassifier, rows: Rows, *, device: str, precision: str) -> NDArray[np.float32]:
    """Return the pooled vectors that a trained model's head reads, of all rows (n_rows, width), dropout off."""
    vectors = np.empty((len(rows.labels), model.head.in_features), dtype=np.float32)
    place = torch.device(device)
    model.eval()
    for batch in sort_batches(rows.tokens.lengths, batch_size=EVALUATION_BATCH_SIZE):
        inputs = {name: tensor.to(place) for name, tensor in rows.pad(batch).items() if name != "labels"}
        with (
            torch.inference_mode(),
            torch.autocast(place.type, dtype=getattr(torch, precision), enabled=precision != "float32"),
        ):
            vectors[batch] = model.pool(**inputs).cpu().numpy()
    return vectors


def save_trained(model: torch.nn.Module, checkpoint: Path) -> None:
    """Write the trained parameters into a checkpoint."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().cpu().contiguous() for name, p in list_trained(model).items()}
    save_file(weights, checkpoint / checkpoints.WEIGHTS)


def load_trained(model: torch.nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's trained parameters into the model."""
    with explain_checkpoint(checkpoint), torch.no_grad():
        found = load_file(checkpoint / checkpoints.WEIGHTS)
        for name, parameter in list_trained(model).items():
            parameter.copy_(found[name])


class ClassifierTrainer(Trainer):
    """A Trainer that reads `Rows` in `EpochBatches` and keeps the trained parameters only."""

    def __init__(
        self,
        model: PooledClassifier,
        arguments: TrainingArguments,
        *,
        rows: Rows,
        training: NDArray[np.intp],
        validation: NDArray[np.intp],
        sampler: EpochBatches,
        callbacks: list[TrainerCallback],
        head_learning_rate: float,
        paged: bool,
    ) -> None:
        self.head_learning_rate, self.paged = head_learning_rate, paged
        self.rows, self.training, self.validation, self.sampler = rows, training, validation, sampler
        self.classifier = model
        self.most_texts = arguments.per_device_train_batch_size
        super().__init__(model, arguments, compute_metrics=_score, callbacks=callbacks)
        self.remove_callback(transformers.PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make AdamW; the head, which starts at random, has its own learning rate."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.classifier))
            groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
            for name, parameter in list_trained(self.classifier).items():
                decay = self.args.weight_decay if name in decayed else 0.0
                rate = self.head_learning_rate if name.startswith("head.") else self.args.learning_rate
                groups.setdefault((rate, decay), []).append(parameter)
            parameters = [
                {"params": group, "lr": rate, "weight_decay": decay}
                for (rate, decay), group in groups.items()
            ]
            if self.paged:
                self.optimizer = import_bitsandbytes().optim.PagedAdamW32bit(parameters)
            else:
                self.optimizer = torch.optim.AdamW(parameters, fused=True)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches."""
        collate = partial(self.rows.pad_part, label_weights=self.classifier.label_weights)
        return load_batches(self, self.training.tolist(), self.sampler, collate=collate)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the validation batches."""
        lengths = self.rows.tokens.lengths[self.validation]
        batches = sort_batches(lengths, batch_size=EVALUATION_BATCH_SIZE)
        return load_batches(self, self.validation.tolist(), batches, collate=self.rows.pad)

    def training_step(
        self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Take a step, in parts where memory doesn't hold its texts: the gradient is the whole step's, dropout aside.

        How many texts memory held is remembered. A step that can't be parted, since its texts are compared with one
        another or other processes wait for its gradient, fails.
        """
        n_texts = len(inputs["labels"])
        while True:
            try:
                return self._step_in_parts(model, inputs, num_items_in_batch)
            except Exception as error:
                self.most_texts = min(self.most_texts, n_texts) // 2
                is_whole = self.classifier.contrasts or find_group().size > 1
                if not is_out_of_memory(error) or self.most_texts == 0 or is_whole:
                    raise
            model.zero_grad()
            torch.cuda.empty_cache()

    def _step_in_parts(
        self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any
    ) -> torch.Tensor:
        n_texts = len(inputs["labels"])
        if n_texts <= self.most_texts:
            return super().training_step(model, inputs, num_items_in_batch)
        weights = self.classifier.label_weights
        weights = torch.ones_like(inputs["labels"]) if weights is None else weights[inputs["labels"]]
        losses = []
        for rows in torch.split(torch.arange(n_texts), self.most_texts):
            part = {name: value[rows] for name, value in inputs.items()}
            part["share"] = weights[rows].sum() / weights.sum()
            losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack(losses).sum()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained parameters into a checkpoint."""
        if self.args.should_save:
            save_trained(self.classifier, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.classifier, Path(resume_from_checkpoint))


def load_batches(
    trainer: Trainer, rows: Any, batches: Any, *, collate: Callable[..., Any]
) -> DataLoader[Any]:
    """Return a trainer's loader of `rows`, batched as given.

    Processes that train together read the same batches; `collate` takes this one's part.
    """
    loader = DataLoader(
        rows, batch_sampler=batches, collate_fn=collate, pin_memory=trainer.args.dataloader_pin_memory
    )
    prepared: DataLoader[Any] = prepare_data_loader(
        loader, trainer.accelerator.device, num_processes=1, process_index=0, put_on_device=True
    )
    return prepared


class Steering(TrainerCallback):
    """Decides when to evaluate, save and stop; reports progress.

    Its decisions are functions of the Trainer's log and step count, so a resumed training makes the same ones.
    """

    def __init__(
        self,
        sampler: EpochBatches,
        folder: Path,
        settings: Settings,
        *,
        evaluates: bool,
        bar: Bar,
        last: Path | None,
        on_epoch: Callable[[checkpoints.Epoch], None] | None = None,
    ) -> None:
        self.sampler, self.folder, self.settings, self.on_epoch = sampler, folder, settings, on_epoch
        self.evaluates, self.bar = evaluates, bar
        self._saved = int(last.name.rpartition("-")[2]) if last else 0
        self._seconds_before = checkpoints.read_seconds(last) if last else 0.0
        self._started = time.perf_counter()
        self.has_begun = False

    @property
    def seconds(self) -> float:
        """Training time so far, interrupted calls included up to their last checkpoint."""
        return self._seconds_before + time.perf_counter() - self._started

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the steps that an earlier call made."""
        if state.global_step:
            self.bar.advance(state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the batches which epoch they are for."""
        self.sampler.epoch = state.global_step // len(self.sampler)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note that whatever an earlier call left has been read."""
        self.has_begun = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step, and save in the middle of a long epoch."""
        self.bar.advance()
        step = state.global_step % len(self.sampler)
        control.should_save = step > 0 and step % STEPS_PER_CHECKPOINT == 0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log, evaluate and save.

        Raises
        ------
        ConfigError
            If the weights are no longer finite.
        """
        if not all(bool(torch.isfinite(p).all()) for p in list_trained(kwargs["model"]).values()):
            raise ConfigError(
                f"fine-tuning diverged: learning_rate {self.settings.learning_rate:g} is too high, "
                "set it to a tenth of that."
            )
        control.should_log = True
        control.should_evaluate = self.evaluates
        control.should_save = (
            self.evaluates
            or state.global_step >= state.max_steps
            or state.global_step - self._saved >= MIN_STEPS_PER_CHECKPOINT
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell who asked, and stop where validation no longer improves."""
        epochs = checkpoints.read_epochs(state.log_history)
        if self.on_epoch is not None:
            self.on_epoch(epochs[-1])
        if checkpoints.has_stalled(epochs, patience=self.settings.patience):
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Declare the checkpoint complete and delete what is no longer needed."""
        self._saved = state.global_step
        group = find_group()
        group.wait()  # until all have written their part
        if not group.leads:
            return
        checkpoints.mark_ready(self.folder / f"checkpoint-{state.global_step}", seconds=self.seconds)
        epochs = checkpoints.read_epochs(state.log_history)
        best = {checkpoints.find_best(epochs).step} if epochs else set()
        checkpoints.delete_spent(self.folder, keep={state.global_step} | best)


def _score(prediction: Any) -> dict[str, float]:
    logits = torch.from_numpy(np.asarray(prediction.predictions, dtype=np.float64))
    scores = compute_metrics(prediction.label_ids, logits.softmax(dim=1).numpy())
    return {name: scores[name] for name in ("macro_f1", "log_loss", "accuracy")}


def make_arguments(
    settings: Settings,
    folder: Path,
    *,
    n_steps: int,
    device: str,
    precision: str,
    kind: type[TrainingArguments] = TrainingArguments,
    **own: Any,
) -> TrainingArguments:
    """Return the Trainer's arguments; `own` are those of a `kind` of its own."""
    arguments = kind(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH_SIZE,
        learning_rate=settings.learning_rate,
        warmup_steps=math.ceil(n_steps * settings.warmup_fraction),
        weight_decay=settings.weight_decay,
        lr_scheduler_type="constant_with_warmup" if settings.scheduler == "constant" else settings.scheduler,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=device == "cpu",
        ddp_backend="gloo" if device == "cpu" and find_group().size > 1 else None,
        ddp_find_unused_parameters=False,  # what isn't read isn't trained
        # When to log, evaluate and save is up to Steering.
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        log_level="error",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        **own,
    )
    # One process uses one device; several take an engine.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def make_logger(logs_dir: Path) -> list[TrainerCallback]:
    """Return a TensorBoard writer where TensorBoard is installed."""
    if importlib.util.find_spec("tensorboard") is None or not find_group().leads:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(logs_dir)))]  # type: ignore[no-untyped-call]


def list_trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
