"""How sure a score is: means with intervals, two models on the same items, and whether a difference is noise.

Items of one question (its two turns, repeated judgments) are not independent: they belong to one group, and groups are
what is drawn anew or has its sign changed. Every draw hangs on the seed alone, not on the order of rows. What comes of
many comparisons side by side is held to a common level (`with_holm`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from zephyr_jax.data.comparison_statistics import Share

_NORMAL = statistics.NormalDist()
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
      low, high: of the interval, see `estimate_mean`; None with fewer than two groups, or where nothing can be said.
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
    values: Sequence[float] | np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    whole: float | None = None,
    within: tuple[float, float] | None = None,
    sampling: Sampling,
) -> Estimate:
    """The mean of all items, with its standard error and interval over groups.

    se = sqrt(G / (G - 1) sum_g (S_g - n_g mean)^2) / N, which for groups of one is s / sqrt(N)

    The interval of a share is Wilson's with as many items as would have this error (E. L. Korn and B. I. Graubard 1998
    for the idea): the bootstrap's is far too narrow near 0 and 1. Any other is the percentile bootstrap's, its
    percentiles those of Student's t with G - 1 degrees of freedom (T. Hesterberg 2015, section 5.3): the plain ones are
    too narrow for ten groups, such as the questions of a category. Of so few groups that even their least and greatest
    mean would cover less often than that (five at 95 %), it is Student's: mean +- t se.

    Args:
      values: [N], at least one.
      groups: [N], what each item belongs to; None: every item for itself.
      whole: values are shares of it, from 0 to it (1, or 100 in percent); None: they are not.
      within: the least and the greatest that a value may be; None: not known. Few groups that are alike hide their
        spread: it is then taken from here, else, where they are all alike, there is no interval.
      sampling: how the interval is drawn.
    """
    sums_G, counts_G = _grouped(values, groups)
    total, num_groups = counts_G.sum(), len(sums_G)
    mean = sums_G.sum() / total
    if num_groups < 2:
        return Estimate(float(mean), None, None, None, int(total), num_groups)
    residuals_G = sums_G - mean * counts_G
    standard_error = math.sqrt(num_groups / (num_groups - 1) * (residuals_G**2).sum()) / total
    if whole is not None:
        low, high = _share_interval(mean / whole, standard_error / whole, num_groups, sampling.level)
        return Estimate(float(mean), standard_error, whole * low, whole * high, int(total), num_groups)
    if is_few(num_groups, sampling.level):
        found = _few_interval(float(mean), standard_error, num_groups, sampling.level, within)
        lowest, highest = found or (None, None)
        return Estimate(float(mean), standard_error, lowest, highest, int(total), num_groups)
    rng = np.random.default_rng(sampling.seed)
    means = []
    for num_draws in _portions(sampling.resamples, num_groups):
        index_RG = rng.integers(0, num_groups, (num_draws, num_groups))
        means.append(sums_G[index_RG].sum(1) / counts_G[index_RG].sum(1))
    low, high = _interval(np.concatenate(means), num_groups, sampling.level)
    return Estimate(float(mean), standard_error, low, high, int(total), num_groups)


def is_few(num_groups: int, level: float) -> bool:
    """Whether no bootstrap interval of so many groups can hold the truth as often as `level` says.

    All of them lie on one side of the middle with the odds 2^(1 - G), and so does then every mean of draws.
    """
    return 2.0 ** (1 - num_groups) > 1 - level


def _few_interval(
    mean: float, error: float, num_groups: int, level: float, within: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Student's interval, inside the bounds."""
    t = t_quantile((1 + level) / 2, num_groups - 1)
    if within is None:
        return (mean - t * error, mean + t * error) if error > 0 else None
    low, high = min(within[0], mean), max(within[1], mean)
    error = max(error, max(mean - low, high - mean) / num_groups)  # one of them may go to the far end: _share_interval
    return max(low, mean - t * error), min(high, mean + t * error)


