"""Likelihoods from shared caches equal those of reading every prompt with every answer by itself."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from decoder_cases import build_decoder
from embedtune.embed import backbone
from embedtune.embed.backbone import load_backbone
from embedtune.errors import BackboneError, ConfigError, ResourceError
from embedtune.prompt import decoder as prompt_decoder
from embedtune.prompt import likelihood
from embedtune.prompt.decoder import Decoder, describe_decoder, load_decoder
from embedtune.prompt.likelihood import rate_answers, score_answers
from embedtune.prompt.questions import Question, encode_questions
from embedtune.prompt.template import render_answer, render_prompt, write_messages

TEXTS = [
    "operating profit rose to eur 13.1 mn",
    "gold fell",
    "costs rose, but less than feared; the outlook remains neutral and the board proposes a dividend",
    "",
    "shares jump",
    "sales were unchanged",
]
LABELS = ["negative", "neutral", "no", "positive", "positive outlook"]
EXAMPLES = [("net loss widened", "negative"), ("orders rose", "positive")]
TEMPLATE = (
    "<s>{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
#: Its last space becomes a part of the answer's first token.
JOINING_TEMPLATE = TEMPLATE.replace("[assistant]{%", "[assistant] {%")


def write_prompts(
    decoder: Decoder, texts: Sequence[str], *, n_examples: int = 0
) -> tuple[list[str], list[str]]:
    prompts = [
        render_prompt(decoder.tokenizer, write_messages(text, LABELS, examples=EXAMPLES[:n_examples]))
        for text in texts
    ]
    return prompts, [render_answer(decoder.tokenizer, label) for label in LABELS]


def score_naively(decoder: Decoder, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray[Any, Any]:
    """Read every prompt with every answer whole, alone, without padding and without a cache."""
    adds_special_tokens = decoder.tokenizer.chat_template is None
    scores = []
    for prompt in prompts:
        bare, *whole = (
            decoder.tokenizer(prompt + answer, add_special_tokens=adds_special_tokens)["input_ids"]
            for answer in ("", *answers)
        )
        start = len(bare)
        while any(ids[:start] != bare[:start] for ids in whole):
            start -= 1
        row = []
        for ids in whole:
            with torch.no_grad():
                log_probabilities = (
                    decoder.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
                )
            row.append(sum(float(log_probabilities[i - 1, ids[i]]) for i in range(start, len(ids))))
        scores.append(row)
    return np.array(scores)


def copy_model(source: Path, folder: Path, *, model: Any = None, **settings: Any) -> Path:
    """Copy a checkpoint, with another model or other settings of its tokenizer."""
    shutil.copytree(source, folder)
    if model is not None:
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


@pytest.fixture
def decoder(tiny_llama: Path) -> Decoder:
    return load_decoder(tiny_llama, precision="float32", device="cpu")


@pytest.mark.parametrize("n_examples", [0, 2])
@pytest.mark.parametrize("batch_tokens", [1, 700, 2000, "auto"])
def test_scores_equal_naive_ones_in_any_batches(decoder: Decoder, n_examples: int, batch_tokens: Any) -> None:
    texts = [text[:40] for text in TEXTS] if n_examples else TEXTS
    prompts, answers = write_prompts(decoder, texts, n_examples=n_examples)
    questions = encode_questions(decoder.tokenizer, prompts, answers)
    assert max(len(answer) for answer in questions[0].answers) > 2
    found = score_answers(decoder, questions, batch_tokens=batch_tokens)
    np.testing.assert_allclose(found, score_naively(decoder, prompts, answers), atol=1e-4, rtol=0)


def test_a_single_text_is_scored_like_many(decoder: Decoder) -> None:
    prompts, answers = write_prompts(decoder, TEXTS)
    many = score_answers(decoder, encode_questions(decoder.tokenizer, prompts, answers))
    one = score_answers(decoder, encode_questions(decoder.tokenizer, prompts[2:3], answers))
    np.testing.assert_allclose(one[0], many[2], atol=1e-4, rtol=0)
    assert score_answers(decoder, []).shape == (0, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"padding_side": "left"},
        {"padding_side": "right"},
        {"chat_template": TEMPLATE},
        {"chat_template": JOINING_TEMPLATE},
    ],
)
def test_tokenizer_settings_are_heeded(tiny_llama: Path, tmp_path: Path, settings: dict[str, str]) -> None:
    decoder = load_decoder(
        copy_model(tiny_llama, tmp_path / "m", pad_token="</s>", **settings),
        precision="float32",
        device="cpu",
    )
    prompts, answers = write_prompts(decoder, TEXTS, n_examples=1)
    questions = encode_questions(decoder.tokenizer, prompts, answers)
    assert questions[0].context[0] == 1
    assert 1 not in questions[0].context[1:]
    found = score_answers(decoder, questions)
    np.testing.assert_allclose(found, score_naively(decoder, prompts, answers), atol=1e-4, rtol=0)


def test_tokenizer_without_bos_is_scored_without(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy_model(tiny_llama, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer.save_pretrained(folder)
    decoder = load_decoder(folder, precision="float32", device="cpu")
    prompts, answers = write_prompts(decoder, TEXTS)
    questions = encode_questions(decoder.tokenizer, prompts, answers)
    assert not {1, 2} & set(questions[0].context)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    tokenizer.save_pretrained(folder)
    bare = load_decoder(folder, precision="float32", device="cpu")
    found = score_answers(decoder, questions)
    np.testing.assert_allclose(found, score_naively(bare, prompts, answers), atol=1e-4, rtol=0)


def build_mistral(vocab_size: int) -> Any:
    return MistralForCausalLM(MistralConfig(**small(vocab_size), sliding_window=12))


def build_gemma(vocab_size: int) -> Any:
    config = Gemma3TextConfig(**small(vocab_size), head_dim=8, sliding_window=12, query_pre_attn_scalar=8)
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3ForCausalLM(config)


def build_gpt2(vocab_size: int) -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=3, n_head=4, n_positions=256))


def build_bloom(vocab_size: int) -> Any:
    return BloomForCausalLM(BloomConfig(vocab_size=vocab_size, hidden_size=32, n_layer=3, n_head=4))


def build_mamba(vocab_size: int) -> Any:
    return MambaForCausalLM(
        MambaConfig(vocab_size=vocab_size, hidden_size=32, num_hidden_layers=3, state_size=4)
    )


def small(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256,
    }  # fmt: skip


@pytest.mark.parametrize("build", [build_mistral, build_gemma, build_gpt2, build_bloom, build_mamba])
def test_other_families_are_scored_like_the_naive_way(
    tiny_llama: Path, tmp_path: Path, build: Callable[[int], Any]
) -> None:
    """Sliding windows shorter than the prompt, learned positions, ALiBi without positions, a recurrent state."""
    torch.manual_seed(0)
    model = build(len(AutoTokenizer.from_pretrained(tiny_llama)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    folder = copy_model(tiny_llama, tmp_path / "m", model=model)
    decoder = load_decoder(folder, precision="float32", device="cpu")
    prompts, answers = write_prompts(decoder, [*TEXTS, "gold rose"])
    questions = encode_questions(decoder.tokenizer, prompts, answers)
    found = score_answers(decoder, questions)
    np.testing.assert_allclose(found, score_naively(decoder, prompts, answers), atol=2e-4, rtol=0)
    assert np.ptp(found, axis=0).max() > 1e-3


def test_shared_and_own_tokens_are_read_once(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, answers = write_prompts(decoder, TEXTS)
    questions = encode_questions(decoder.tokenizer, prompts, answers)
    n_shared = likelihood.count_common([question.context for question in questions])
    shapes = []
    run = likelihood._run

    def note(decoder: Decoder, ids: torch.Tensor, **options: Any) -> Any:
        shapes.append(tuple(ids.shape))
        return run(decoder, ids, **options)

    monkeypatch.setattr(likelihood, "_run", note)
    score_answers(decoder, questions)
    longest = max(len(question.context) for question in questions)
    stems = likelihood._list_stems(questions[0].answers)
    assert shapes[:2] == [(1, n_shared), (len(TEXTS), longest - n_shared)]
    assert shapes[2:] == [(len(TEXTS) * len(stems), max(map(len, stems)))]


def test_context_ends_where_prompt_and_answers_part(decoder: Decoder) -> None:
    """Tokens that join a prompt's end and an answer's beginning belong to the answer, whichever answer it is."""

    class Joiner:
        """A token per character, but "=p" is one."""

        chat_template = None

        def __call__(self, text: Any, **_: Any) -> dict[str, Any]:
            texts = [text] if isinstance(text, str) else text
            rows = [[ord(c) for c in one.replace("=p", "§")] for one in texts]
            return {"input_ids": rows[0] if isinstance(text, str) else rows}

    (question,) = encode_questions(Joiner(), ["is="], ["pos", "neg"])
    assert question.context == [ord("i"), ord("s")]
    assert question.answers == (tuple(map(ord, "§os")), tuple(map(ord, "=neg")))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            ["up", "up"],
            "the answers 'up' and 'up' are the same to the model: give their labels different wordings in options.",
        ),
        (["up", ""], "the answer '' has no tokens: give its label a wording in options."),
    ],
)
def test_answers_that_cannot_be_told_apart_are_refused(
    decoder: Decoder, answers: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        encode_questions(decoder.tokenizer, ["is:"], answers)
    assert str(caught.value) == message


def test_prompt_that_is_nothing_is_refused(decoder: Decoder) -> None:
    tokenizer = copy.deepcopy(decoder.tokenizer)
    tokenizer.chat_template = "{{ undefined }}"
    with pytest.raises(BackboneError) as caught:
        encode_questions(tokenizer, ["is:", ""], ["up", "down"])
    name = tokenizer.name_or_path
    assert str(caught.value) == (
        f"the chat template of '{name}' writes nothing before the answer: mend it, or choose another model."
    )


def test_rate_answers_beginning_of_another_answer_counts_alone() -> None:
    questions = [Question([9], ((1,), (1, 2), (1, 2, 3), (1, 4), (5, 6)))]
    p = np.array([[0.5, 0.3, 0.1, 0.15, 0.2]])
    np.testing.assert_allclose(np.exp(rate_answers(np.log(p), questions)), [[0.05, 0.2, 0.1, 0.15, 0.2]])
    mean = np.exp(rate_answers(np.log(p), questions, normalisation="mean"))
    np.testing.assert_allclose(mean, [[0.05, 0.2**0.5, 0.1 ** (1 / 3), 0.15**0.5, 0.2**0.5]])
    certain = rate_answers(np.log(np.full((1, 5), 0.3)), questions)
    assert np.isfinite(certain).all()


def test_positive_outlook_can_win_over_positive(decoder: Decoder) -> None:
    prompts, answers = write_prompts(decoder, TEXTS)
    questions = encode_questions(decoder.tokenizer, prompts, answers)
    short, long = questions[0].answers[3:]
    assert long[: len(short)] == short
    scores = score_answers(decoder, questions)
    assert (scores[:, 3] >= scores[:, 4]).all()
    rated = rate_answers(scores, questions)
    np.testing.assert_allclose(np.exp(rated[:, 3]), np.exp(scores[:, 3]) - np.exp(scores[:, 4]))
    np.testing.assert_array_equal(rated[:, [0, 1, 2, 4]], scores[:, [0, 1, 2, 4]])


@pytest.mark.parametrize("limit", [3, 1])
def test_batches_are_halved_until_they_fit(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    prompts, answers = write_prompts(decoder, TEXTS)
    questions = encode_questions(decoder.tokenizer, prompts, answers)
    whole = score_answers(decoder, questions)
    run = likelihood._run

    def run_out(decoder: Decoder, ids: torch.Tensor, **options: Any) -> Any:
        if len(ids) > limit:
            raise torch.OutOfMemoryError
        return run(decoder, ids, **options)

    monkeypatch.setattr(likelihood, "_run", run_out)
    np.testing.assert_allclose(score_answers(decoder, questions), whole, atol=1e-4, rtol=0)


def test_prompt_larger_than_memory_says_what_to_set(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, answers = write_prompts(decoder, TEXTS[:1])
    questions = encode_questions(decoder.tokenizer, prompts, answers)

    def run_out(*_: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(likelihood, "_score_batch", run_out)
    with pytest.raises(ResourceError) as caught:
        score_answers(decoder, questions)
    assert str(caught.value) == (
        f"a prompt of {len(questions[0].context)} tokens does not fit into the memory of cpu: "
        "set max_length or n_examples lower, precision to bfloat16, or device to cpu."
    )


def test_decoder_takes_the_place_of_kept_backbones(
    tiny_llama: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_model(tiny_llama, tmp_path / "m")
    load_backbone(tiny_bert, device="cpu")
    move = prompt_decoder._move

    def move_if_alone(model: Any, device: str) -> Any:
        if backbone._loaded:
            raise torch.OutOfMemoryError
        return move(model, device)

    monkeypatch.setattr(prompt_decoder, "_move", move_if_alone)
    assert load_decoder(folder, device="cpu").model_id == "m"

    def never(model: Any, device: str) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(prompt_decoder, "_move", never)
    with pytest.raises(ResourceError) as caught:
        load_decoder(tiny_llama, precision="float32", device="cpu")
    assert str(caught.value) == (
        f"'{tiny_llama.name}' in float32 does not fit into the memory of cpu: "
        "set precision to bfloat16 or float16, or device to cpu."
    )


def test_values_that_overflow_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.lm_head.weight.mul_(float("inf"))
    folder = copy_model(tiny_llama, tmp_path / "m", model=model)
    decoder = load_decoder(folder, precision="float32", device="cpu")
    prompts, answers = write_prompts(decoder, TEXTS)
    with pytest.raises(BackboneError) as caught:
        score_answers(decoder, encode_questions(decoder.tokenizer, prompts, answers))
    assert str(caught.value) == (
        "'m' gives likelihoods that aren't finite in float32: set precision to float32, or check the checkpoint."
    )


def test_encoder_is_no_decoder(tiny_bert: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        describe_decoder(tiny_bert)
    assert str(caught.value) == (
        f"'{tiny_bert.name}' (bert) is no decoder: a prompt is asked of a causal language model "
        "such as LLaMA, Qwen, Mistral, Gemma or SmolLM."
    )


def test_checkpoint_without_head_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy_model(tiny_llama, tmp_path / "m", model=LlamaModel.from_pretrained(tiny_llama))
    with pytest.raises(BackboneError) as caught:
        load_decoder(folder, device="cpu")
    assert str(caught.value) == (
        "the checkpoint of 'm' lacks 1 weights, lm_head.weight first: "
        "give one that was saved with its language-model head."
    )


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_quantized_decoder_answers_nearly_as_the_whole_one(
    tiny_llama: Path, tmp_path: Path, precision: str
) -> None:
    folder = build_decoder("qwen2", tiny_llama, tmp_path / "qwen2", causal=True)
    whole, rounded = (load_decoder(folder, precision=one, device="cpu") for one in ("float32", precision))
    questions = encode_questions(
        whole.tokenizer, [f"{text}. Answer:" for text in TEXTS[:3]], [" no", " positive"]
    )
    expected, found = score_answers(whole, questions), score_answers(rounded, questions)
    assert np.abs(found - expected).max() < 0.3 * np.abs(expected).max()
    assert not np.array_equal(found, expected)
