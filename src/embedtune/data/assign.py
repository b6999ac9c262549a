"""Give whole clusters of rows to parts so that every part has its share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from embedtune.data.duplicates import renumber

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def assign_clusters(labels: IntArray, clusters: IntArray, *, shares: Sequence[float], seed: int) -> IntArray:
    """Choose a part for every row: clusters stay whole, classes are spread evenly.

    Clusters of equal class counts are interchangeable, so they are dealt out by share, the largest first;
    what doesn't divide goes where it is missed most, and single rows come last and fill each part's
    quota of their class. Parts that still lack a class get its smallest cluster from a part that has two.

    Parameters
    ----------
    labels : ndarray of shape (n,), int64
        Class numbers from 0.
    clusters : ndarray of shape (n,), int64
        Cluster numbers from 0, none left out.
    shares : sequence of float
        Each part's share of the rows; they sum to 1.
    seed : int
        Decides which of the interchangeable clusters go where.

    Returns
    -------
    ndarray of shape (n,), int64
        Part numbers.
    """
    n_clusters, n_classes = int(clusters.max()) + 1, int(labels.max()) + 1
    counts = np.zeros((n_clusters, n_classes), dtype=np.int64)
    np.add.at(counts, (clusters, labels), 1)
    share = np.asarray(shares, dtype=np.float64)
    targets = np.outer(share, counts.sum(axis=0))
    held = np.zeros_like(targets)
    part = np.full(n_clusters, -1, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(n_clusters)
    sizes = counts.sum(axis=1)

    large = order[sizes[order] > 1]
    for cluster in _deal_by_share(large, counts, share, part, held):
        part[cluster] = _pick_neediest(counts[cluster], targets, held)
        held[part[cluster]] += counts[cluster]
    single = order[sizes[order] == 1]
    for c in range(n_classes):
        members = single[counts[single, c] == 1]
        quota = _round_to_sum(np.maximum(targets[:, c] - held[:, c], 0), len(members), share)
        part[members] = np.repeat(np.arange(len(share)), quota)
        held[:, c] += quota
    _fill_gaps(counts, part, held)
    return part[clusters]


def _deal_by_share(
    large: IntArray, counts: IntArray, share: FloatArray, part: IntArray, held: FloatArray
) -> IntArray:
    """Deal out what divides by share of every kind of cluster; return the rest, the largest clusters first."""
    if not len(large):
        return large
    _, kinds = np.unique(counts[large], axis=0, return_inverse=True)
    kinds = renumber(kinds.reshape(-1))
    by_kind = np.argsort(kinds, kind="stable")
    rest = []
    for members in np.split(large[by_kind], np.cumsum(np.bincount(kinds))[:-1]):
        dealt = np.floor(len(members) * share + 1e-9).astype(np.int64)
        chosen = np.repeat(np.arange(len(share)), dealt)
        part[members[: len(chosen)]] = chosen
        held += np.outer(dealt, counts[members[0]])
        rest.append(members[len(chosen) :])
    left = np.concatenate(rest)
    return left[np.argsort(-counts[left].sum(axis=1), kind="stable")]


def _pick_neediest(cluster: IntArray, targets: FloatArray, held: FloatArray) -> int:
    """Return the part where adding the cluster brings class counts nearest to their targets."""
    before = (held - targets) ** 2
    after = (held + cluster - targets) ** 2
    weights = 1 / np.maximum(targets.sum(axis=0), 1)
    return int(np.argmin(((after - before) * weights).sum(axis=1)))


def _round_to_sum(wanted: FloatArray, total: int, share: FloatArray) -> IntArray:
    """Round to integers that sum to `total`, proportional to `wanted`, the largest remainders up."""
    weight = wanted if wanted.sum() > 0 else share
    exact = weight * (total / weight.sum())
    quota: IntArray = np.floor(exact + 1e-9).astype(np.int64)
    up = np.argsort(quota - exact, kind="stable")[: total - int(quota.sum())]
    quota[up] += 1
    return quota


def _fill_gaps(counts: IntArray, part: IntArray, held: FloatArray) -> None:
    """Move clusters so that every part has every class, as far as the clusters allow."""
    sizes = counts.sum(axis=1)
    n_parts, n_classes = held.shape
    for c in range(n_classes):
        for empty in np.flatnonzero(held[:, c] == 0).tolist():
            having = np.flatnonzero(counts[:, c] > 0).tolist()
            per_part = np.bincount(part[having], minlength=n_parts)
            movable = [k for k in having if per_part[part[k]] > 1 and not _would_empty(k, counts, part, held)]
            if not movable:
                continue
            k = min(movable, key=lambda i: (sizes[i], -per_part[part[i]], i))
            held[part[k]] -= counts[k]
            part[k] = empty
            held[empty] += counts[k]


def _would_empty(cluster: int, counts: IntArray, part: IntArray, held: FloatArray) -> bool:
    present = counts[cluster] > 0
    return bool(np.any(held[part[cluster]][present] <= counts[cluster][present]))
