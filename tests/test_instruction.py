"""Instruction tuning and QLoRA: real training of tiny decoders on a CPU."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from decoder_cases import build_decoder
from embedtune.config import FinetuneSettings, build_experiment
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.quiet import hush_libraries
from embedtune.embed.tokens import pick_pad_id
from embedtune.errors import BackboneError, ConfigError, MissingExtraError
from embedtune.finetune import checkpoints, instruction, loop, train
from embedtune.finetune.instruction import write_questions
from embedtune.finetune.saved import FineTuned, read_finetuned
from embedtune.finetune.train import fine_tune
from embedtune.progress import Bar, use_progress
from embedtune.prompt.template import INSTRUCTION, render_answer, render_prompt, write_messages
from embedtune.recipe import read_recipe
from finetune_child import WORDS, main, make_rows
from test_finetune_resume import read_results, run_child
from tiny_models import build_tiny_llama

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None or importlib.util.find_spec("bitsandbytes") is None,
    reason="needs trl and bitsandbytes: pip install 'embedtune[llm]'",
)

NAMES = list(WORDS)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA whose layers' rows are whole NF4 blocks."""
    return build_tiny_llama(tmp_path_factory.mktemp("llama"), hidden=64)


def tune(model: Path, folder: Path, n_rows: int = 24, **changes: Any) -> FineTuned:
    texts, labels = make_rows(n_rows)
    arguments: dict[str, Any] = {
        "labels": labels,
        "label_names": NAMES,
        "output_dir": folder,
        "objective": "instruction",
        "method": "lora",
        "epochs": 1,
        "learning_rate": 3e-3,
        "batch_size": 8,
        "max_length": 32,
        "precision": "float32",
        "device": "cpu",
    }
    return fine_tune(model, changes.pop("texts", texts), **{**arguments, **changes})


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects each decoder as it is when it is saved."""
    models: list[Any] = []
    original = instruction.save_tuned

    def save(model: Any, folder: Path) -> None:
        models.append(model)
        original(model, folder)

    monkeypatch.setattr(instruction, "save_tuned", save)
    return models


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects each trainer as it is when training starts."""
    from embedtune.finetune import sft

    found: list[Any] = []
    original = sft.AnswerTrainer.train

    def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(sft.AnswerTrainer, "train", start)
    return found


# What is trained on


