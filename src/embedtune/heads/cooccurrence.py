"""CooccurrenceNet: LLMEmbed's network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn


class Shared(NamedTuple):
    """What networks of one seed have in common on a batch.

    Attributes
    ----------
    given : Tensor, shape (batch, n_given)
        What the first layer after the products reads beside them.
    masks : list of Tensor
        Of dropout, scaled: (batch, branch_width) per branch, then one per hidden layer. Empty outside training.
    """

    given: Tensor
    masks: list[Tensor]


class CooccurrenceNet(nn.Module):
    """The network; its state dict has the published names.

    Parameters
    ----------
    n_layers, layer_width : int
        Layers of one backbone and their columns; each has a branch Linear, ReLU, Dropout.
    n_others : int
        Vectors of other views.
    n_classes : int
    sigma : float
        Of the power normalisation.
    branch_width : int
        What a branch puts out, and the columns of each other vector.
    hidden : pair of int
    dropout : float
    softmax_output : bool
        Put out probabilities, as published, instead of logits.
    concatenate_others : bool
        Read the other vectors themselves too, not only their inner products.

    References
    ----------
    Liu et al., ACL 2024, arXiv:2406.03725.
    """

    def __init__(
        self,
        n_layers: int,
        layer_width: int,
        n_others: int,
        n_classes: int,
        *,
        sigma: float,
        branch_width: int,
        hidden: tuple[int, int] = (1024, 256),
        dropout: float = 0.5,
        softmax_output: bool = False,
        concatenate_others: bool = False,
    ) -> None:
        super().__init__()
        self.sigma = sigma
        self.softmax_output = softmax_output
        self.concatenate_others = concatenate_others
        self.branch_width = branch_width
        self.dropout = dropout
        self.compress_layers = nn.ModuleList(
            nn.Sequential(nn.Linear(layer_width, branch_width)) for _ in range(n_layers)
        )
        n_joined = (n_layers + n_others) ** 2 + layer_width
        n_joined += n_others * branch_width if concatenate_others else 0
        self.fc1 = nn.Linear(n_joined, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], n_classes)

    def share(self, layers: Tensor, others: Tensor, *, drops: bool) -> Shared:
        """Compute what networks of one shape can use together, and with `drops` draw their dropout masks.

        Parameters
        ----------
        layers : Tensor, shape (batch, n_layers, layer_width)
        others : Tensor, shape (batch, n_others, branch_width)
        """
        given = layers.mean(dim=1)
        if self.concatenate_others:
            given = torch.cat([given, others.flatten(1)], dim=1)
        widths = [self.branch_width] * len(self.compress_layers) + [
            self.fc1.out_features,
            self.fc2.out_features,
        ]
        kept = 1 - self.dropout
        if not drops or self.dropout == 0:
            return Shared(given, [])
        return Shared(given, [given.new_empty(len(given), n).bernoulli_(kept).div_(kept) for n in widths])

    def forward(self, layers: Tensor, others: Tensor, shared: Shared | None = None) -> Tensor:
        """Return logits, or probabilities with `softmax_output`, (batch, n_classes).

        Parameters
        ----------
        layers, others : Tensor
            As in `share`.
        shared : Shared, optional
            What `share` returned for them; by default it is called, and drops in training mode.
        """
        given, masks = self.share(layers, others, drops=self.training) if shared is None else shared
        mask = iter(masks)
        rows = [
            _drop(torch.relu(branch(layers[:, i])), mask) for i, branch in enumerate(self.compress_layers)
        ]
        stacked = torch.cat([torch.stack(rows, dim=1), others], dim=1)
        products = stacked @ stacked.transpose(1, 2)
        normalised = 2 * torch.sigmoid(self.sigma * products) - 1
        # fc1 in two parts: joined with the products, the given columns would get a gradient that nothing needs.
        n_given = given.shape[1]
        of_products, of_given = self.fc1.weight[:, :-n_given], self.fc1.weight[:, -n_given:]
        joined = nn.functional.linear(normalised.flatten(1), of_products, self.fc1.bias)
        x = _drop(torch.relu(joined + nn.functional.linear(given, of_given)), mask)
        x = _drop(torch.relu(self.fc2(x)), mask)
        scores = cast(Tensor, self.fc3(x))
        return scores.softmax(dim=1) if self.softmax_output else scores

    def read_logits(self, output: Tensor) -> Tensor:
        """Return what `forward` put out as logits."""
        return output.clamp_min(1e-12).log() if self.softmax_output else output


def _drop(x: Tensor, masks: Iterator[Tensor]) -> Tensor:
    """Multiply by the next mask; outside training there is none."""
    mask = next(masks, None)
    return x if mask is None else x * mask
