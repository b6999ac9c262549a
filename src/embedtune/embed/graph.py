"""A backbone with its pooling as one module of tensors, for libraries that convert modules to graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedtune.embed.pooling import OWN_TOKENS, pool
from embedtune.embed.runner import Column


class PooledReading(nn.Module):
    """Token ids and masks in, pooled columns out.

    Parameters
    ----------
    model : nn.Module
    columns : sequence of (int, str)
        Layer and pooling of each output.
    """

    def __init__(self, model: nn.Module, columns: Sequence[Column]) -> None:
        super().__init__()
        self.model, self.columns = model, columns

    def forward(self, ids: Tensor, mask: Tensor, counted: Tensor) -> tuple[Tensor, ...]:
        """Return one (n_texts, width) per column; parameters as `embed.tokens.pad_tokens` makes them."""
        states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        read = mask.bool()
        return tuple(
            pool(states[layer], counted if pooling in OWN_TOKENS else read, pooling)
            for layer, pooling in self.columns
        )


def make_example() -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs to trace with: two rows, one of them padded, else a graph would have no mask."""
    ids = torch.tensor([[2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    return ids, mask, mask.bool()
