"""Find texts that are the same, or nearly."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from embedtune.progress import track

#: Characters in a shingle. Changing one figure in a sentence of 100 characters changes 5 of its 96 shingles.
SHINGLE_LENGTH = 5
#: All texts together are compared on this many characters at most, and one text on `_MAX_COMPARED`.
_TOTAL_COMPARED = 60_000_000
_MAX_COMPARED = 2000
_MIN_COMPARED = 200
#: How far apart in a shingle's list of texts (by length) two candidates may stand.
_MAX_WINDOW = 1000
_N_BITS = 256
#: Shingles read at once when pairs are measured; bounds memory.
_CHUNK_SHINGLES = 20_000_000

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def fold_text(text: str) -> str:
    """Return the text in the form in which equal texts are one: NFKC, one space for any white space, no case.

    Case goes because most small backbones don't see it.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def find_near_duplicates(texts: Sequence[str], *, threshold: float) -> IntArray:
    """Find all pairs of texts whose shingle sets have at least the given Jaccard similarity.

    Exact, without sketches: two sets of similarity t share one of the rarest ``n - ceil(t n) + 1`` shingles
    of each, so only texts that meet in such a shingle are compared. Where more than `_MAX_WINDOW` texts
    share one, each is compared with the `_MAX_WINDOW` next in length alone.

    Parameters
    ----------
    texts : sequence of str
        Distinct and folded (`fold_text`).
    threshold : float
        In (0, 1].

    Returns
    -------
    ndarray of shape (n_pairs, 2), int64
        Indices into `texts`; enough pairs to connect every cluster, the first the smaller.

    References
    ----------
    Bayardo, Ma, Srikant (2007), "Scaling up all pairs similarity search", WWW.
    Broder (1997), "On the resemblance and containment of documents".
    """
    if len(texts) < 2:
        return np.empty((0, 2), dtype=np.int64)
    shingles = shingle_texts(texts)
    sizes = np.diff(shingles.indptr).astype(np.int64)
    entries = _list_rare_shingles(shingles, sizes, threshold)
    return _compare_neighbours(shingles, sizes, entries, threshold)


def join_clusters(n: int, pairs: Iterable[IntArray]) -> IntArray:
    """Number the connected components of ``0 … n-1`` under the given pairs, in order of first appearance.

    Returns
    -------
    ndarray of shape (n,), int64
    """
    edges = [np.asarray(p, dtype=np.int64).reshape(-1, 2) for p in pairs]
    joined = np.concatenate(edges) if edges else np.empty((0, 2), dtype=np.int64)
    graph = sparse.coo_array(
        (np.ones(len(joined), dtype=np.int8), (joined[:, 0], joined[:, 1])), shape=(n, n)
    )
    _, components = connected_components(graph.tocsr(), directed=False)
    return renumber(components)


