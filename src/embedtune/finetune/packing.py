"""Training a decoder on answers without padding: a step's questions end to end, attention inside each.

Where a padded step multiplies padding, and the language-model head at every position, a packed one has none of the
first and asks the head where an answer's token is predicted, nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedtune.embed.packed_attention import ARGUMENT, Lengths, attends_fully, use_packed_attention
from embedtune.finetune.instruction import Question


def pack_questions(questions: Sequence[Question]) -> dict[str, Any]:
    """Lay a step's questions end to end.

    Returns
    -------
    dict
        ``input_ids`` and ``position_ids`` (1, n_tokens), counted anew in each question; ``places`` (n_answer_tokens,),
        the positions from which an answer's token is predicted; ``labels`` (n_answer_tokens,), those tokens; the
        questions' lengths.
    """
    counts = [len(question.ids) for question in questions]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    answers = [
        np.arange(start + question.n_prompt, start + count)
        for question, start, count in zip(questions, starts, counts, strict=True)
    ]
    ids = np.concatenate([question.ids for question in questions])
    targets = np.concatenate(answers)
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(count) for count in counts]))[None],
        "places": torch.from_numpy(targets - 1),
        "labels": torch.from_numpy(ids[targets]),
        ARGUMENT: Lengths.of(counts, torch.device("cpu")),
    }


def compute_packed_loss(model: Any, batch: dict[str, Any], *, n_answer_tokens: Tensor | int | None) -> Tensor:
    """Return the cross-entropy of the answers' tokens, summed and divided by their number in the whole step.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        Under `use_packed_attention`.
    batch : dict
        As `pack_questions` makes it, on the model's device.
    n_answer_tokens : Tensor or int, optional
        By default those of `batch`.
    """
    total = torch.nn.functional.cross_entropy(
        _predict_packed(model, batch).float(), batch["labels"], reduction="sum"
    )
    return total / (len(batch["labels"]) if n_answer_tokens is None else n_answer_tokens)


def can_train_packed(model: Any) -> bool:
    """Tell whether a decoder reads packed questions as single ones: by its kinds of attention, and on a probe."""
    decoder = get_decoder(model)
    config = decoder.config.get_text_config(decoder=True)
    keeps_some = "logits_to_keep" in inspect.signature(decoder.forward).parameters
    if not attends_fully(config) or not keeps_some or getattr(config, "attention_dropout", 0.0) > 0:
        return False  # ours has no dropout inside attention
    weight = next(decoder.parameters())
    questions = [Question([5, 6, 7, 8, 9], 2), Question([7, 9, 8], 1)]
    batch = {name: value.to(weight.device) for name, value in pack_questions(questions).items()}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = torch.cat([_predict(model, question, weight.device) for question in questions])
            with use_packed_attention(decoder):
                together = _predict_packed(model, batch).float()
    except (TypeError, ValueError, LookupError, NotImplementedError):
        return False  # attention that isn't transformers' interface, or arguments that aren't passed on to it
    finally:
        model.train(training)
    # Quantized weights are whole numbers, and what stands between them may be in float32 all the same.
    near = 1e-3 if all(part.dtype == torch.float32 for part in decoder.parameters()) else 0.1
    return torch.allclose(together, alone, rtol=near, atol=near * float(alone.abs().max()))


def get_decoder(model: Any) -> Any:
    """Return the transformers model that a peft model wraps, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _predict_packed(model: Any, batch: dict[str, Any]) -> Tensor:
    logits: Tensor = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        logits_to_keep=batch["places"],
        use_cache=False,
        **{ARGUMENT: batch[ARGUMENT]},
    ).logits[0]
    return logits


def _predict(model: Any, question: Question, device: torch.device) -> Tensor:
    ids = torch.tensor([question.ids], device=device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, question.n_prompt - 1 : -1]
    return logits.float()
