"""CooccurrenceNet: LLMEmbed's network."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


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
        self.compress_layers = nn.ModuleList(
            nn.Sequential(nn.Linear(layer_width, branch_width), nn.ReLU(), nn.Dropout(dropout))
            for _ in range(n_layers)
        )
        n_joined = (n_layers + n_others) ** 2 + layer_width
        n_joined += n_others * branch_width if concatenate_others else 0
        self.fc1 = nn.Linear(n_joined, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], n_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, layers: Tensor, others: Tensor) -> Tensor:
        """Return logits, or probabilities with `softmax_output`, (batch, n_classes).

        Parameters
        ----------
        layers : Tensor, shape (batch, n_layers, layer_width)
        others : Tensor, shape (batch, n_others, branch_width)
        """
        rows = [branch(layers[:, i]) for i, branch in enumerate(self.compress_layers)]
        stacked = torch.cat([torch.stack(rows, dim=1), others], dim=1)
        products = stacked @ stacked.transpose(1, 2)
        normalised = 2 * torch.sigmoid(self.sigma * products) - 1
        given = layers.mean(dim=1)
        if self.concatenate_others:
            given = torch.cat([given, others.flatten(1)], dim=1)
        # fc1 in two parts: joined with the products, the given columns would get a gradient that nothing needs.
        n_given = given.shape[1]
        of_products, of_given = self.fc1.weight[:, :-n_given], self.fc1.weight[:, -n_given:]
        joined = nn.functional.linear(normalised.flatten(1), of_products, self.fc1.bias)
        x = self.dropout(torch.relu(joined + nn.functional.linear(given, of_given)))
        x = self.dropout(torch.relu(self.fc2(x)))
        scores = cast(Tensor, self.fc3(x))
        return scores.softmax(dim=1) if self.softmax_output else scores

    def read_logits(self, output: Tensor) -> Tensor:
        """Return what `forward` put out as logits."""
        return output.clamp_min(1e-12).log() if self.softmax_output else output
