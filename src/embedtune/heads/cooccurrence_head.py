"""CooccurrenceHead: LLMEmbed's head as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from embedtune.errors import ConfigError, DataError
from embedtune.heads.base import Head
from embedtune.heads.blocks import Floats, Ints, Matrix
from embedtune.heads.cooccurrence import CooccurrenceNet
from embedtune.heads.crossfit import assign_folds
from embedtune.heads.grid import Cell, search
from embedtune.heads.together import Rows, train
from embedtune.heads.training import ClassWeight, TrainingRows, read_training_rows

_PREDICT_ROWS = 1024

#: What ``sigma="auto"`` chooses among.
SIGMA_GRID = (0.1, 0.2, 0.3, 0.4, 0.5)


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
    sigma : float, sequence of float or "auto"
        Of the power normalisation. Of several, or of `SIGMA_GRID` with "auto", the validation part chooses.
    hidden : pair of int
    epochs : int or sequence of int
        With a validation part, the most epochs, or those to choose from.
    batch_size : int
    learning_rate : float or sequence of float
        Adam's; of several the validation part chooses.
    dropout : float
        From 0, below 1.
    softmax_output : bool
        True trains as published: the network ends in a softmax, and cross-entropy, which has one of its own, reads
        the probabilities as logits. False (corrected) trains on the logits.
    concatenate_others : bool
        True shows the network the remaining blocks themselves too; published, False, it sees their inner products
        only.
    validation_fraction : float
        Share of the training rows, whole groups, on which epochs, learning rate and sigma are chosen by log loss;
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
    epochs_, learning_rate_, sigma_ : int, float, float
        What was given or chosen.
    cells_ : list of dict
        What every combination of the candidates scored on the validation part: `heads.grid.Cell` as dicts.
    loss_curve_ : list of float
        The mean training loss of each epoch.
    classes_ : ndarray of shape (K,)

    References
    ----------
    Liu et al., "LLMEmbed: Rethinking Lightweight LLM's Genuine Function in Text Classification", ACL 2024,
    arXiv:2406.03725.
    """

    classes_: NDArray[Any]

    n_threads = None  # a batch's products are large

    def __init__(
        self,
        widths: Sequence[int] | None = None,
        *,
        n_branch_blocks: int | Literal["auto"] = "auto",
        branch_width: int | Literal["auto"] = "auto",
        sigma: float | Sequence[float] | Literal["auto"] = 0.3,
        hidden: tuple[int, int] = (1024, 256),
        epochs: int | Sequence[int] = 50,
        batch_size: int = 256,
        learning_rate: float | Sequence[float] = 1e-3,
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

    def fit(
        self,
        X: Matrix,
        y: ArrayLike,
        groups: ArrayLike | None = None,
        *,
        validation: tuple[Matrix, ArrayLike] | None = None,
    ) -> Self:
        """Fit to `X` (n, n_features), dense or CSR, and labels `y` (n,).

        Parameters
        ----------
        groups : array-like, shape (n,), optional
            Rows of one group stay on one side of the validation split.
        validation : pair of matrix and labels, optional
            Rows to choose on instead of a part of the training rows.

        Raises
        ------
        ConfigError
            If a parameter is out of range, or the widths don't fit `X` or one another.
        DataError
            If there is one class only, one group and a validation part, or a label of `validation` is new.
        """
        rows = read_training_rows(self, X, y, groups=groups)
        candidates = _list_candidates(self, chooses=self.validation_fraction > 0 or validation is not None)
        self.classes_ = rows.classes
        self.shape_ = _resolve_shape(rows.widths, self.n_branch_blocks, self.branch_width)
        self.hidden_ = (int(self.hidden[0]), int(self.hidden[1]))
        every = self._load(rows.X, rows.y, rows.sample_weight)
        cells: list[Cell] = []
        if validation is not None:
            cells = self._search(every, self._read_validation(*validation), candidates)
        elif self.validation_fraction > 0:
            training, held_out = self._split_validation(rows)
            cells = self._search(every.take(training), every.take(held_out), candidates)
        self.cells_ = [cell._asdict() for cell in cells]
        chosen = min(cells, key=lambda cell: cell.log_loss) if cells else candidates.only()
        self.epochs_, self.learning_rate_, self.sigma_ = chosen[:3]
        trained = train(
            lambda: self._build_net(self.sigma_),
            every,
            epochs=self.epochs_,
            learning_rate=self.learning_rate_,
            batch_size=self.batch_size,
            seed=self.random_state,
        )
        self.loss_curve_ = trained.losses
        # arrays, so that saving the head needs no torch pickle
        self.weights_ = {name: value.cpu().numpy().copy() for name, value in trained.net.state_dict().items()}
        return self

    def _pin(self) -> Any:
        chosen = {
            "epochs": self.epochs_,
            "learning_rate": self.learning_rate_,
            "sigma": self.sigma_,
            "validation_fraction": 0,
        }
        return clone(self).set_params(**chosen)

    def _load(self, X: Matrix, y: Ints, weight: Floats) -> Rows:
        """Put rows on the device, their blocks told apart."""
        device = self._resolve_device()
        inputs = self._split(torch.as_tensor(_densify(X, np.float32), device=device))
        weight_there = torch.as_tensor(weight, dtype=torch.float32, device=device)
        return Rows(inputs, torch.as_tensor(y, device=device), weight_there)

    def _read_validation(self, X: Matrix, y: ArrayLike) -> Rows:
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float32, reset=False)
        labels = np.asarray(y)
        unknown = sorted(set(labels.tolist()) - set(self.classes_.tolist()))
        if unknown:
            raise DataError(f"validation has labels that the training rows lack ({unknown}): leave them out.")
        return self._load(X, np.searchsorted(self.classes_, labels), np.ones(len(labels)))

    def _split_validation(self, rows: TrainingRows) -> tuple[Tensor, Tensor]:
        folds = assign_folds(
            rows.y,
            groups=rows.groups,
            n_folds=round(1 / self.validation_fraction),
            random_state=self.random_state,
        )
        device = self._resolve_device()
        training, held_out = folds[0]
        return torch.as_tensor(training, device=device), torch.as_tensor(held_out, device=device)

    def _search(self, training: Rows, held_out: Rows, candidates: _Candidates) -> list[Cell]:
        return search(
            self._build_net,
            training,
            held_out,
            epochs=candidates.epochs,
            learning_rates=candidates.learning_rates,
            sigmas=candidates.sigmas,
            batch_size=self.batch_size,
            seed=self.random_state,
        )

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
        if not isinstance(self.sigma, int | float):
            raise ConfigError(
                f"sigma is {self.sigma!r}, and weights don't tell it: give the one they were trained with."
            )
        self.sigma_ = self.sigma
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


