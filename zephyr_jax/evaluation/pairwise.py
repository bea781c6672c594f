"""Two models' answers judged against each other in both orders: who wins, and how much the order decides.

A model wins a question when it wins in both orders; anything else is a tie, and a game that could not be parsed drops
the question (FastChat's show_result.py). What is left when the orders disagree is the judge's position bias
(position.py).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from zephyr_jax.evaluation.fastchat_files import PairJudgment
from zephyr_jax.evaluation.position import Place, PositionBias, position_bias
from zephyr_jax.evaluation.statistics import Estimate, Sampling, estimate_mean, is_noise, p_values, sign_flip_p_value

# Game 1 shows model_1 first, game 2 model_2.
_PLACES: tuple[dict[str, Place], dict[str, Place]] = (
    {"model_1": "first", "model_2": "second", "tie": "tie"},
    {"model_2": "first", "model_1": "second", "tie": "tie"},
)


def parse_verdict(judgment: str) -> str:
    """Which answer a judge's text prefers: A, B or tie; error where it says neither `[[A]]`, `[[B]]` nor `[[C]]`."""
    for mark, verdict in (("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie")):
        if mark in judgment:
            return verdict
    return "error"


def outcome(judgment: PairJudgment) -> str:
    """model_1, model_2, tie (the orders disagree, too) or error (a game could not be parsed)."""
    first, second = judgment.verdicts
    if "error" in judgment.verdicts:
        return "error"
    return first if first == second else "tie"


@dataclasses.dataclass(frozen=True, slots=True)
class PairResult:
    """How model_1 does against model_2 by one judge.

    Attributes:
      model_1, model_2, judge: who against whom, and by whom.
      wins, losses, ties: of model_1, over turns of questions.
      num_errors: left out.
      estimate: of model_1's win rate, 0 to 1, ties half; groups are questions.
      p_value: two-sided, that neither is better (sign-flip test over the questions).
      position: what the order decided, of what was parsed.
      level: of the intervals.
      p_adjusted, num_compared: see `statistics.Tested`.
    """

    model_1: str
    model_2: str
    judge: str
    wins: int
    losses: int
    ties: int
    num_errors: int
    estimate: Estimate
    p_value: float
    position: PositionBias
    level: float
    p_adjusted: float | None = None
    num_compared: int = 1

    @property
    def within_noise(self) -> bool:
        """Whether the difference of the two counts as noise."""
        return is_noise(self)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model_1": self.model_1,
            "model_2": self.model_2,
            "judge": self.judge,
            "win": self.wins,
            "loss": self.losses,
            "tie": self.ties,
            "num_errors": self.num_errors,
            **self.estimate.as_dict(("win_rate_adjusted", "standard_error")),
            **p_values(self),
            "position": self.position.as_dict(),
        }


def by_contest(judgments: Iterable[PairJudgment]) -> dict[tuple[str, str, str], list[PairJudgment]]:
    """(model_1, model_2, judge) -> its judgments; of two models named in either order, the first row's order holds."""
    contests: dict[tuple[str, str, str], list[PairJudgment]] = {}
    for judgment in judgments:
        key = (judgment.model_1, judgment.model_2, judgment.judge)
        turned = (judgment.model_2, judgment.model_1, judgment.judge)
        contests.setdefault(turned if turned in contests else key, []).append(
            _turned(judgment) if turned in contests else judgment
        )
    return contests


def _turned(judgment: PairJudgment) -> PairJudgment:
    """The same judgment with model_1 and model_2 named the other way round, so that game 1 is game 2."""
    other = {"model_1": "model_2", "model_2": "model_1"}
    first, second = (other.get(verdict, verdict) for verdict in judgment.verdicts)
    return dataclasses.replace(
        judgment,
        model_1=judgment.model_2,
        model_2=judgment.model_1,
        verdicts=(second, first),
        user_prompts=judgment.user_prompts[::-1],
        judgments=judgment.judgments[::-1],
    )


def pair_result(judgments: Sequence[PairJudgment], *, sampling: Sampling) -> PairResult | None:
    """The result of one contest; None where nothing could be parsed."""
    first = judgments[0]
    outcomes = [outcome(judgment) for judgment in judgments]
    parsed = [(j, o) for j, o in zip(judgments, outcomes, strict=True) if o != "error"]
    if not parsed:
        return None
    counts = Counter(outcomes)
    score = {"model_1": 1.0, "model_2": 0.0, "tie": 0.5}
    scores = [score[o] for _, o in parsed]
    by_question: dict[int, float] = {}
    for (judgment, _), value in zip(parsed, scores, strict=True):
        by_question[judgment.question_id] = by_question.get(judgment.question_id, 0.0) + value - 0.5
    questions = [judgment.question_id for judgment, _ in parsed]
    return PairResult(
        model_1=first.model_1,
        model_2=first.model_2,
        judge=first.judge,
        wins=counts["model_1"],
        losses=counts["model_2"],
        ties=counts["tie"],
        num_errors=counts["error"],
        estimate=estimate_mean(scores, groups=questions, whole=1.0, sampling=sampling),
        p_value=sign_flip_p_value(
            np.array([by_question[question] for question in sorted(by_question)]), sampling=sampling
        ),
        position=position_bias([places_of(j) for j, _ in parsed], groups=questions, sampling=sampling),
        level=sampling.level,
    )


def places_of(judgment: PairJudgment) -> tuple[Place, Place]:
    """Which place won each game; of a judgment without an error."""
    first, second = (places[verdict] for places, verdict in zip(_PLACES, judgment.verdicts, strict=True))
    return first, second
