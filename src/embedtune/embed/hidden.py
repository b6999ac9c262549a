"""Hidden states of chosen layers, pooled as soon as they exist, with nothing run above the highest.

Numbers mean what transformers' ``hidden_states`` means: 0 is the embedding layer, `k` what enters layer `k`
(0-based), and the last one is after the model's final norm where it has one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Found = TypeVar("Found")


class _Enough(Exception):
    """Raised inside a forward pass when every layer asked for has been read."""


def find_stack(
    model: nn.Module, n_layers: int, *, device: torch.device | str | None = None
) -> nn.ModuleList | None:
    """Return the list of layers whose inputs are the model's hidden states, or None if hooks can't read them.

    A candidate counts only if it gives what ``output_hidden_states=True`` gives on a short probe; models that
    share layers or do more between them have none. `device` is where inputs go, by default to the first parameter.
    """
    device = next(model.parameters()).device if device is None else torch.device(device)
    ids = torch.arange(2, 6, device=device).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        expected = model(**inputs, output_hidden_states=True).hidden_states
        if len(expected) != n_layers + 1:
            return None
        for stack in model.modules():
            if not isinstance(stack, nn.ModuleList) or len(stack) != n_layers:
                continue
            found = read_hidden(
                model, stack, inputs, layers=range(n_layers + 1), reduce=lambda _, hidden: hidden
            )
            if len(found) == n_layers + 1 and all(
                torch.allclose(
                    found[k].cpu().float(), expected[k].cpu().float(), rtol=1e-3, atol=1e-4, equal_nan=True
                )
                for k in found
            ):
                return stack
    return None


def read_hidden(
    model: nn.Module,
    stack: nn.ModuleList | None,
    inputs: dict[str, Tensor],
    *,
    layers: Sequence[int],
    reduce: Callable[[int, Tensor], Found],
) -> dict[int, Found]:
    """Run the model as far as needed and reduce the hidden states asked for.

    Parameters
    ----------
    model : nn.Module
        A transformers base model (no head).
    stack : nn.ModuleList or None
        What `find_stack` returned; None lets transformers collect all hidden states.
    inputs : dict of Tensor
        The model's arguments.
    layers : sequence of int
        Hidden-state numbers, 0 to the number of layers.
    reduce : callable
        Applied to each layer's number and (n_texts, n_tokens, width) tensor, which is then let go.

    Returns
    -------
    dict of int to whatever `reduce` returns
        One entry per distinct layer.
    """
    if stack is None:
        states = model(**inputs, output_hidden_states=True).hidden_states
        return {k: reduce(k, states[k]) for k in dict.fromkeys(layers)}
    found: dict[int, Found] = {}
    with _watch_inputs(stack, set(layers), found, reduce), contextlib.suppress(_Enough):
        output = model(**inputs)
        if len(stack) in layers:
            found[len(stack)] = reduce(len(stack), output.last_hidden_state)
    return found


@contextlib.contextmanager
def _watch_inputs(
    stack: nn.ModuleList, wanted: set[int], found: dict[int, Found], reduce: Callable[[int, Tensor], Found]
) -> Iterator[None]:
    highest = max(wanted)

    def watch(number: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[number] = reduce(number, args[0] if args else kwargs["hidden_states"])
            if number == highest:
                raise _Enough

        return before_layer

    hooks = [
        stack[number].register_forward_pre_hook(watch(number), with_kwargs=True)
        for number in sorted(wanted)
        if number < len(stack)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
