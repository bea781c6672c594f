"""Preferences as plain comparisons of two answers, with who wrote them: what a data report counts.

A row of preference pairs is one comparison. A row of AI feedback is as many as it has pairs of answers whose scores
differ. Not here: the statistics (`comparison_statistics.py`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from zephyr_jax.data.feedback_rows import parse_feedback
from zephyr_jax.data.rows import RowError, pair_columns, parse_pair
from zephyr_jax.records import Message, ScoredCompletion


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One answer preferred to another.

    Attributes:
      prompt: every message before the answers.
      chosen, rejected: the answers.
      score_chosen, score_rejected: the judge's scores, or None.
      chosen_model, rejected_model: who answered, or None.
      source: where the row says that it is from, or its file.
      location: where the row was read, `file:line`.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    score_chosen: float | None
    score_rejected: float | None
    chosen_model: str | None
    rejected_model: str | None
    source: str
    location: str

    @property
    def margin(self) -> float | None:
        """By how much the chosen answer's score is above the other's; None where one has none."""
        if self.score_chosen is None or self.score_rejected is None:
            return None
        return self.score_chosen - self.score_rejected


def comparison_of_pair(row: Mapping[str, Any], location: str, *, file: str) -> Comparison:
    """The comparison of a row of preference pairs.

    Raises:
      RowError: as `rows.parse_pair`.
    """
    pair = parse_pair(row, location)
    names = pair_columns(row)
    chosen_model, rejected_model = names.get("chosen_model"), names.get("rejected_model")
    return Comparison(
        pair.prompt,
        pair.chosen,
        pair.rejected,
        pair.score_chosen,
        pair.score_rejected,
        None if chosen_model is None else str(chosen_model),
        None if rejected_model is None else str(rejected_model),
        str(row.get("source") or file),
        location,
    )


def comparisons_of_feedback(
    row: Mapping[str, Any],
    location: str,
    *,
    file: str,
    score: Callable[[ScoredCompletion], float | None],
) -> tuple[list[Comparison], int]:
    """All comparisons of a row of AI feedback whose two scores differ, and how many pairs of its answers tie.

    Raises:
      RowError: as `feedback_rows.parse_feedback`, or fewer than two answers have text and a score.
    """
    record = parse_feedback(row, location)
    scored = [(score(answer), answer) for answer in record.completions if answer.response.strip()]
    ranked = [(value, answer) for value, answer in scored if value is not None]
    if len(ranked) < 2:
        raise RowError("fewer than two answers with text and a score")
    found: list[Comparison] = []
    num_ties = 0
    for first, second in itertools.combinations(ranked, 2):
        (high, chosen), (low, rejected) = (first, second) if first[0] > second[0] else (second, first)
        if high == low:
            num_ties += 1
            continue
        texts, models = (chosen.response, rejected.response), (chosen.model, rejected.model)
        found.append(Comparison(record.prompt, *texts, high, low, *models, record.source or file, location))
    return found, num_ties
