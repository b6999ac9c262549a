"""CooccurrenceHead: LLMEmbed's head as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from embedtune.errors import ConfigError
from embedtune.heads.base import Head
from embedtune.heads.blocks import Floats, Matrix
from embedtune.heads.crossfit import assign_folds
from embedtune.heads.training import ClassWeight, TrainingRows, read_training_rows
from embedtune.progress import track

_PREDICT_ROWS = 1024

#: What ``sigma="auto"`` chooses among.
SIGMA_GRID = (0.1, 0.2, 0.3, 0.4, 0.5)


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
        parts = [normalised.flatten(1), layers.mean(dim=1)]
        if self.concatenate_others:
            parts.append(others.flatten(1))
        x = self.dropout(torch.relu(self.fc1(torch.cat(parts, dim=1))))
        x = self.dropout(torch.relu(self.fc2(x)))
        scores = cast(Tensor, self.fc3(x))
        return scores.softmax(dim=1) if self.softmax_output else scores


class CooccurrenceHead(Head):
    """Branches per layer, their co-occurrence with the other views, and a small network on top.

    The first blocks (one backbone's layers) each pass a branch; the branches' outputs and the remaining
    blocks are the rows of a matrix whose inner products, power-normalised as 2 · sigmoid(sigma · G) − 1,
    join the mean of the first blocks. Columns are read as given, not standardised; sparse input is densified.

    Parameters
    ----------
    widths : sequence of int, optional
        Columns of each block, in order; one block by default.
    n_branch_blocks : int or "auto"
        How many leading blocks pass a branch. "auto": all leading blocks of equal width.
    branch_width : int or "auto"
        What a branch puts out; the remaining blocks must have it. "auto": their width, or a quarter of a
        leading block's, at least 4, where none remains.
    sigma : float or "auto"
        Of the power normalisation. "auto" takes the one of `SIGMA_GRID` that does best on the validation part.
    hidden : pair of int
    epochs, batch_size : int
        With a validation part, at most so many epochs.
    learning_rate : float
        Adam's.
    dropout : float
        From 0, below 1.
    softmax_output : bool
        True trains as published: the network ends in a softmax, and cross-entropy, which has one of its own, reads
        the probabilities as logits. False (corrected) trains on the logits.
    concatenate_others : bool
        True shows the network the remaining blocks themselves too; published, False, it sees their inner products
        only.
    validation_fraction : float
        Share of the training rows, whole groups, on which the number of epochs and sigma are chosen by log loss;
        the head is then trained anew on all rows. 0: nothing is chosen, as published.
    class_weight : "balanced", dict or None
    random_state : int
        Seeds weights, order, dropout and the validation part, and leaves torch's global state alone.
    device : str
        "auto" takes CUDA where there is one.

    Attributes
    ----------
    weights_ : dict of str to ndarray, float32
        The network's state dict.
    sigma_, epochs_ : float, int
        What was given or chosen.
    loss_curve_ : list of float
        The mean training loss of each epoch.
    classes_ : ndarray of shape (K,)

    References
    ----------
    Liu et al., "LLMEmbed: Rethinking Lightweight LLM's Genuine Function in Text Classification", ACL 2024,
    arXiv:2406.03725.
    """

    classes_: NDArray[Any]

    def __init__(
        self,
        widths: Sequence[int] | None = None,
        *,
        n_branch_blocks: int | Literal["auto"] = "auto",
        branch_width: int | Literal["auto"] = "auto",
        sigma: float | Literal["auto"] = 0.3,
        hidden: tuple[int, int] = (1024, 256),
        epochs: int = 50,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        dropout: float = 0.5,
        softmax_output: bool = False,
        concatenate_others: bool = False,
        validation_fraction: float = 0.0,
        class_weight: ClassWeight = None,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.widths = widths
        self.n_branch_blocks = n_branch_blocks
        self.branch_width = branch_width
        self.sigma = sigma
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.dropout = dropout
        self.softmax_output = softmax_output
        self.concatenate_others = concatenate_others
        self.validation_fraction = validation_fraction
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device

    def fit(self, X: Matrix, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit to `X` (n, n_features), dense or CSR, and labels `y` (n,).

        Rows of one group stay on one side of the validation split.

        Raises
        ------
        ConfigError
            If a parameter is out of range, or the widths don't fit `X` or one another.
        DataError
            If there is one class only, or one group and a validation part.
        """
        rows = read_training_rows(self, X, y, groups=groups)
        _check_training(self)
        self.classes_ = rows.classes
        self.shape_ = _resolve_shape(rows.widths, self.n_branch_blocks, self.branch_width)
        self.hidden_ = (int(self.hidden[0]), int(self.hidden[1]))
        device = self._resolve_device()
        tensors = (
            torch.as_tensor(_densify(rows.X, np.float32), device=device),
            torch.as_tensor(rows.y, device=device),
            torch.as_tensor(rows.sample_weight, dtype=torch.float32, device=device),
        )
        self.sigma_, self.epochs_ = (0.0 if self.sigma == "auto" else self.sigma), self.epochs
        if self.validation_fraction > 0:
            train, held_out = self._split_validation(rows)
            self._choose([tensor[train] for tensor in tensors], [tensor[held_out] for tensor in tensors])
        net, self.loss_curve_, _ = self._train(tensors, epochs=self.epochs_, sigma=self.sigma_)
        # arrays, so that saving the head needs no torch pickle
        self.weights_ = {name: value.cpu().numpy().copy() for name, value in net.state_dict().items()}
        return self

    def _split_validation(self, rows: TrainingRows) -> tuple[Tensor, Tensor]:
        folds = assign_folds(
            rows.y,
            groups=rows.groups,
            n_folds=round(1 / self.validation_fraction),
            random_state=self.random_state,
        )
        train, held_out = folds[0]
        return torch.from_numpy(train), torch.from_numpy(held_out)

    def _choose(self, training: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Set `sigma_` and `epochs_` to what scores the lowest log loss on the held-out rows."""
        sigmas = SIGMA_GRID if self.sigma == "auto" else (self.sigma,)
        lowest = float("inf")
        for sigma in sigmas:
            _, _, losses = self._train(training, epochs=self.epochs, sigma=sigma, held_out=held_out)
            if min(losses) < lowest:
                lowest = min(losses)
                self.sigma_, self.epochs_ = sigma, losses.index(lowest) + 1

    def _train(
        self, rows: Sequence[Tensor], *, epochs: int, sigma: float, held_out: Sequence[Tensor] | None = None
    ) -> tuple[CooccurrenceNet, list[float], list[float]]:
        """Train a net on rows (X, y, weights); return it and each epoch's training and held-out loss."""
        X, y, sample_weight = rows
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.random_state)
            net = self._build_net(sigma).to(X.device)
            optimizer = torch.optim.Adam(net.parameters(), lr=self.learning_rate)
            order = torch.Generator().manual_seed(self.random_state)
            losses, held_out_losses = [], []
            with track("train head", epochs, unit="epochs") as bar:
                for _ in range(epochs):
                    net.train()
                    shuffled = torch.randperm(len(X), generator=order).to(X.device)
                    total = torch.zeros((), device=X.device)
                    for batch in torch.split(shuffled, self.batch_size):
                        optimizer.zero_grad()
                        loss = compute_loss(net(*self._split(X[batch])), y[batch], sample_weight[batch])
                        torch.autograd.backward(loss)
                        optimizer.step()
                        total += loss.detach() * len(batch)
                    losses.append(float(total) / len(X))
                    if held_out is not None:
                        held_out_losses.append(self._measure(net, *held_out))
                    bar.advance()
        return net, losses, held_out_losses

    @torch.inference_mode()
    def _measure(self, net: CooccurrenceNet, X: Tensor, y: Tensor, sample_weight: Tensor) -> float:
        """Return the log loss of what `predict_proba` would say."""
        net.eval()
        scores = net(*self._split(X))
        logits = scores.clamp_min(1e-12).log() if self.softmax_output else scores
        return float(compute_loss(logits, y, sample_weight))

    def load_published(
        self, state_dict: Mapping[str, Tensor | ArrayLike], *, classes: Sequence[Any] | None = None
    ) -> Self:
        """Take trained weights under the published names; all sizes are read from them.

        Parameters
        ----------
        state_dict : mapping of str to tensor or array
        classes : sequence of K labels, sorted, optional
            0 to K − 1 by default.

        Raises
        ------
        ConfigError
            If names or shapes aren't this head's.
        """
        if self.sigma == "auto":
            raise ConfigError(
                "sigma is 'auto', and weights don't tell it: give the one they were trained with."
            )
        self.sigma_, self.epochs_ = self.sigma, self.epochs
        weights = {name: np.asarray(value, dtype=np.float32) for name, value in state_dict.items()}
        try:
            branch_width, width = weights["compress_layers.0.0.weight"].shape
            first, second, third = (weights[f"fc{i}.weight"].shape for i in (1, 2, 3))
        except KeyError as error:
            raise ConfigError(
                f"the state dict has no {error}: a co-occurrence head has compress_layers.i.0, fc1, fc2, fc3."
            ) from None
        n_branches = sum(name.startswith("compress_layers.") and name.endswith("weight") for name in weights)
        n_extra = self._count_others(first[1] - width, n_branches, branch_width)
        self.shape_ = (n_branches, width, n_extra, branch_width)
        self.hidden_ = (first[0], second[0])
        self.classes_ = np.arange(third[0]) if classes is None else np.asarray(classes)
        if len(self.classes_) != third[0] or not np.array_equal(np.unique(self.classes_), self.classes_):
            raise ConfigError(
                f"classes {self.classes_.tolist()} must be {third[0]} different labels, sorted."
            )
        self.n_features_in_ = n_branches * width + n_extra * branch_width
        with torch.device("meta"):  # shapes only
            shapes = {
                name: tuple(value.shape) for name, value in self._build_net(self.sigma_).state_dict().items()
            }
        given = {name: value.shape for name, value in weights.items()}
        problems = [
            f"{name} has shape {given.get(name)}, must be {shapes.get(name)}"
            for name in sorted(shapes | given)
            if given.get(name) != shapes.get(name)
        ]
        if problems:
            raise ConfigError(f"the state dict doesn't fit a co-occurrence head: {'; '.join(problems)}.")
        self.weights_ = {name: value.copy() for name, value in weights.items()}
        return self

    def _count_others(self, n_joined: int, n_branches: int, branch_width: int) -> int:
        """Return how many further blocks give fc1 `n_joined` columns beside the layers' mean, as near as may be."""

        def miss(n_others: int) -> int:
            n_columns = (n_branches + n_others) ** 2
            return abs(n_columns + self.concatenate_others * n_others * branch_width - n_joined)

        return min(range(max(n_joined, 0) + 1), key=miss)

    def _build_net(self, sigma: float) -> CooccurrenceNet:
        n_branches, width, n_extra, branch_width = self.shape_
        return CooccurrenceNet(
            n_branches,
            width,
            n_extra,
            len(self.classes_),
            sigma=sigma,
            branch_width=branch_width,
            hidden=self.hidden_,
            dropout=self.dropout,
            softmax_output=self.softmax_output,
            concatenate_others=self.concatenate_others,
        )

    def _split(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return the leading blocks (n, n_layers, layer_width) and the others (n, n_others, branch_width)."""
        n_branches, width, n_extra, branch_width = self.shape_
        leading, others = X[:, : n_branches * width], X[:, n_branches * width :]
        return leading.reshape(-1, n_branches, width), others.reshape(len(X), n_extra, branch_width)

    def build_module(self) -> CooccurrenceNet:
        """Return the fitted network as a torch module in eval mode, on the CPU."""
        check_is_fitted(self)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            net = self._build_net(self.sigma_)
        net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in self.weights_.items()})
        return net.eval()

    def _resolve_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def predict_proba(self, X: Matrix) -> Floats:
        """Return probabilities (n, K), float64, columns in the order of `classes_`."""
        X = self._read(X)
        device = self._resolve_device()
        # float64, so a row's result doesn't depend on the rows beside it
        net = self.build_module().to(device, torch.float64)
        parts = []
        with torch.inference_mode():
            for i in range(0, X.shape[0], _PREDICT_ROWS):
                batch = torch.as_tensor(_densify(X[i : i + _PREDICT_ROWS], np.float64), device=device)
                found = net(*self._split(batch))
                parts.append((found if self.softmax_output else found.softmax(dim=1)).cpu().numpy())
        return np.concatenate(parts)


def compute_loss(scores: Tensor, y: Tensor, sample_weight: Tensor) -> Tensor:
    """Return the weighted mean cross-entropy of scores (n, K) read as logits."""
    per_row = nn.functional.cross_entropy(scores, y, reduction="none")
    return (per_row * sample_weight).sum() / sample_weight.sum().clamp_min(1e-12)


def _resolve_shape(
    widths: tuple[int, ...], n_branch_blocks: int | Literal["auto"], branch_width: int | Literal["auto"]
) -> tuple[int, int, int, int]:
    """Return (branches, columns of each, further blocks, columns of each)."""
    n_equal = next((i for i, width in enumerate(widths) if width != widths[0]), len(widths))
    n_branches = n_equal if n_branch_blocks == "auto" else n_branch_blocks
    if not 1 <= n_branches <= n_equal:
        raise ConfigError(
            f"n_branch_blocks is {n_branch_blocks!r}: widths {list(widths)} start with {n_equal} blocks of "
            f"equal width, so give 1 to {n_equal}, or 'auto'."
        )
    extra = widths[n_branches:]
    automatic = extra[0] if extra else max(4, widths[0] // 4)
    out_width = automatic if branch_width == "auto" else branch_width
    if out_width < 1 or any(width != out_width for width in extra):
        raise ConfigError(
            f"blocks {list(extra)} follow the {n_branches} that pass a branch, and the branches put out "
            f"{out_width}: all must be equal. Leave those views out, or use the head 'stack'."
        )
    return n_branches, widths[0], len(extra), out_width


def _check_training(head: CooccurrenceHead) -> None:
    """Raise ConfigError with every parameter that is out of range."""
    positive = {"epochs": head.epochs, "batch_size": head.batch_size, "learning_rate": head.learning_rate}
    problems = [f"{name} is {value!r}, must be positive" for name, value in positive.items() if not value > 0]
    if not 0 <= head.dropout < 1:
        problems.append(f"dropout is {head.dropout!r}, must be from 0 and below 1")
    if not 0 <= head.validation_fraction <= 0.5:
        problems.append(f"validation_fraction is {head.validation_fraction!r}, must be from 0 to 0.5")
    if head.sigma == "auto" and head.validation_fraction == 0:
        problems.append("sigma is 'auto', which needs a validation_fraction above 0")
    elif head.sigma != "auto" and not head.sigma > 0:
        problems.append(f"sigma is {head.sigma!r}, must be positive or 'auto'")
    if len(head.hidden) != 2 or min(head.hidden) < 1:
        problems.append(f"hidden is {head.hidden!r}, must be two positive sizes")
    if problems:
        raise ConfigError(f"CooccurrenceHead can't be trained: {'; '.join(problems)}.")


def _densify(X: Matrix, dtype: type) -> NDArray[Any]:
    return np.ascontiguousarray(X.toarray() if sparse.issparse(X) else X, dtype=dtype)