def share(hits: Sequence[bool], *, groups: Sequence[Hashable] | None = None, sampling: Sampling) -> Share:
    """How many of the items are hits, with the interval of `estimate_mean`; no items say nothing: 0 to 1.

    Args:
      hits: [N].
      groups: [N], what each item belongs to; None: every item for itself.
      sampling: its level.
    """
    if not hits:
        return Share(0, 0, math.nan, 0.0, 1.0)
    found = estimate_mean(np.array(hits, float), groups=groups, whole=1.0, sampling=sampling)
    low, high = (0.0, 1.0) if found.low is None or found.high is None else (found.low, found.high)
    return Share(int(sum(hits)), len(hits), found.mean, low, high)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], num_items: int, *, sampling: Sampling
) -> tuple[float, float]:
    """The percentile interval of any statistic of items drawn anew: `statistic([N] indices)`."""
    rng = np.random.default_rng(sampling.seed)
    drawn = [statistic(rng.integers(0, num_items, num_items)) for _ in range(sampling.resamples)]
    return _interval(np.array(drawn), num_items, sampling.level)


def _portions(num_draws: int, width: int) -> list[int]:
    at_once = max(1, _DRAWS_AT_ONCE // width)
    return [min(at_once, num_draws - start) for start in range(0, num_draws, at_once)]


def _interval(drawn: np.ndarray, num_groups: int, level: float) -> tuple[float, float]:
    reach = t_quantile((1 + level) / 2, num_groups - 1) * math.sqrt(num_groups / (num_groups - 1))
    tail = _NORMAL.cdf(-reach)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _share_interval(mean: float, error: float, num_groups: int, level: float) -> tuple[float, float]:
    """Wilson's interval of a share for the number of independent items that have its standard error."""
    spread = mean * (1 - mean)
    # Groups that all agree have no spread to see: one of them may always go to the far end.
    error = max(error, max(mean, 1 - mean) / num_groups)
    items = spread / error**2 if spread > 0 else num_groups
    t = t_quantile((1 + level) / 2, num_groups - 1)
    centre = (mean + t**2 / (2 * items)) / (1 + t**2 / items)
    reach = t / (1 + t**2 / items) * math.sqrt(spread / items + t**2 / (4 * items**2))
    return max(0.0, min(mean, centre - reach)), min(1.0, max(mean, centre + reach))


@functools.lru_cache(maxsize=256)
def t_quantile(share_below: float, degrees: int) -> float:
    """Student's t below which a share of it lies, more than a half: by summing its density finely.

    With x = sqrt(degrees) tan(angle) the density is cos(angle)^(degrees - 1), up to a factor.
    """
    angles = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (degrees - 1)
    summed = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp((share_below - 0.5) * 2, summed / summed[-1], angles)
    return float(math.sqrt(degrees) * math.tan(angle))


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same items.

    Attributes:
      first, second: their names.
      difference: the mean of first - second, with its interval.
      p_value: two-sided, of the sign-flip test that neither is better.
      level: of the interval.
      p_adjusted, num_compared: see `Tested`.
    """

    first: str
    second: str
    difference: Estimate
    p_value: float
    level: float
    p_adjusted: float | None = None
    num_compared: int = 1

    @property
    def within_noise(self) -> bool:
        """Whether such a difference comes about by chance too easily to be taken for one."""
        return is_noise(self)

    def sentence(self, unit: str) -> str:
        """What may be said of it, such as `a 0.35 above b (...)`."""
        mean, low, high = self.difference.mean, self.difference.low, self.difference.high
        interval = "" if low is None else f"{self.level:.0%} interval of the difference {low:+.2f} to {high:+.2f}, "
        figures = f"{interval}{p_text(self)}, {self.difference.num_groups} common {unit}"
        if self.within_noise:
            return f"{self.first} and {self.second} are within noise of each other: {mean:+.2f} ({figures})"
        return f"{self.first} is {abs(mean):.2f} {'above' if mean > 0 else 'below'} {self.second} ({figures})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "first": self.first,
            "second": self.second,
            **self.difference.as_dict(("difference", "standard_error")),
            **p_values(self),
        }


class Tested(Protocol):
    """What has a p-value, one of several that are looked at side by side.

    Attributes:
      p_value: by itself.
      level: above 1 - level of the adjusted p-value it counts as noise.
      p_adjusted: allowing for all of them; None: not adjusted.
      num_compared: how many they are.
    """

    @property
    def p_value(self) -> float: ...
    @property
    def level(self) -> float: ...
    @property
    def p_adjusted(self) -> float | None: ...
    @property
    def num_compared(self) -> int: ...


TestedT = TypeVar("TestedT", bound=Tested)


def is_noise(found: Tested) -> bool:
    """Whether a difference comes about by chance too easily to be taken for one."""
    return (found.p_value if found.p_adjusted is None else found.p_adjusted) > 1 - found.level


def p_text(found: Tested) -> str:
    """`p = 0.03`, or `p = 0.03, 0.09 allowing for 3 comparisons`."""
    if found.p_adjusted is None or found.num_compared < 2:
        return f"p = {found.p_value:.2g}"
    return f"p = {found.p_value:.2g}, {found.p_adjusted:.2g} allowing for {found.num_compared} comparisons"


def p_values(found: Tested) -> dict[str, Any]:
    """For JSON."""
    adjusted = found.p_value if found.p_adjusted is None else found.p_adjusted
    return {
        "p_value": found.p_value,
        "p_adjusted": adjusted,
        "num_compared": found.num_compared,
        "within_noise": is_noise(found),
    }


def with_holm(found: Sequence[TestedT]) -> tuple[TestedT, ...]:
    """All of them with p-values that allow for their number (S. Holm 1979): the odds of one false alarm are 1 - level.

    adjusted p of rank r (from 0) among m = max over ranks up to r of min(1, (m - rank) p)
    """
    order = sorted(range(len(found)), key=lambda place: found[place].p_value)
    adjusted: dict[int, float] = {}
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(found) - rank) * found[place].p_value))
        adjusted[place] = highest
    return tuple(
        dataclasses.replace(one, p_adjusted=adjusted[place], num_compared=len(found))  # type: ignore[type-var]
        for place, one in enumerate(found)
    )


def compare(
    first: tuple[str, Mapping[Hashable, float]],
    second: tuple[str, Mapping[Hashable, float]],
    *,
    group_of: Callable[[Any], Hashable] = lambda item: item,
    within: tuple[float, float] | None = None,
    sampling: Sampling,
) -> Comparison | None:
    """Compares two models by a paired test on the items that both have a score for.

    Args:
      first, second: name, and score by item.
      group_of: (item) -> what it belongs to, such as its question; as it is, every item for itself.
      within: the least and the greatest score that there is; None: not known.
      sampling: how the interval and the p-value are drawn.

    Returns:
      The comparison; None where they have no item in common.
    """
    common = sorted((item for item in first[1] if item in second[1]), key=str)
    if not common:
        return None
    groups = [group_of(item) for item in common]
    widest = None if within is None else (within[0] - within[1], within[1] - within[0])
    differences_N = np.array([first[1][item] - second[1][item] for item in common])
    return Comparison(
        first[0],
        second[0],
        estimate_mean(differences_N, groups=groups, within=widest, sampling=sampling),
        sign_flip_p_value(_grouped(differences_N, groups)[0], sampling=sampling),
        sampling.level,
    )


def compare_by_task(
    found: Sequence[tuple[str, str, Mapping[Hashable, float]]],
    *,
    within: tuple[float, float] | None = None,
    sampling: Sampling,
) -> tuple[tuple[str, Comparison], ...]:
    """Every two models compared on each task that both did, with p-values that allow for their number.

    Args:
      found: task, model, and score by item; in the order in which tasks and models are to come.
      within: see `compare`.
      sampling: how intervals and p-values are drawn.

    Returns:
      Task, and a comparison on it.
    """
    tasks: list[str] = []
    comparisons = []
    for task in dict.fromkeys(task for task, _, _ in found):
        models = [(model, by_item) for other, model, by_item in found if other == task]
        for first, second in itertools.combinations(models, 2):
            comparison = compare(first, second, within=within, sampling=sampling)
            if comparison is not None:
                tasks.append(task)
                comparisons.append(comparison)
    return tuple(zip(tasks, with_holm(comparisons), strict=True))


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
