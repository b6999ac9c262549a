"""How likely a decoder finds each answer: what prompts share is read once, a text once for all answers.

Three forward passes take the place of one per text and answer: the tokens all prompts begin with, once for all
texts; the rest of a text's prompt, which also yields every answer's first token; and what follows that token, for
answers of several tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from embedtune.embed.batching import plan_batches
from embedtune.embed.tokens import pick_pad_id
from embedtune.errors import BackboneError, ResourceError
from embedtune.memory import explain_out_of_memory, is_out_of_memory
from embedtune.progress import track
from embedtune.prompt.decoder import Decoder
from embedtune.prompt.questions import Question, count_common

Answers = tuple[tuple[int, ...], ...]

#: Tokens of a batch with batch_tokens="auto", by kind of device; the shared ones count, as their cache is expanded.
BATCH_TOKENS = {"cpu": 4096, "cuda": 16384, "mps": 8192}


class _Shared(NamedTuple):
    """What all prompts begin with, read; `cache` None where this model's can't be expanded to several texts."""

    n_tokens: int
    cache: Any
    window: int | None


def score_answers(
    decoder: Decoder, questions: Sequence[Question], *, batch_tokens: int | str = "auto"
) -> NDArray[np.float64]:
    """Return the log-likelihood of each answer given its context, summed over the answer's tokens.

    Parameters
    ----------
    decoder : Decoder
    questions : sequence of Question
        All with as many answers.
    batch_tokens : int or "auto"
        Tokens per batch; how texts are batched changes results by rounding only.

    Returns
    -------
    ndarray of float64, shape (n_questions, n_answers)

    Raises
    ------
    ResourceError
        If not even one text with one answer fits into memory.
    BackboneError
        If the values overflow the precision.
    """
    budget = (
        BATCH_TOKENS.get(decoder.device.partition(":")[0], 8192)
        if batch_tokens == "auto"
        else int(batch_tokens)
    )
    contexts = [question.context for question in questions]
    scores = np.empty((len(questions), len(questions[0].answers) if questions else 0))
    if not questions:
        return scores
    with decoder.lock, torch.inference_mode(), track(f"Asking {decoder.model_id}", len(questions)) as bar:
        n_shared = min(count_common(contexts), min(map(len, contexts)) - 1)
        shared = _read_shared(decoder, contexts[0][:n_shared])
        for rows in _plan(questions, shared, budget):
            answers = questions[rows[0]].answers
            scores[rows] = _score_or_halve(decoder, shared, [contexts[row] for row in rows], answers)
            bar.advance(len(rows))
    if not np.isfinite(scores).all():
        raise BackboneError(
            f"'{decoder.model_id}' gives likelihoods that aren't finite in {decoder.precision}: "
            "set precision to float32, or check the checkpoint."
        )
    return scores


def rate_answers(
    scores: NDArray[np.float64], questions: Sequence[Question], *, normalisation: str = "sum"
) -> NDArray[np.float64]:
    """Make log-likelihoods comparable: an answer that begins another doesn't count the other's likelihood as its own.

    "positive" is at least as likely to follow as "positive outlook", of which it is the beginning; it is set against
    it as "positive" without "outlook" next: log(p(positive) − p(positive outlook)).

    Parameters
    ----------
    scores : ndarray of float64, shape (n_questions, n_answers)
        From `score_answers`.
    questions : sequence of Question
    normalisation : {"sum", "mean"}
        The likelihood of the whole answer, or its geometric mean per token, which doesn't favour short answers.

    Returns
    -------
    ndarray of float64, shape (n_questions, n_answers)
    """
    rated = scores.copy()
    for answers in {question.answers for question in questions}:
        rows = [i for i, question in enumerate(questions) if question.answers == answers]
        for k, answer in enumerate(answers):
            for longer in _list_next_longer(answer, answers):
                # a certain continuation would leave nothing, and log(0)
                gap = np.minimum(scores[rows, longer] - rated[rows, k], -1e-9)
                rated[rows, k] += np.log(-np.expm1(gap))
        if normalisation == "mean":
            rated[rows] /= [len(answer) for answer in answers]
    return rated


def _list_next_longer(answer: tuple[int, ...], answers: Answers) -> list[int]:
    """Return the answers that go on where `answer` ends, but not those that go on from one of these."""
    longer = [k for k, other in enumerate(answers) if len(other) > len(answer) and _begins(other, answer)]
    return [
        k
        for k in longer
        if not any(
            j != k and len(answers[j]) < len(answers[k]) and _begins(answers[k], answers[j]) for j in longer
        )
    ]


def _begins(whole: Sequence[int], part: Sequence[int]) -> bool:
    return whole[: len(part)] == part


def _plan(questions: Sequence[Question], shared: _Shared, budget: int) -> list[NDArray[np.intp]]:
    """Cut questions into batches that have their answers in common and, where padding would show, their length too."""
    lengths = np.array([len(question.context) for question in questions])
    deepest = max(len(answer) for question in questions for answer in question.answers)
    padded = shared.n_tokens > 0 and (shared.window is None or lengths.max() + deepest < shared.window)
    groups: dict[tuple[Answers, int], list[int]] = {}
    for i, question in enumerate(questions):
        same_length = 0 if padded or shared.cache is None else int(lengths[i])
        groups.setdefault((question.answers, same_length), []).append(i)
    batches = []
    for (answers, _), members in groups.items():
        n_copies = len(answers) if shared.cache is None else max(1, len(_list_stems(answers)))
        rows = np.array(members, dtype=np.intp)
        counts = (lengths[rows] + deepest) * n_copies
        batches += [rows[batch] for batch in plan_batches(counts, max_tokens=budget)]
    return batches


def _read_shared(decoder: Decoder, ids: list[int]) -> _Shared:
    """Read what all prompts begin with, and see what kind of cache comes of it."""
    nothing = _Shared(0, None, None)
    if decoder.cache_argument is None:
        return nothing
    # a model without anything shared to read is shown one token, for the kind of its cache alone
    inputs = torch.tensor([ids or [pick_pad_id(decoder.tokenizer)]], device=decoder.device)
    with explain_out_of_memory(
        f"the {len(ids)} tokens that all prompts begin with do not fit into the memory of {decoder.device}: "
        "give fewer examples, set precision to bfloat16, or device to cpu."
    ):
        output = _run(decoder, inputs, use_cache=True, n_logits=1)
    cache = getattr(output, decoder.cache_argument, None)
    # recurrent states, indexes and the like can't be repeated, or mind padding
    kinds = {type(layer) for layer in getattr(cache, "layers", ())}
    if type(cache) is not DynamicCache or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return nothing
    windows = [layer.sliding_window for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    # without positions of its own choosing, a model counts padding too
    window = 0 if not decoder.takes_positions else min(windows, default=None)
    return _Shared(len(ids), cache if ids else DynamicCache(config=decoder.model.config), window)


def _score_or_halve(
    decoder: Decoder, shared: _Shared, contexts: list[list[int]], answers: Answers
) -> NDArray[np.float64]:
    score = _score_whole if shared.cache is None else _score_batch
    try:
        return score(decoder, shared, contexts, answers)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # go on outside the handler, whose traceback would keep the activations alive
    if decoder.device.startswith("cuda"):
        torch.cuda.empty_cache()
    if len(contexts) > 1:
        middle = len(contexts) // 2
        halves = [
            _score_or_halve(decoder, shared, half, answers) for half in (contexts[:middle], contexts[middle:])
        ]
        return np.concatenate(halves)
    if len(answers) > 1:
        middle = len(answers) // 2
        halves = [
            _score_or_halve(decoder, shared, contexts, half) for half in (answers[:middle], answers[middle:])
        ]
        return np.concatenate(halves, axis=1)
    raise ResourceError(
        f"a prompt of {len(contexts[0])} tokens does not fit into the memory of {decoder.device}: "
        "set max_length or n_examples lower, precision to bfloat16, or device to cpu."
    )


def _score_batch(
    decoder: Decoder, shared: _Shared, contexts: list[list[int]], answers: Answers
) -> NDArray[np.float64]:
    """Score answers from the cache of what is shared; padding stands between it and each text."""
    n_rows, n_shared = len(contexts), shared.n_tokens
    own = [context[n_shared:] for context in contexts]
    width = max(map(len, own))
    ids = torch.full((n_rows, width), pick_pad_id(decoder.tokenizer))
    mask = torch.ones((n_rows, n_shared + width), dtype=torch.long)
    positions = torch.full((n_rows, width), n_shared)
    for row, tokens in enumerate(own):
        start = width - len(tokens)
        ids[row, start:] = torch.tensor(tokens)
        mask[row, n_shared : n_shared + start] = 0
        positions[row, start:] = torch.arange(n_shared, n_shared + len(tokens))
    cache = copy.deepcopy(shared.cache)
    cache.batch_repeat_interleave(n_rows)
    output = _run(decoder, ids, mask=mask, positions=positions, cache=cache, use_cache=True, n_logits=1)
    first = output.logits[:, -1].float().log_softmax(dim=-1)
    scores = first[:, [answer[0] for answer in answers]].cpu().double()
    stems = _list_stems(answers)
    if stems:
        del output, first
        cache.batch_repeat_interleave(len(stems))
        lengths = torch.tensor([len(context) for context in contexts])
        scores += _score_rest(decoder, cache, mask, lengths, answers, stems)
    result: NDArray[np.float64] = scores.numpy()
    return result


def _score_rest(
    decoder: Decoder,
    cache: Any,
    mask: torch.Tensor,
    lengths: torch.Tensor,
    answers: Answers,
    stems: list[tuple[int, ...]],
) -> torch.Tensor:
    """Return the log-likelihood of each answer's tokens behind its first, shape (n_rows, n_answers)."""
    n_rows, n_stems = len(lengths), len(stems)
    depth = max(map(len, stems))
    ids = torch.full((n_stems, depth), pick_pad_id(decoder.tokenizer))
    for place, stem in enumerate(stems):
        ids[place, : len(stem)] = torch.tensor(stem)
    positions = lengths.repeat_interleave(n_stems)[:, None] + torch.arange(depth)
    # the stems' own padding stands behind them, where no token looks
    whole_mask = torch.cat(
        [mask.repeat_interleave(n_stems, dim=0), torch.ones((n_rows * n_stems, depth), dtype=torch.long)], 1
    )
    output = _run(
        decoder, ids.repeat(n_rows, 1), mask=whole_mask, positions=positions, cache=cache, use_cache=True
    )
    logits = output.logits.float().unflatten(0, (n_rows, n_stems))
    totals = logits.logsumexp(dim=-1)
    places = [
        (k, next(i for i, stem in enumerate(stems) if _begins(stem, answer[:-1])), j, answer[j + 1])
        for k, answer in enumerate(answers)
        for j in range(len(answer) - 1)
    ]
    owners, rows, depths, tokens = (list(column) for column in zip(*places, strict=True))
    # Apple's GPUs know no float64
    found = (logits[:, rows, depths, tokens] - totals[:, rows, depths]).cpu().double()
    return torch.zeros((n_rows, len(answers)), dtype=torch.float64).index_add_(1, torch.tensor(owners), found)