def renumber(values: npt.NDArray[np.int_]) -> IntArray:
    """Replace values by 0, 1, 2 … in order of first appearance."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def shingle_texts(texts: Sequence[str]) -> sparse.csr_array:
    """Return which text has which shingle.

    Returns
    -------
    csr_array of shape (n_texts, n_distinct_shingles), float32
        Ones; columns sorted by how many texts have the shingle, rarest first, indices sorted in a row.
    """
    limit = min(max(_TOTAL_COMPARED // len(texts), _MIN_COMPARED), _MAX_COMPARED)
    rows, hashes = [], []
    for start in range(0, len(texts), 5000):
        chunk_rows, chunk_hashes = _hash_shingles([text[:limit] for text in texts[start : start + 5000]])
        rows.append(chunk_rows + start)
        hashes.append(chunk_hashes)
    row = np.concatenate(rows)
    distinct, column, counts = np.unique(np.concatenate(hashes), return_inverse=True, return_counts=True)
    rank = np.empty(len(distinct), dtype=np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(distinct))
    matrix = sparse.csr_array(
        (np.ones(len(row), dtype=np.float32), (row, rank[column])), shape=(len(texts), len(distinct))
    )
    matrix.sort_indices()
    return matrix


def _hash_shingles(texts: Sequence[str]) -> tuple[IntArray, npt.NDArray[np.uint64]]:
    """Hash every text's distinct shingles; a text shorter than a shingle is padded to one."""
    padded = [text.ljust(SHINGLE_LENGTH) for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(
        np.uint64
    )
    owner = np.repeat(np.arange(len(padded)), [len(text) for text in padded])
    n = len(codes) - SHINGLE_LENGTH + 1
    value = np.zeros(n, dtype=np.uint64)
    for i in range(SHINGLE_LENGTH):
        value = value * np.uint64(0x9E3779B97F4A7C15) + codes[i : i + n]
    value ^= value >> np.uint64(29)
    inside = owner[:n] == owner[SHINGLE_LENGTH - 1 :]
    row, value = owner[:n][inside], value[inside]
    order = np.lexsort((value, row))
    row, value = row[order], value[order]
    fresh = np.ones(len(row), dtype=bool)
    fresh[1:] = (row[1:] != row[:-1]) | (value[1:] != value[:-1])
    return row[fresh].astype(np.int64), value[fresh]


class _Entries(NamedTuple):
    """A text's rare shingle each: the shingle, the text, the shingle's place among the text's shingles."""

    shingle: IntArray
    text: IntArray
    place: IntArray


def _list_rare_shingles(shingles: sparse.csr_array, sizes: IntArray, threshold: float) -> _Entries:
    """List every text's rarest shingles, by shingle, then by the text's size."""
    n_rare = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
    row = np.repeat(np.arange(len(sizes)), sizes)
    position = np.arange(len(row)) - np.repeat(shingles.indptr[:-1].astype(np.int64), sizes)
    rare = position < n_rare[row]
    column, row, position = shingles.indices[rare].astype(np.int64), row[rare], position[rare]
    order = np.lexsort((row, sizes[row], column))
    return _Entries(column[order], row[order], position[order])


def _compare_neighbours(
    shingles: sparse.csr_array, sizes: IntArray, entries: _Entries, threshold: float
) -> IntArray:
    column, row, place = entries
    n = len(sizes)
    bitmaps = _fold_bitmaps(shingles)
    clusters = np.arange(n)
    found = []
    here = np.arange(len(column))
    with track("Looking for near-duplicates", _MAX_WINDOW, unit="steps") as bar:
        for step in range(1, _MAX_WINDOW + 1):
            # An entry stays in play while its list goes on and the lengths allow the similarity.
            here = here[here + step < len(column)]
            there = here + step
            here = here[(column[here] == column[there]) & (sizes[row[here]] >= threshold * sizes[row[there]])]
            bar.advance()
            if not len(here):
                bar.advance(_MAX_WINDOW - step)
                break
            a, b = row[here], row[here + step]
            # After the first shingle two texts share, what is left of the shorter rest bounds what they share.
            most_shared = np.minimum(sizes[a] - place[here], sizes[b] - place[here + step])
            enough = most_shared * (1 + threshold) >= threshold * (sizes[a] + sizes[b]) - 1e-6
            apart = enough & (clusters[a] != clusters[b])
            a, b = a[apart], b[apart]
            may_be = _may_be_similar(bitmaps, sizes, a, b, threshold)
            pairs = np.unique(np.minimum(a, b)[may_be] * n + np.maximum(a, b)[may_be])
            near = _keep_similar(shingles, sizes, np.stack((pairs // n, pairs % n), axis=1), threshold)
            if len(near):
                found.append(near)
                clusters = join_clusters(n, found)
    return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)


def _fold_bitmaps(shingles: sparse.csr_array) -> npt.NDArray[np.uint64]:
    """Fold every text's shingle set into `_N_BITS` bits: each the parity of its share of the shingles."""
    bit = (np.arange(shingles.shape[1], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(56)
    folding = sparse.csr_array(
        (np.ones(len(bit), dtype=np.float32), (np.arange(len(bit)), bit.astype(np.int64))),
        shape=(shingles.shape[1], _N_BITS),
    )
    parity = (shingles @ folding).toarray().astype(np.uint32) & 1
    return np.packbits(parity.astype(np.uint8), axis=1).view(np.uint64)


def _may_be_similar(
    bitmaps: npt.NDArray[np.uint64], sizes: IntArray, a: IntArray, b: IntArray, threshold: float
) -> BoolArray:
    """Rule out pairs whose bitmaps differ in more bits than their sets may differ in shingles."""
    n_differing = np.bitwise_count(bitmaps[a] ^ bitmaps[b]).sum(axis=1, dtype=np.int64)
    possible: BoolArray = n_differing * (1 + threshold) <= (1 - threshold) * (sizes[a] + sizes[b]) + 1e-6
    return possible


def _keep_similar(shingles: sparse.csr_array, sizes: IntArray, pairs: IntArray, threshold: float) -> IntArray:
    kept = []
    n_at_once = max(_CHUNK_SHINGLES // int(sizes.mean() + 1), 1)
    for start in range(0, len(pairs), n_at_once):
        chunk = pairs[start : start + n_at_once]
        shared = shingles[chunk[:, 0]].multiply(shingles[chunk[:, 1]]).sum(axis=1)
        union = sizes[chunk].sum(axis=1) - shared
        kept.append(chunk[shared >= threshold * union - 1e-6])
    return np.concatenate(kept) if kept else np.empty((0, 2), dtype=np.int64)