@pytest.mark.parametrize("has_template", [False, True], ids=["plain", "chat-template"])
def test_loss_is_on_the_answers_tokens_alone(
    llama: Path, tmp_path: Path, trainers: list[Any], has_template: bool
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    folder = tmp_path / "model"
    build_tiny_llama(folder, hidden=64)
    if has_template:
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
    texts, labels = make_rows(24)
    tune(folder, tmp_path / "out", max_length=64)
    seen = set()
    for batch in trainers[0].get_train_dataloader():
        for ids, mask, targets in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            n_prompt = int((targets == -100).int().cumprod(0).sum())
            n_tokens = int(mask.sum())
            assert (targets[n_tokens:] == -100).all()
            torch.testing.assert_close(targets[n_prompt:n_tokens], ids[n_prompt:n_tokens])
            assert targets[n_tokens - 1] == tokenizer.eos_token_id
            answer = tokenizer.decode(targets[n_prompt : n_tokens - 1]).strip()
            asked = tokenizer.decode(ids[:n_prompt], skip_special_tokens=True)
            row = next(i for i, text in enumerate(texts) if f"Text: {text.strip()}" in asked)
            assert answer == labels[row]
            assert "down, flat, up" in asked
            assert asked.endswith("<assistant>" if has_template else "Answer:")
            assert (ids[:n_tokens] == tokenizer.bos_token_id).sum() == 1
            seen.add(row)
    assert seen == set(range(24))


def test_questions_are_the_prompt_arms_and_keep_their_end_however_long_the_text(llama: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    settings = train.Settings(
        **dict.fromkeys(train.Settings.__dataclass_fields__)
        | {"label_names": ("no", "yes"), "max_length": 6, "instruction": "Is it? ({options})"}
    )
    short, long = write_questions(
        tokenizer, ["Gold rose.", "Gold rose and fell " * 50], ["yes", "no"], settings=settings
    )
    messages = write_messages("Gold rose.", ("no", "yes"), instruction="Is it? ({options})")
    prompt = render_prompt(tokenizer, messages)
    assert short.ids[: short.n_prompt] == tokenizer(prompt)["input_ids"]
    assert short.ids == [*tokenizer(prompt + render_answer(tokenizer, "yes"))["input_ids"], 2]
    assert tokenizer.decode(long.ids[long.n_prompt :]) == "no</s>"
    assert tokenizer.decode(long.ids[: long.n_prompt]).endswith("Answer:")
    assert len(long.ids) < len(short.ids) + 6


def rate_answers(decoder: Any, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Return the log-likelihood of each label as the answer, shape (n_texts, n_labels), one prompt at a time."""
    decoder.eval()
    rows = []
    for text in texts:
        prompt = render_prompt(tokenizer, write_messages(text, NAMES))
        n_prompt = len(tokenizer(prompt)["input_ids"])
        row = []
        for name in NAMES:
            ids = torch.tensor([[*tokenizer(prompt + render_answer(tokenizer, name))["input_ids"], 2]])
            with torch.no_grad():
                scores = decoder(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            row.append(float(scores.gather(1, ids[0, 1:, None])[n_prompt - 1 :].sum()))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_tuning_makes_the_right_answers_likely(llama: Path, tmp_path: Path, quantization: str) -> None:
    texts, labels = make_rows(60)
    right = [NAMES.index(label) for label in labels[:18]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    decoder = transformers.AutoModelForCausalLM.from_pretrained(llama)
    before = rate_answers(decoder, tokenizer, texts[:18])
    tune(llama, tmp_path / "out", n_rows=60, epochs=12, quantization=quantization)
    with hush_libraries():
        peft.PeftModel.from_pretrained(decoder.model, tmp_path / "out")  # changes it in place, under the head
    after = rate_answers(decoder, tokenizer, texts[:18])
    likelihood = {
        name: np.exp(rated[range(18), right]).mean() for name, rated in (("before", before), ("after", after))
    }
    assert likelihood["before"] < 0.01
    assert likelihood["after"] > 0.5
    assert (after.argmax(1) == right).mean() > 0.9


# What is left


def read_hidden_states(decoder: Any, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Average every hidden state over the tokens, shape (n_texts, n_layers + 1, width), through the decoder itself."""
    decoder.eval()
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = decoder(input_ids=ids, output_hidden_states=True).hidden_states
        rows.append(torch.stack([state[0].float().mean(0) for state in states]).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_encoder_reads_what_the_trained_decoder_has(
    llama: Path, tiny_llama: Path, tmp_path: Path, spied: list[Any], family: str, method: str
) -> None:
    model = llama
    if family != "llama":
        model = build_decoder(family, tiny_llama, tmp_path / family, causal=True)
    found = tune(model, tmp_path / "out", method=method, dropout=0.1)
    texts = make_rows(6)[0]
    encoder = TransformerEncoder(
        model, adapter=found.path, layers="all", max_length=64, precision="float32", device="cpu"
    )
    expected = read_hidden_states(spied[0], transformers.AutoTokenizer.from_pretrained(model), texts)
    embeddings = encoder.transform(texts).reshape(expected.shape)
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-4)
    plain = TransformerEncoder(model, layers="all", max_length=64, precision="float32", device="cpu")
    assert np.abs(plain.transform(texts).reshape(expected.shape) - expected).max() > 0.05


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("objective", ["instruction", "classification"])
def test_qlora_adapter_reads_with_quantized_and_full_weights(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, kind: str
) -> None:
    monkeypatch.setattr("embedtune.embed.precision.multiplies_bfloat16", lambda: False)
    models: list[Any] = []
    for owner, name in ((instruction, "save_tuned"), (train, "_save")):
        original = getattr(owner, name)

        def save(model: Any, *args: Any, original: Any = original, **kwargs: Any) -> None:
            models.append(model)
            original(model, *args, **kwargs)

        monkeypatch.setattr(owner, name, save)
    before = {path.name: path.read_bytes() for path in llama.iterdir()}
    found = tune(llama, tmp_path / "out", objective=objective, quantization=kind, pooling="mean", epochs=2)
    assert found.method == "lora"
    assert 0 < found.n_trained_parameters < found.n_parameters / 4
    trained = models[0] if objective == "instruction" else models[0].backbone
    stored = {module.weight.dtype for module in trained.modules() if "Linear" in type(module).__name__ and
              hasattr(module.weight, "quant_state" if kind == "nf4" else "SCB")}  # fmt: skip
    assert stored == {torch.uint8 if kind == "nf4" else torch.int8}
    expected = read_hidden_states(trained, transformers.AutoTokenizer.from_pretrained(llama), make_rows(6)[0])
    # One text at a time: which columns LLM.int8() keeps in float16 depends on all rows of a batch.
    settings: dict[str, Any] = {
        "layers": "all",
        "max_length": 64,
        "device": "cpu",
        "batch_tokens": 1,
        "backend": "torch",
    }
    by_precision = {
        precision: TransformerEncoder(llama, adapter=found.path, precision=precision, **settings)
        .transform(make_rows(6)[0])
        .reshape(expected.shape)
        for precision in (kind, "float32")
    }
    np.testing.assert_allclose(by_precision[kind], expected, rtol=0, atol=1e-4)
    assert np.abs(by_precision["float32"] - expected).max() > 1e-3
    assert {path.name: path.read_bytes() for path in llama.iterdir()} == before


def test_finished_tuning_has_no_head_and_tells_its_facts(llama: Path, tmp_path: Path) -> None:
    found = tune(llama, tmp_path / "out", epochs=2, validation_fraction=0.2, lora_targets="attention")
    assert (found.head_weight, found.head_bias) == (None, None)
    assert (found.objective, found.label_names, found.best_epoch) == ("instruction", tuple(NAMES), 2)
    assert (found.n_training, found.n_validation, found.macro_f1, found.history) == (24, 0, None, ())
    files = {path.name for path in found.path.iterdir()} - {".lock"}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "finetune.json", "logs"}
    assert found.n_trained_parameters == 4 * 8 * (4 * 2 * 64 - 2 * 32)


def test_tuning_leaves_the_shared_tokenizer_alone(llama: Path, tmp_path: Path) -> None:
    from embedtune.embed.backbone import describe_backbone

    tune(llama, tmp_path / "out")
    tokenizer = describe_backbone(llama).tokenizer
    assert tokenizer.pad_token is None
    assert pick_pad_id(tokenizer) == 0


def test_tuning_says_nothing_and_reports_steps(
    llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    opened: list[tuple[str, int, str]] = []
    done: list[int] = []

    class Counter:
        def advance(self, n: int = 1) -> None:
            done.append(n)

    @contextmanager
    def watch(description: str, total: int, unit: str) -> Iterator[Bar]:
        opened.append((description, total, unit))
        yield Counter()

    with use_progress(watch):
        tune(llama, tmp_path / "out", epochs=2, quantization="int8", gradient_checkpointing=True)
    assert opened == [(f"instruction-tune {llama.name}", 6, "steps")]
    assert sum(done) == 6
    assert capfd.readouterr() == ("", "")


# Interrupted


@pytest.fixture
def finish(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(order: dict[str, Any]) -> Path:
        monkeypatch.setattr(loop, "STEPS_PER_CHECKPOINT", order.get("steps_per_checkpoint", 400))
        monkeypatch.setattr(loop, "MIN_STEPS_PER_CHECKPOINT", 1)
        main({**order, "kill": None})
        return Path(order["output_dir"])

    return run


KILLS = [
    pytest.param("lora", "none", {"step": 13}, 3, id="mid-epoch-after-a-step-checkpoint"),
    pytest.param("full", "none", {"at": "weights", "call": 2}, 400, id="half-of-the-weights-written"),
    pytest.param("lora", "nf4", {"at": "ready", "call": 2}, 400, id="qlora-checkpoint-without-its-mark"),
    pytest.param("lora", "none", {"at": "facts", "call": 1}, 400, id="saved-but-not-declared"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "quantization", "kill", "steps"), KILLS)
def test_tuning_killed_and_repeated_ends_with_equal_weights(
    method: str, quantization: str, kill: dict[str, Any], steps: int, llama: Path, tmp_path: Path, finish: Any
) -> None:
    settings = {
        "objective": "instruction",
        "method": method,
        "quantization": quantization,
        "epochs": 2,
        "learning_rate": 1e-3,
        "dropout": 0.1,
    }
    order = {"model": str(llama), "settings": settings, "steps_per_checkpoint": steps}
    undisturbed = finish({**order, "output_dir": str(tmp_path / "undisturbed")})
    killed = tmp_path / "killed"
    assert run_child({**order, "output_dir": str(killed), "kill": kill}) == -signal.SIGKILL
    assert not (killed / "finetune.json").exists()
    assert checkpoints.find_last(killed / "checkpoints") is not None
    finish({**order, "output_dir": str(killed)})
    assert read_results(killed) == read_results(undisturbed)
    assert len(read_results(killed)) == 1
    assert not (killed / "checkpoints").exists()


def test_finished_tuning_is_read_back_without_training(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(llama, tmp_path / "out")
    monkeypatch.setattr(train, "tune_by_instruction", None)
    second = tune(llama, tmp_path / "out")
    assert (second.seconds, second.head_weight) == (first.seconds, None)


# Settings


BAD = [
    (
        {"objective": "instruct"},
        ConfigError,
        "objective 'instruct' is unknown (did you mean 'instruction'?): "
        "choose one of classification, contrastive, instruction.",
    ),
    (
        {"method": "upper"},
        ConfigError,
        "instruction tuning can't train the upper layers alone: set method to lora or full.",
    ),
    (
        {"method": "full", "quantization": "nf4"},
        ConfigError,
        "nf4 weights can't be trained, only adapters on them: set method to lora, not 'full', "
        "or quantization to none.",
    ),
    (
        {"quantization": "fp4"},
        ConfigError,
        "quantization 'fp4' is unknown (did you mean 'nf4'?): choose one of none, int8, nf4.",
    ),
    (
        {"optimizer": "paged_adamw"},
        ConfigError,
        "optimizer 'paged_adamw' moves its state between a CUDA device and the CPU, and the device is 'cpu': "
        "set optimizer to adamw.",
    ),
    (
        {"precision": "nf4"},
        ConfigError,
        "precision 'nf4' is for reading only: to train adapters on such weights, set quantization to it.",
    ),
    (
        {"instruction": "Up or down?"},
        ConfigError,
        "the instruction 'Up or down?' doesn't say what may be answered: put {options} where the labels go.",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_bad_settings_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        tune(llama, tmp_path / "out", **changes)
    assert str(caught.value) == message


def test_encoder_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        tune(tiny_bert, tmp_path / "out")
    assert str(caught.value) == (
        f"'{tiny_bert.name}' (bert) is no decoder, so it can't answer an instruction: "
        "set objective to classification, or give a decoder (LLaMA, Qwen ...)."
    )


def test_prompt_longer_than_the_model_reads_is_refused(llama: Path, tmp_path: Path) -> None:
    texts = ["gold rose and fell " * 100] * 24
    with pytest.raises(ConfigError) as caught:
        tune(llama, tmp_path / "out", texts=texts, max_length=240)
    longest = 256 + int(str(caught.value).split("lower by ")[1].split()[0])
    assert str(caught.value) == (
        f"a prompt has {longest} tokens and '{llama.name}' reads 256: set max_length, which counts the text's own "
        f"tokens, lower by {longest - 256} or more."
    )
    assert 0 < longest - 256 < 200
    tune(llama, tmp_path / "out", texts=texts, max_length=240 - (longest - 256), batch_size=24)


@pytest.mark.parametrize(
    ("package", "changes", "message"),
    [
        ("trl", {}, "instruction tuning needs trl: pip install 'embedtune[llm]'."),
        (
            "bitsandbytes",
            {"objective": "classification", "quantization": "int8"},
            "int8 weights need bitsandbytes: pip install 'embedtune[llm]'.",
        ),
    ],
)
def test_missing_package_tells_the_pip_line(
    package: str,
    changes: dict[str, Any],
    message: str,
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as caught:
        tune(llama, tmp_path / "out", **changes)
    assert str(caught.value) == message


def test_capstones_settings_for_llama_reach_the_trainer(
    llama: Path, tmp_path: Path, trainers: list[Any]
) -> None:
    recipe = build_experiment(read_recipe("capstone").resolve(), where="recipe capstone")
    settings = recipe.finetune.of("meta-llama/Llama-2-7b-chat-hf").model_dump(exclude_none=True)
    assert (settings["quantization"], settings["optimizer"], settings["precision"]) == (
        "nf4",
        "paged_adamw",
        "float16",
    )
    # A CPU has neither pages nor float16.
    tune(llama, tmp_path / "out", **{**settings, "optimizer": "adamw", "precision": "float32"})
    arguments = trainers[0].args
    assert (arguments.num_train_epochs, arguments.per_device_train_batch_size) == (1, 4)
    assert (arguments.learning_rate, arguments.weight_decay, arguments.max_grad_norm) == (2e-4, 1e-3, 0.3)
    assert (arguments.lr_scheduler_type, arguments.warmup_steps) == ("cosine", 1)
    assert arguments.gradient_checkpointing and arguments.completion_only_loss
    adapters = trainers[0].tuned.peft_config["default"]
    assert (adapters.r, adapters.lora_alpha, adapters.lora_dropout) == (64, 16, 0.1)


def test_defaults_of_config_and_library_agree() -> None:
    assert FinetuneSettings().instruction == INSTRUCTION


# In a run


def test_end_to_end_without_any_head_is_refused_at_once() -> None:
    settings = {
        "name": "x",
        "tasks": {"t": {"source": "sujet_sentiment"}},
        "embed": {"views": {"llama": {"kind": "transformer", "model": "some/llama"}}},
        "finetune": {"objective": "instruction", "method": "lora"},
    }
    with pytest.raises(ConfigError) as caught:
        build_experiment(settings, where="here")
    assert str(caught.value) == (
        "1 problem in here: compare.arms has 'end-to-end', which classifies with the head of a fine-tuned "
        "backbone, and all of them are tuned by instruction, which trains none: leave the arm out, or set the "
        "objective of one backbone to classification."
    )
    build_experiment({**settings, "compare": {"arms": ["frozen", "tuned"]}}, where="here")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"optimizer": "paged_adamw"}, "optimizer 'paged_adamw' moves its state"),
        ({"precision": "float16"}, "precision 'float16' can't train on a CPU"),
        ({"method": "lora", "objective": "instruction"}, "instruction tuning needs trl"),
    ],
)
def test_fine_tuning_that_cannot_be_done_here_is_told_before_anything_is_read(
    own: dict[str, Any], message: str, tiny_bert: Path, llama: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    import yaml
    from typer.testing import CliRunner

    from embedtune.cli import app
    from run_cases import write_recipe, write_rows

    monkeypatch.setitem(sys.modules, "trl", None)
    rows = write_rows(tmp_path / "moves.csv")
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=rows, store=tmp_path / "store")
    settings = yaml.safe_load(recipe.read_text())
    settings["embed"]["device"] = "cpu"
    settings["embed"]["views"]["llama"] = {"kind": "transformer", "model": str(llama), "max_length": 32}
    settings["embed"]["views"]["llama"]["layers"] = [-1]
    settings["finetune"]["by_backbone"] = {str(llama): own}
    recipe.write_text(yaml.safe_dump(settings))
    done = CliRunner().invoke(app, ["run", str(recipe), "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")
    assert not (tmp_path / "run" / "data").exists()


def test_run_with_an_instruction_tuned_backbone(tiny_bert: Path, llama: Path, tmp_path: Path) -> None:
    """The arm tuned reads with both fine-tuned backbones; end-to-end classifies with the one that has a head."""
    import json

    import yaml
    from typer.testing import CliRunner

    from embedtune.cli import app
    from run_cases import write_recipe, write_rows

    rows = write_rows(tmp_path / "moves.csv")
    recipe = write_recipe(tmp_path / "tiny.yaml", model=tiny_bert, data=rows, store=tmp_path / "store")
    settings = yaml.safe_load(recipe.read_text())
    settings["embed"]["views"]["llama"] = {
        "kind": "transformer",
        "model": str(llama),
        "layers": [-1],
        "max_length": 32,
        "precision": "int8",
    }
    settings["finetune"]["by_backbone"] = {
        str(llama): {"objective": "instruction", "method": "lora", "quantization": "int8", "epochs": 1}
    }
    settings["compare"] |= {"arms": ["frozen", "tuned", "end-to-end"], "probe_layers": False}
    recipe.write_text(yaml.safe_dump(settings))
    done = CliRunner().invoke(app, ["run", str(recipe), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["arms"]) == ["frozen", "tuned", "end-to-end"]
    adapters = sorted((tmp_path / "run" / "adapters").glob("*/*/finetune.json"))
    objectives = {
        (path.parts[-3] == llama.name, path.parts[-2].split("-seed")[0]): read_finetuned(
            path.parent
        ).objective
        for path in adapters
    }
    assert objectives == {
        (False, "tune"): "classification",
        (False, "tune+train"): "classification",
        (True, "tune"): "instruction",
    }
