"""MT-Bench from stored judgments: gradings parsed and averaged as FastChat does, by turn and by category.

Score = mean over all gradings that could be parsed (a rating of -1 could not). Source of the rules: FastChat's
llm_judge/common.py and show_result.py. Not here: FastChat's files (fastchat_files.py), two answers judged against each
other (pairwise.py), and asking a judge.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from zephyr_jax.evaluation.fastchat_files import UNPARSED, Grading
from zephyr_jax.evaluation.statistics import Estimate, Sampling, estimate_mean

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
RATINGS = (1.0, 10.0)  # the least and the greatest that a judge is asked for

_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]", re.ASCII)
_MAX_RATING_CHARACTERS = 15  # a judge that repeats a digit without end has rated nothing
_RATING_FALL_BACK = re.compile(r"\[(\d+\.?\d*)\]", re.ASCII)


def parse_rating(judgment: str) -> float:
    """The rating in a judge's text: the first `[[x]]`, else the first `[x]`, else UNPARSED (-1)."""
    found = _RATING.search(judgment) or _RATING_FALL_BACK.search(judgment)
    if found is None or len(found[1]) > _MAX_RATING_CHARACTERS:
        return UNPARSED
    return float(found[1]) if "." in found[1] else int(found[1])


@dataclasses.dataclass(frozen=True, slots=True)
class BenchScore:
    """One model's MT-Bench score by one judge.

    Attributes:
      model, judge: who was graded by whom.
      estimate: of the score; its groups are questions.
      turns: turn -> estimate.
      categories: category -> estimate, in MT-Bench's order; questions that no file knows are under "unknown".
      num_unparsed: gradings left out.
      num_outside: gradings that count, but are not from 1 to 10 (FastChat lets them).
      num_contradicted: gradings whose text does not say their score.
      rounds: means of the first, second ... grading of every answer; one where nothing was graded twice.
    """

    model: str
    judge: str
    estimate: Estimate
    turns: dict[int, Estimate]
    categories: dict[str, Estimate]
    num_unparsed: int
    num_outside: int
    num_contradicted: int
    rounds: tuple[float, ...]

    @property
    def judge_spread(self) -> float | None:
        """Standard deviation between rounds of judging the same answers; None where there was one."""
        return statistics.stdev(self.rounds) if len(self.rounds) > 1 else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("score", "standard_error")
        return {
            "model": self.model,
            "judge": self.judge,
            **self.estimate.as_dict(names),
            "turns": {str(turn): estimate.as_dict(names) for turn, estimate in self.turns.items()},
            "categories": {name: estimate.as_dict(names) for name, estimate in self.categories.items()},
            "num_unparsed": self.num_unparsed,
            "num_outside": self.num_outside,
            "num_contradicted": self.num_contradicted,
            "rounds": list(self.rounds),
            "judge_spread": self.judge_spread,
        }


def by_model(gradings: Iterable[Grading]) -> dict[tuple[str, str], list[Grading]]:
    """(model, judge) -> its gradings, in the order of their first rows."""
    models: dict[tuple[str, str], list[Grading]] = {}
    for grading in gradings:
        models.setdefault((grading.model, grading.judge), []).append(grading)
    return models


def scores_by_answer(gradings: Iterable[Grading]) -> dict[Hashable, float]:
    """(question, turn) -> mean of its parsed gradings, over repetitions."""
    scores: dict[Hashable, list[float]] = {}
    for grading in gradings:
        if grading.score != UNPARSED:
            scores.setdefault((grading.question_id, grading.turn), []).append(grading.score)
    return {answer: statistics.fmean(values) for answer, values in scores.items()}


def bench_score(
    gradings: Sequence[Grading], category_of: Mapping[int, str], *, sampling: Sampling
) -> BenchScore | None:
    """The score of one model by one judge.

    Args:
      gradings: all of one model by one judge, in the order in which they were made.
      category_of: question -> category.
      sampling: how intervals are drawn.

    Returns:
      The score; None where no grading could be parsed.
    """
    parsed = [grading for grading in gradings if grading.score != UNPARSED]
    if not parsed:
        return None

    def estimate(chosen: Iterable[Grading]) -> Estimate:
        rows = list(chosen)
        groups = [g.question_id for g in rows]
        return estimate_mean([g.score for g in rows], groups=groups, within=RATINGS, sampling=sampling)

    categories = [category_of.get(grading.question_id, "unknown") for grading in parsed]
    order = [*CATEGORIES, *sorted(set(categories) - set(CATEGORIES))]
    return BenchScore(
        model=parsed[0].model,
        judge=parsed[0].judge,
        estimate=estimate(parsed),
        turns={
            turn: estimate(g for g in parsed if g.turn == turn) for turn in sorted({grading.turn for grading in parsed})
        },
        categories={
            name: estimate(g for g, category in zip(parsed, categories, strict=True) if category == name)
            for name in order
            if name in categories
        },
        num_unparsed=len(gradings) - len(parsed),
        num_outside=sum(not RATINGS[0] <= grading.score <= RATINGS[1] for grading in parsed),
        num_contradicted=sum(parse_rating(grading.judgment) != grading.score for grading in gradings),
        rounds=_rounds(gradings),
    )


def _rounds(gradings: Sequence[Grading]) -> tuple[float, ...]:
    seen: Counter[tuple[int, int]] = Counter()
    rounds: dict[int, list[float]] = {}
    for grading in gradings:
        item = (grading.question_id, grading.turn)
        if grading.score != UNPARSED:
            rounds.setdefault(seen[item], []).append(grading.score)
        seen[item] += 1
    return tuple(statistics.fmean(rounds[number]) for number in sorted(rounds))
