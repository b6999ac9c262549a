"""Prompts name the options, repeat nothing per text but the text, and end where the answer begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from embedtune.errors import BackboneError, ConfigError
from embedtune.prompt.template import cut_text, render_answer, render_prompt, write_messages

LABELS = ("negative", "positive")


@pytest.fixture
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_llama)


def test_render_prompt_without_template_is_plain_lines(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = write_messages("Gold rose.", LABELS, examples=[("Gold fell.", "negative")])
    assert render_prompt(tokenizer, messages) + render_answer(tokenizer, "positive") == (
        "Classify the text. Answer with one of: negative, positive.\n\nText: Gold fell.\nAnswer: negative\n\n"
        "Text: Gold rose.\nAnswer: positive"
    )


def test_render_prompt_uses_the_models_own_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    messages = write_messages("Gold rose.", LABELS, instruction="Rate ({options}).")
    assert (
        render_prompt(tokenizer, messages)
        == "<user>Rate (negative, positive).\n\nText: Gold rose.<assistant>"
    )
    assert render_answer(tokenizer, "positive") == "positive"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            "{{ ''.__class__.__mro__ }}",
            "SecurityError: access to attribute '__class__' of 'str' object is unsafe.",
        ),
        ("{% for m in messages %}", "TemplateSyntaxError: Unexpected end of template. "),
        ("{{ raise_exception('system first') }}", "TemplateError: system first"),
        ("{{ 1 // 0 }}", "ZeroDivisionError: integer "),
    ],
)
def test_render_prompt_tells_of_a_template_that_fails(
    tokenizer: PreTrainedTokenizerFast, template: str, told: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(BackboneError) as caught:
        render_prompt(tokenizer, write_messages("Gold rose.", LABELS))
    name = tokenizer.name_or_path
    assert str(caught.value).startswith(f"the chat template of '{name}' can't be rendered ({told}")
    assert str(caught.value).endswith("): mend it, or choose another model.")


def test_write_messages_instruction_without_options_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        write_messages("Gold rose.", LABELS, instruction="Rate it.")
    assert str(caught.value) == (
        "the instruction 'Rate it.' doesn't say what may be answered: put {options} where the labels go."
    )


def test_cut_text_keeps_the_first_tokens_as_they_were_written(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Gold  rose on Monday, and fell on Tuesday."
    assert cut_text(tokenizer, text, max_tokens=500) == text
    cut = cut_text(tokenizer, text, max_tokens=3)
    assert text.startswith(cut) and len(cut) < len(text)
    assert len(tokenizer(cut, add_special_tokens=False)["input_ids"]) == 3
