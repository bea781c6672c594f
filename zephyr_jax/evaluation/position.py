"""What the order of two answers does to a judge: measured by showing every pair in both orders.

A verdict follows the position where both orders send it to the same place, whoever's answer stands there. That alone is
no bias: a judge that errs at random does it too, half the time to each place. A bias is that one place gets more of
them (arXiv:2306.05685, section 3.3 and table 2).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, Literal

from zephyr_jax.data.comparison_statistics import Share
from zephyr_jax.evaluation.statistics import Estimate, Sampling, estimate_mean, share, sign_test_p_value

Place = Literal["first", "second", "tie"]
# In the second order the same model stands at the other place.
_SAME_MODEL = {("first", "second"), ("second", "first"), ("tie", "tie")}


@dataclasses.dataclass(frozen=True, slots=True)
class PositionBias:
    """How much of a judge's verdicts the order decides.

    Attributes:
      same_verdict: items with the same verdict in both orders, ties too.
      follows: items whose both verdicts went to the same place, of those decided in both orders.
      to_first, to_second: the same items by place.
      first_share: of all decided verdicts, those for the answer shown first, 0 to 1; None where none was decided.
      p_value: two-sided, that no place is favoured (exact sign test over the groups, by where most of a group went).
      level: of the intervals.
    """

    same_verdict: Share
    follows: Share
    to_first: int
    to_second: int
    first_share: Estimate | None
    p_value: float
    level: float

    @property
    def is_sure(self) -> bool:
        """Whether the judge favours one place, beyond noise."""
        return self.p_value <= 1 - self.level

    def sentence(self, judge: str) -> str:
        """What may be said of it."""
        if not self.follows.total:
            return f"{judge} decided no item in both orders: its position bias is not known."
        place = "first" if self.to_first > self.to_second else "second"
        surely = "favours" if self.is_sure else "does not surely favour"
        return (
            f"{judge} {surely} the answer shown {place}: {self.follows.share:.1%} of its verdicts follow the position "
            f"({self.follows.low:.1%} to {self.follows.high:.1%}, {self.follows.total} items decided in both orders), "
            f"{self.to_first} to the first place and {self.to_second} to the second, whichever model it was "
            f"(p = {self.p_value:.2g})."
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "same_verdict": self.same_verdict.share,
            "same_verdict_interval": [self.same_verdict.low, self.same_verdict.high],
            "follows_position": self.follows.share if self.follows.total else None,
            "follows_position_interval": [self.follows.low, self.follows.high],
            "num_decided_in_both": self.follows.total,
            "went_to_the_first": self.to_first,
            "went_to_the_second": self.to_second,
            "first_share": self.first_share.as_dict() if self.first_share else None,
            "p_value": self.p_value,
            "favours_a_place": self.is_sure,
        }


def position_bias(
    places: Sequence[tuple[Place, Place]], *, groups: Sequence[Hashable] | None = None, sampling: Sampling
) -> PositionBias:
    """The bias of a judge from what it said in both orders.

    Args:
      places: an item each: which place won when the first model was shown first, and when the second was.
      groups: what each item belongs to, such as its question; None: every item for itself.
      sampling: the level of the intervals.
    """
    keys = list(range(len(places)) if groups is None else groups)
    counts = Counter(places)
    to_first, to_second = counts["first", "first"], counts["second", "second"]
    decided = [(place, key) for both, key in zip(places, keys, strict=True) for place in both if place != "tie"]
    in_both = [(both, key) for both, key in zip(places, keys, strict=True) if "tie" not in both]
    net: Counter[Hashable] = Counter()
    for both, key in zip(places, keys, strict=True):
        net[key] += (both == ("first", "first")) - (both == ("second", "second"))
    first_share = None
    if decided:
        first_share = estimate_mean(
            [float(place == "first") for place, _ in decided],
            groups=[key for _, key in decided],
            whole=1.0,
            sampling=sampling,
        )
    return PositionBias(
        same_verdict=share([both in _SAME_MODEL for both in places], groups=keys, sampling=sampling),
        follows=share(
            [both[0] == both[1] for both, _ in in_both], groups=[key for _, key in in_both], sampling=sampling
        ),
        to_first=to_first,
        to_second=to_second,
        first_share=first_share,
        p_value=sign_test_p_value(sum(one > 0 for one in net.values()), sum(one < 0 for one in net.values())),
        level=sampling.level,
    )
