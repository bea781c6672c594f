"""How sure a score is: means with intervals, two models on the same items, and whether a difference is noise.

Items of one question (its two turns, repeated judgments) are not independent: they belong to one group, and groups are
what is drawn anew or has its sign changed. Every draw hangs on the seed alone, not on the order of rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

_DRAWS_AT_ONCE = 2**22  # numbers drawn in one go: bounds the memory


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How intervals and p-values are drawn.

    Attributes:
      level: of the intervals, 0 to 1.
      resamples: of the bootstrap, and changes of sign of the paired test.
      seed: of both.
    """

    level: float = 0.95
    resamples: int = 10_000
    seed: int = 42


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and how sure it is.

    Attributes:
      mean: of all items.
      standard_error: of the mean; None with fewer than two groups.
      low, high: percentile bootstrap interval (B. Efron 1979); None with fewer than two groups.
      num_items, num_groups: what it is over.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    num_items: int
    num_groups: int

    def as_dict(self, names: tuple[str, str] = ("mean", "standard_error")) -> dict[str, Any]:
        """For JSON, the mean and its error under `names`."""
        return {
            names[0]: self.mean,
            names[1]: self.standard_error,
            "interval": None if self.low is None else [self.low, self.high],
            "num_items": self.num_items,
            "num_groups": self.num_groups,
        }


def _grouped(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """[G] sums and [G] counts of the groups, in the order of their names; without groups, in that of the items."""
    array = np.asarray(values, float)
    if groups is None:
        return array, np.ones(len(array))
    place = {group: index for index, group in enumerate(sorted(set(groups), key=str))}
    index_N = np.array([place[group] for group in groups], np.int64)
    return np.bincount(index_N, array, len(place)), np.bincount(index_N, minlength=len(place)).astype(float)


def estimate_mean(
    values: Sequence[float] | np.ndarray, *, groups: Sequence[Hashable] | None = None, sampling: Sampling
) -> Estimate:
    """The mean of all items, with its standard error and interval over groups.

    se = sqrt(G / (G - 1) sum_g (S_g - n_g mean)^2) / N, which for groups of one is s / sqrt(N)

    Args:
      values: [N], at least one.
      groups: [N], what each item belongs to; None: every item for itself.
      sampling: how the interval is drawn.
    """
    sums_G, counts_G = _grouped(values, groups)
    total, num_groups = counts_G.sum(), len(sums_G)
    mean = sums_G.sum() / total
    if num_groups < 2:
        return Estimate(float(mean), None, None, None, int(total), num_groups)
    residuals_G = sums_G - mean * counts_G
    standard_error = math.sqrt(num_groups / (num_groups - 1) * (residuals_G**2).sum()) / total
    rng = np.random.default_rng(sampling.seed)
    means = []
    for num_draws in _portions(sampling.resamples, num_groups):
        index_RG = rng.integers(0, num_groups, (num_draws, num_groups))
        means.append(sums_G[index_RG].sum(1) / counts_G[index_RG].sum(1))
    low, high = _interval(np.concatenate(means), sampling.level)
    return Estimate(float(mean), standard_error, low, high, int(total), num_groups)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], num_items: int, *, sampling: Sampling
) -> tuple[float, float]:
    """The percentile interval of any statistic of items drawn anew: `statistic([N] indices)`."""
    rng = np.random.default_rng(sampling.seed)
    drawn = [statistic(rng.integers(0, num_items, num_items)) for _ in range(sampling.resamples)]
    return _interval(np.array(drawn), sampling.level)


def _portions(num_draws: int, width: int) -> list[int]:
    at_once = max(1, _DRAWS_AT_ONCE // width)
    return [min(at_once, num_draws - start) for start in range(0, num_draws, at_once)]


def _interval(drawn: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same items.

    Attributes:
      first, second: their names.
      difference: the mean of first - second, with its interval.
      p_value: two-sided, of the sign-flip test that neither is better.
      level: of the interval; above 1 - level the difference counts as noise.
    """

    first: str
    second: str
    difference: Estimate
    p_value: float
    level: float

    @property
    def within_noise(self) -> bool:
        """Whether such a difference comes about by chance too easily to be taken for one."""
        return self.p_value > 1 - self.level

    def sentence(self, unit: str) -> str:
        """What may be said of it, such as `a 0.35 above b (...)`."""
        mean, low, high = self.difference.mean, self.difference.low, self.difference.high
        interval = "" if low is None else f"{self.level:.0%} interval of the difference {low:+.2f} to {high:+.2f}, "
        figures = f"{interval}p = {self.p_value:.2g}, {self.difference.num_groups} common {unit}"
        if self.within_noise:
            return f"{self.first} and {self.second} are within noise of each other: {mean:+.2f} ({figures})"
        return f"{self.first} is {abs(mean):.2f} {'above' if mean > 0 else 'below'} {self.second} ({figures})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "first": self.first,
            "second": self.second,
            **self.difference.as_dict(("difference", "standard_error")),
            "p_value": self.p_value,
            "within_noise": self.within_noise,
        }


def compare(
    first: tuple[str, Mapping[Hashable, float]], second: tuple[str, Mapping[Hashable, float]], *, sampling: Sampling
) -> Comparison | None:
    """Compares two models by a paired test on the items that both have a score for.

    Args:
      first, second: name, and score by item.
      sampling: how the interval and the p-value are drawn.

    Returns:
      The comparison; None where they have no item in common.
    """
    common = sorted((item for item in first[1] if item in second[1]), key=str)
    if not common:
        return None
    differences_N = np.array([first[1][item] - second[1][item] for item in common])
    return Comparison(
        first[0],
        second[0],
        estimate_mean(differences_N, sampling=sampling),
        sign_flip_p_value(differences_N, sampling=sampling),
        sampling.level,
    )


def sign_flip_p_value(differences_N: np.ndarray, *, sampling: Sampling) -> float:
    """Two-sided p-value of the paired randomisation test (R. A. Fisher 1935).

    If neither model is better, each difference was as likely with the other sign: how often is the sum then at least as
    far from 0? With b of m random draws, p = (b + 1) / (m + 1).
    """
    nonzero = differences_N[differences_N != 0]
    observed = abs(nonzero.sum())
    if not len(nonzero):
        return 1.0
    rng = np.random.default_rng(sampling.seed)
    as_far = 0
    for num_draws in _portions(sampling.resamples, len(nonzero)):
        signs_RN = 2 * rng.integers(0, 2, (num_draws, len(nonzero)), dtype=np.int8) - 1
        # What differs by rounding alone is as far.
        as_far += int((np.abs(signs_RN @ nonzero) >= observed * (1 - 1e-12)).sum())
    return (as_far + 1) / (sampling.resamples + 1)


def sign_test_p_value(num_first: int, num_second: int) -> float:
    """Two-sided p-value of the exact sign test: as uneven a split of fair coins, or a more uneven one."""
    total, most = num_first + num_second, max(num_first, num_second)
    if 2 * most <= total:
        return 1.0
    tail = sum(math.comb(total, count) for count in range(most, total + 1))
    return min(1.0, 2 * tail / 2**total)
