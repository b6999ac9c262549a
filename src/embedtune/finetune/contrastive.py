"""Fine-tuning by contrast: rows of one label are drawn together, and what tells labels apart is learned after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedtune.heads.linear import LogisticHead

#: C of the head: on few rows there is nothing to choose it by.
_C = 10.0
#: Intercept of a label that no row has.
_ABSENT = -30.0


def contrast(pooled: Tensor, labels: Tensor) -> Tensor:
    """Return the squared distance of the pairs' cosines from 1 where labels are equal and from 0 where they aren't.

    Each of the two kinds of pairs counts one half, however many there are of it; a batch without any pair gives 0.

    Parameters
    ----------
    pooled : Tensor of float32, shape (n_texts, width)
    labels : Tensor of int64, shape (n_texts,)

    References
    ----------
    Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; Tunstall et al., "Efficient Few-Shot Learning Without Prompts",
    arXiv 2209.11055. They draw pairs of texts; here a step compares all pairs of its rows.
    """
    vectors = nn.functional.normalize(pooled, dim=1)
    cosines = vectors @ vectors.T
    equal = labels[:, None] == labels[None, :]
    pairs = torch.ones_like(equal).triu(diagonal=1)
    kinds = [((cosines - 1) ** 2)[equal & pairs], (cosines**2)[~equal & pairs]]
    return sum((kind.mean() / 2 for kind in kinds if len(kind)), start=0.0 * cosines.sum())


def write_label_texts(
    label_names: Sequence[str], templates: Sequence[str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Return texts made of the labels' names, and the position of the label that each is of.

    A name without a letter, such as ``1``, says nothing and makes none.

    Parameters
    ----------
    templates : sequence of str
        Each holds ``{label}``, which becomes the name.

    References
    ----------
    Tunstall et al., arXiv 2209.11055, make such texts where there are no rows; here they stand beside the rows.
    """
    speaking = [(name, number) for number, name in enumerate(label_names) if any(map(str.isalpha, name))]
    texts = [template.replace("{label}", name) for name, _ in speaking for template in templates]
    return texts, np.repeat([number for _, number in speaking], len(templates)).astype(np.int64)


def fit_head(
    pooled: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    n_labels: int,
    class_weight: Literal["balanced"] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight (n_labels, width) and bias (n_labels,) of a logistic regression on pooled vectors (n, width).

    A label that isn't in `y` gets next to no probability.
    """
    head = LogisticHead(C=_C, class_weight=class_weight).fit(pooled, y)
    weight = np.zeros((n_labels, pooled.shape[1]), dtype=np.float32)
    bias = np.full(n_labels, _ABSENT, dtype=np.float32)
    weight[head.classes_], bias[head.classes_] = head.coef_, head.intercept_
    return weight, bias
