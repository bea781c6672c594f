"""What a set of comparisons says of itself: length bias, margins, and which model wins against which.

Lengths are in characters, as AlpacaEval's length control counts them. Intervals are Wilson's at 95 %, with every
comparison counted as independent.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from zephyr_jax.data.comparisons import Comparison

_Z = 1.959964  # two-sided 95 %


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole with its 95 % interval; `share`, `low` and `high` from 0 to 1."""

    count: int
    total: int
    share: float
    low: float
    high: float


def share_of(count: int, total: int) -> Share:
    """count / total with Wilson's interval (E. B. Wilson 1927); a total of 0 says nothing: 0 to 1."""
    if total == 0:
        return Share(0, 0, math.nan, 0.0, 1.0)
    share = count / total
    centre = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    reach = _Z / (1 + _Z**2 / total) * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    return Share(count, total, share, max(0.0, centre - reach), min(1.0, centre + reach))


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's r of two series [N]; None below three values or where one is constant."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rho of two series [N]: Pearson's r of their ranks, ties sharing the mean of theirs."""
    return correlation(_ranks(x), _ranks(y))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


@dataclasses.dataclass(frozen=True, slots=True)
class LengthBias:
    """How much being longer goes with being chosen.

    Attributes:
      longer: comparisons whose chosen answer is the longer one, of all.
      num_equal: comparisons of equal length.
      num_scored: comparisons with two scores, which the correlations are over.
      pearson, spearman: of (length chosen - length rejected) with the margin; None where there are too few scores.
    """

    longer: Share
    num_equal: int
    num_scored: int
    pearson: float | None
    spearman: float | None


def lengths(comparisons: Sequence[Comparison]) -> tuple[np.ndarray, np.ndarray]:
    """[N] characters of the chosen answers, and of the rejected ones."""
    return (
        np.array([len(comparison.chosen) for comparison in comparisons], np.int64),
        np.array([len(comparison.rejected) for comparison in comparisons], np.int64),
    )


def margins(comparisons: Sequence[Comparison]) -> np.ndarray:
    """[N] margins, NaN where there is none."""
    return np.array([math.nan if c.margin is None else c.margin for c in comparisons], float)


def length_bias(comparisons: Sequence[Comparison]) -> LengthBias:
    """The length bias of a set of comparisons."""
    chosen, rejected = lengths(comparisons)
    margin = margins(comparisons)
    scored = ~np.isnan(margin)
    difference = (chosen - rejected)[scored]
    return LengthBias(
        share_of(int((chosen > rejected).sum()), len(comparisons)),
        int((chosen == rejected).sum()),
        int(scored.sum()),
        correlation(difference, margin[scored]),
        rank_correlation(difference, margin[scored]),
    )


def longer_chosen_by_ratio(comparisons: Sequence[Comparison], num_bins: int = 8) -> list[tuple[float, Share]]:
    """Share of longer chosen answers among pairs that differ in length about equally much.

    Returns:
      Up to `num_bins` groups of equally many comparisons, by rising ratio of the longer to the shorter: the median of
      that ratio, and the share.
    """
    chosen, rejected = lengths(comparisons)
    ratio = np.maximum(chosen, rejected) / np.maximum(np.minimum(chosen, rejected), 1)
    order = np.argsort(ratio, kind="stable")
    order = order[chosen[order] != rejected[order]]
    groups = [part for part in np.array_split(order, num_bins) if len(part)]
    return [
        (float(np.median(ratio[part])), share_of(int((chosen[part] > rejected[part]).sum()), len(part)))
        for part in groups
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model's wins, of all comparisons that it is in against another, and its answers' mean length."""

    model: str
    wins: Share
    mean_characters: float


def model_records(comparisons: Sequence[Comparison]) -> list[ModelRecord]:
    """Every model with a name, those in the most comparisons first; a model against itself does not count."""
    wins: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for comparison in _between_models(comparisons):
        chosen, rejected = str(comparison.chosen_model), str(comparison.rejected_model)
        wins[chosen] += 1
        totals.update((chosen, rejected))
        characters[chosen] += len(comparison.chosen)
        characters[rejected] += len(comparison.rejected)
    names = sorted(totals, key=lambda name: (-totals[name], name))
    return [ModelRecord(name, share_of(wins[name], totals[name]), characters[name] / totals[name]) for name in names]


def wins_between(comparisons: Sequence[Comparison], models: Sequence[str]) -> np.ndarray:
    """[M, M] how often the model of the row was preferred to the model of the column."""
    place = {model: index for index, model in enumerate(models)}
    wins = np.zeros((len(models), len(models)), np.int64)
    for comparison in _between_models(comparisons):
        if comparison.chosen_model in place and comparison.rejected_model in place:
            wins[place[str(comparison.chosen_model)], place[str(comparison.rejected_model)]] += 1
    return wins


def _between_models(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return [c for c in comparisons if c.chosen_model and c.rejected_model and c.chosen_model != c.rejected_model]


def summary(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The figures of the report as plain numbers."""
    bias, margin = length_bias(comparisons), margins(comparisons)
    margin = margin[~np.isnan(margin)]
    chosen, rejected = lengths(comparisons)
    prompts = {tuple((m["role"], m["content"]) for m in comparison.prompt) for comparison in comparisons}
    return {
        "comparisons": len(comparisons),
        "prompts": len(prompts),
        "multi_turn": sum(sum(m["role"] == "user" for m in c.prompt) > 1 for c in comparisons),
        "scored": len(margin),
        "ties": int((margin == 0).sum()),
        "mean_margin": float(margin.mean()) if len(margin) else None,
        "mean_characters_chosen": float(chosen.mean()),
        "mean_characters_rejected": float(rejected.mean()),
        "longer_chosen": bias.longer.share,
        "longer_chosen_interval": [bias.longer.low, bias.longer.high],
        "equal_length": bias.num_equal,
        "correlation_length_margin": bias.pearson,
        "rank_correlation_length_margin": bias.spearman,
    }
