"""How sure a score or a difference of two is: bootstrap over test rows, McNemar's test, Holm's correction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedtune.errors import ConfigError, DataError, suggest_nearest
from embedtune.evaluate.metrics import METRICS, check_predictions, metrics_from_sums, row_statistics

#: A comparison whose corrected p-value is below this is called better or worse.
LEVEL = 0.05
#: With what probability a difference that is called detectable would be found.
POWER = 0.8
#: Resampled weights held at once, a bound on memory: 4 million float64 are 32 MB.
_WEIGHTS_AT_ONCE = 4_000_000


class Resamples(NamedTuple):
    """An arm's scores on the test rows as they are, and on each resample of them.

    Attributes
    ----------
    by_seed : dict of str to ndarray of float64, shape (n_seeds,)
        Each seed's score on all test rows.
    resampled : dict of str to ndarray of float64, shape (n_resamples,)
        The mean over the seeds on each resample.
    """

    by_seed: dict[str, NDArray[np.float64]]
    resampled: dict[str, NDArray[np.float64]]

    def mean(self, metric: str) -> float:
        """Return the score on all test rows, averaged over the seeds."""
        return float(self.by_seed[metric].mean())


class PairComparison(NamedTuple):
    """Score of `a` minus score of `b`.

    Attributes
    ----------
    difference : float
    low, high : float
        Its interval.
    p : float
        Two-sided.
    detectable : float
        The least true difference that so many test rows would show at `LEVEL` with probability `POWER`, before any
        correction: a smaller one is likely missed.
    """

    difference: float
    low: float
    high: float
    p: float
    detectable: float


def resample_metrics(
    y: ArrayLike,
    probabilities: ArrayLike,
    *,
    predicted: NDArray[np.int64] | None = None,
    groups: ArrayLike | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Resamples:
    """Score the test rows and `n_resamples` bootstrap resamples of them.

    Parameters
    ----------
    y : array-like of int, shape (n,)
    probabilities : array-like of float, shape (n_seeds, n, n_labels) or (n, n_labels)
        All seeds are scored on the same resampled rows and averaged.
    predicted : ndarray of int, shape (n_seeds, n), optional
        The labels named; by default the likeliest ones.
    groups : array-like, shape (n,), optional
        Rows that belong together (near-duplicates, one headline's questions) are drawn together.
    n_resamples : int
    seed : int
        Equal seeds draw equal rows, whatever the probabilities: two arms are resampled in pairs.

    Raises
    ------
    DataError
        As `embedtune.evaluate.metrics.compute_metrics`.
    """
    from scipy.sparse import csr_array, hstack

    y, probabilities = check_predictions(y, probabilities)
    seeds = probabilities.reshape(-1, *probabilities.shape[-2:])
    n, n_labels = seeds.shape[1:]
    named = [None] * len(seeds) if predicted is None else list(predicted)
    statistics = [row_statistics(y, one, own) for one, own in zip(seeds, named, strict=True)]
    rows = hstack(statistics, format="csr")
    members = _number_groups(groups, n)
    n_groups = int(members.max()) + 1
    if n_groups < n:
        rows = csr_array((np.ones(n), (members, np.arange(n))), shape=(n_groups, n)) @ rows

    def score(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        # (n_sums, n_seeds * columns) -> one row per (resample, seed)
        scores = metrics_from_sums(sums.reshape(sums.shape[0] * len(seeds), -1), n_labels)
        return {name: values.reshape(-1, len(seeds)) for name, values in scores.items()}

    by_seed = {name: v[0] for name, v in score(np.asarray(rows.sum(axis=0)).reshape(1, -1)).items()}
    terms = rows.T.tocsr()
    parts = [score(np.ascontiguousarray((terms @ w).T)) for w in _draw_weights(n_groups, n_resamples, seed)]
    resampled = {name: np.concatenate([part[name].mean(axis=1) for part in parts]) for name in METRICS}
    return Resamples(by_seed, resampled)


def bootstrap_intervals(
    y: ArrayLike,
    probabilities: ArrayLike,
    *,
    predicted: NDArray[np.int64] | None = None,
    groups: ArrayLike | None = None,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Give every metric its percentile bootstrap interval over test rows.

    The interval is about the choice of test rows; the spread between seeds is told apart from it, not added.

    Parameters
    ----------
    y, probabilities, predicted, groups, n_resamples, seed
        As `resample_metrics`.
    confidence : float
        Coverage, between 0 and 1.

    Returns
    -------
    dict of str to dict
        ``{metric: {"value", "low", "high", "seed_sd"}}``: value is the mean over the seeds, seed_sd their standard
        deviation (n - 1), None with one seed.

    References
    ----------
    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    scores = resample_metrics(
        y, probabilities, predicted=predicted, groups=groups, n_resamples=n_resamples, seed=seed
    )
    intervals = {}
    for name in METRICS:
        low, high = _percentile_interval(scores.resampled[name], confidence)
        found = scores.by_seed[name]
        spread = float(found.std(ddof=1)) if len(found) > 1 else None
        intervals[name] = {"value": scores.mean(name), "low": low, "high": high, "seed_sd": spread}
    return intervals


def compare_pair(
    y: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    *,
    metric: str = "macro_f1",
    groups: ArrayLike | None = None,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairComparison:
    """Compare two arms on the same test rows with the paired bootstrap.

    Parameters
    ----------
    y : array-like of int, shape (n,)
    a, b : array-like of float, shape (n_seeds, n, n_labels)
        The numbers of seeds may differ.
    metric : str
        One of `embedtune.evaluate.metrics.METRICS`.
    groups, n_resamples, confidence, seed
        As `bootstrap_intervals`.

    Raises
    ------
    ConfigError
        If the metric is unknown.
    DataError
        As `embedtune.evaluate.metrics.compute_metrics`.
    """
    if metric not in METRICS:
        nearest = suggest_nearest(metric, METRICS)
        raise ConfigError(f"metric '{metric}' is unknown{nearest}: use one of {', '.join(METRICS)}.")
    first, second = (
        resample_metrics(y, arm, groups=groups, n_resamples=n_resamples, seed=seed) for arm in (a, b)
    )
    return compare_resamples(first, second, metric=metric, confidence=confidence)


def compare_resamples(a: Resamples, b: Resamples, *, metric: str, confidence: float = 0.95) -> PairComparison:
    """Compare two arms whose resamples drew the same rows.

    The p-value is twice the smaller share of resampled differences on either side of 0, the observed
    difference counted among them, so it is never 0: at least 2 / (n_resamples + 1).

    References
    ----------
    Card et al. 2020, "With Little Power Comes Great Responsibility", EMNLP: the detectable difference.
    """
    from scipy.stats import norm

    differences = a.resampled[metric] - b.resampled[metric]
    n_below, n_above = int((differences <= 0).sum()), int((differences >= 0).sum())
    p = min(1.0, 2 * (1 + min(n_below, n_above)) / (1 + differences.size))
    low, high = _percentile_interval(differences, confidence)
    detectable = float((norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)) * differences.std(ddof=1))
    return PairComparison(a.mean(metric) - b.mean(metric), low, high, p, detectable)


def compare_splits(
    differences: ArrayLike, *, n_train: float, n_test: float, confidence: float = 0.95
) -> PairComparison:
    """Test the mean difference of two arms over repeated random splits of the same rows.

    Splits share rows, so their differences are not independent: the variance of the mean is taken as
    (1 / n_splits + n_test / n_train) times that of the differences, with n_splits - 1 degrees of freedom.

    Parameters
    ----------
    differences : array-like of float, shape (n_splits,)
        Score of a minus score of b, a split each.
    n_train, n_test : float
        Rows of a split.
    confidence : float

    References
    ----------
    Nadeau and Bengio 2003, "Inference for the Generalization Error", Machine Learning 52 (equation 15).
    """
    from scipy.stats import t

    values = np.asarray(differences, dtype=np.float64)
    mean, free = float(values.mean()), len(values) - 1
    error = float(np.sqrt((1 / len(values) + n_test / n_train) * values.var(ddof=1)))
    reach = float(t.ppf((1 + confidence) / 2, free)) * error
    p = float(2 * t.sf(abs(mean) / error, free)) if error > 0 else float(mean == 0)
    detectable = float(t.ppf(1 - LEVEL / 2, free) + t.ppf(POWER, free)) * error
    return PairComparison(mean, mean - reach, mean + reach, p, detectable)


def mcnemar_p(y: ArrayLike, predicted_a: ArrayLike, predicted_b: ArrayLike) -> float:
    """Test whether two classifiers are right equally often on the same rows.

    Parameters
    ----------
    y, predicted_a, predicted_b : array-like of int, shape (n,)

    Returns
    -------
    float
        Two-sided p-value of the exact binomial test on the rows where only one of them is right; 1 if
        there are none.

    References
    ----------
    McNemar 1947; Dietterich 1998, "Approximate statistical tests for comparing supervised classification
    learning algorithms".
    """
    from scipy.stats import binomtest

    right_a, right_b = np.asarray(predicted_a) == np.asarray(y), np.asarray(predicted_b) == np.asarray(y)
    n_only_a, n_discordant = int((right_a & ~right_b).sum()), int((right_a != right_b).sum())
    return float(binomtest(n_only_a, n_discordant).pvalue) if n_discordant else 1.0


def holm(pvalues: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method, in the order given; an empty list stays empty.

    References
    ----------
    Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    given = np.asarray(pvalues, dtype=np.float64)
    order = np.argsort(given)
    adjusted = np.empty_like(given)
    adjusted[order] = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)).clip(max=1)
    return [float(p) for p in adjusted]


def _number_groups(groups: ArrayLike | None, n: int) -> NDArray[np.int64]:
    if groups is None:
        return np.arange(n)
    given = np.asarray(groups)
    if given.shape != (n,):
        raise DataError(f"{n} test rows but groups of shape {given.shape}: give one group per row.")
    return np.unique(given, return_inverse=True)[1].astype(np.int64)


def _draw_weights(n: int, n_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each row is drawn, (n, up to n_resamples) float64 at a time; columns sum to n."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // n)
    for start in range(0, n_resamples, at_once):
        n_now = min(at_once, n_resamples - start)
        drawn = generator.integers(0, n, size=(n_now, n)) + np.arange(n_now)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=n_now * n).reshape(n_now, n)
        yield np.ascontiguousarray(counts.T, dtype=np.float64)


def _percentile_interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