def _list_stems(answers: Answers) -> list[tuple[int, ...]]:
    """Return what must be read to score the answers beyond their first tokens: beginnings that lead to all others."""
    stems = {answer[:-1] for answer in answers if len(answer) > 1}
    return sorted(one for one in stems if not any(one != other and _begins(other, one) for other in stems))


def _score_whole(
    decoder: Decoder, shared: _Shared, contexts: list[list[int]], answers: Answers
) -> NDArray[np.float64]:
    """Score answers by reading every prompt with every answer whole, for models whose cache can't be shared."""
    rows = [context + list(answer) for context in contexts for answer in answers]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pick_pad_id(decoder.tokenizer))
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for place, tokens in enumerate(rows):
        ids[place, : len(tokens)] = torch.tensor(tokens)
        mask[place, : len(tokens)] = 1
    n_logits = width - min(map(len, contexts)) + 1
    logits = _run(decoder, ids, mask=mask, n_logits=n_logits).logits[:, -n_logits:].float()
    scores = []
    for place, tokens in enumerate(rows):
        answer = answers[place % len(answers)]
        first = len(tokens) - len(answer) - 1 - (width - n_logits)
        steps = logits[place, first : first + len(answer)].log_softmax(dim=-1)
        scores.append(steps[range(len(answer)), list(answer)].cpu().double().sum())
    result: NDArray[np.float64] = torch.stack(scores).view(len(contexts), len(answers)).numpy()
    return result


def _run(
    decoder: Decoder,
    ids: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    cache: Any = None,
    use_cache: bool = False,
    n_logits: int = 0,
) -> Any:
    """Run the model; `n_logits` of the last tokens are wanted, 0 for all (some models give all anyway)."""
    device = torch.device(decoder.device)
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "use_cache": use_cache}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"]) if mask is None else mask.to(device)
    if positions is not None and decoder.takes_positions:
        inputs["position_ids"] = positions.to(device)
    if cache is not None and decoder.cache_argument is not None:
        inputs[decoder.cache_argument] = cache
    if n_logits and decoder.keeps_logits:
        inputs["logits_to_keep"] = n_logits
    return decoder.model(**inputs)
