"""Co-occurrence heads cell by cell, as published: a DataLoader over single rows, plain Adam, one joined first layer."""

import itertools

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Branches, inner products to a power by sigmoid, the layers' mean and the other vectors, three linear layers."""

    def __init__(self, n_layers, layer_width, n_others, branch_width, n_classes, sigma):
        super().__init__()
        self.sigma = sigma
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(layer_width, branch_width), nn.ReLU(), nn.Dropout(0.5))
            for _ in range(n_layers)
        )
        n_joined = (n_layers + n_others) ** 2 + layer_width + n_others * branch_width
        self.fc1, self.fc2, self.fc3 = (
            nn.Linear(n_joined, 1024),
            nn.Linear(1024, 256),
            nn.Linear(256, n_classes),
        )
        self.dropout = nn.Dropout(0.5)

    def forward(self, layers, others):
        rows = torch.stack([branch(layers[:, i]) for i, branch in enumerate(self.branches)], dim=1)
        stacked = torch.cat([rows, others], dim=1)
        powered = 2 * torch.sigmoid(self.sigma * stacked @ stacked.transpose(1, 2)) - 1
        x = torch.cat([powered.flatten(1), layers.mean(dim=1), others.flatten(1)], dim=1)
        x = self.dropout(torch.relu(self.fc1(x)))
        return self.fc3(self.dropout(torch.relu(self.fc2(x))))


def prepare(job):
    """Return the training of every cell of the first ``job["pairs"]`` pairs of rate and sigma."""
    data = np.load(job["views"])
    training, held_out = (
        TensorDataset(*(torch.from_numpy(data[f"{name}_{part}"]) for name in ("layers", "others", "y")))
        for part in ("training", "held_out")
    )
    layers, others, _ = training.tensors

    def train(epochs, learning_rate, sigma):
        torch.manual_seed(0)
        net = Net(layers.shape[1], layers.shape[2], others.shape[1], others.shape[2], job["n_classes"], sigma)
        optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
        loader = DataLoader(training, batch_size=job["batch_size"], shuffle=True)
        for _ in range(epochs):
            net.train()
            for part, more, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(part, more), y).backward()
                optimizer.step()
        net.eval()
        right = 0
        with torch.no_grad():
            for part, more, y in DataLoader(held_out, batch_size=job["batch_size"]):
                right += int((net(part, more).argmax(dim=1) == y).sum())
        return right / len(held_out)

    def run():
        pairs = list(itertools.product(job["learning_rates"], job["sigmas"]))[: job["pairs"]]
        return {"accuracy": [train(epochs, *pair) for pair in pairs for epochs in job["epochs"]]}

    train(1, 1e-3, 0.3)
    return run