class _Candidates(NamedTuple):
    """The settings that are tried on the validation part."""

    epochs: tuple[int, ...]
    learning_rates: tuple[float, ...]
    sigmas: tuple[float, ...]

    def only(self) -> tuple[int, float, float]:
        """Return the settings where there is nothing to choose."""
        return self.epochs[-1], self.learning_rates[0], self.sigmas[0]


def _list_candidates(head: CooccurrenceHead, *, chooses: bool) -> _Candidates:
    """Check every parameter, and return the candidates among which the validation part chooses.

    Raises
    ------
    ConfigError
        With every parameter that is out of range.
    """
    sigma = SIGMA_GRID if isinstance(head.sigma, str) and head.sigma == "auto" else head.sigma
    tuples = {
        name: tuple(value) if isinstance(value, list | tuple) else (value,)
        for name, value in (("epochs", head.epochs), ("learning_rate", head.learning_rate), ("sigma", sigma))
    }
    problems = [
        f"{name} is {getattr(head, name)!r}, must be positive" + (" or 'auto'" if name == "sigma" else "")
        for name, values in tuples.items()
        if not values or not all(not isinstance(value, str) and value > 0 for value in values)
    ]
    if not head.batch_size > 0:
        problems.append(f"batch_size is {head.batch_size!r}, must be positive")
    if not 0 <= head.dropout < 1:
        problems.append(f"dropout is {head.dropout!r}, must be from 0 and below 1")
    if not 0 <= head.validation_fraction <= 0.5:
        problems.append(f"validation_fraction is {head.validation_fraction!r}, must be from 0 to 0.5")
    if len(head.hidden) != 2 or min(head.hidden) < 1:
        problems.append(f"hidden is {head.hidden!r}, must be two positive sizes")
    if not chooses:
        problems += [
            f"{name} is {getattr(head, name)!r}, a choice that needs a validation_fraction above 0"
            for name, values in tuples.items()
            if len(values) > 1
        ]
    if problems:
        raise ConfigError(f"CooccurrenceHead can't be trained: {'; '.join(problems)}.")
    epochs, rates, sigmas = tuples.values()
    if chooses and not isinstance(head.epochs, list | tuple):
        epochs = tuple(range(1, epochs[0] + 1))
    return _Candidates(epochs, rates, sigmas)


def _densify(X: Matrix, dtype: type) -> NDArray[Any]:
    return np.ascontiguousarray(X.toarray() if sparse.issparse(X) else X, dtype=dtype)
