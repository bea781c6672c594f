"""AlpacaEval 1 and 2 from annotations: win rate, standard error, interval, average length.

An annotation says which of two outputs to one instruction a judge prefers: 1 is the baseline's (`generator_1`), 2 the
model's (`generator_2`), 0 or 1.5 a tie, and in version 2 any number between by the judge's probabilities. A preference
that is null, or no number from 1 to 2, is a judgment that could not be parsed: it is counted and left out. The fields
of a result have the names that AlpacaEval's leaderboards give them; a win rate is in per cent.

Source of the rules: alpaca_eval's metrics/winrate.py and metrics/helpers.py. Not here: the length-controlled win rate
(length_control.py), and asking a judge.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zephyr_jax.evaluation.position import Place, PositionBias, position_bias
from zephyr_jax.evaluation.statistics import Estimate, Sampling, estimate_mean, is_noise, p_values, sign_flip_p_value
from zephyr_jax.evaluation.stored_rows import field, number_or_none, read_rows
from zephyr_jax.records import InputError

_WANTED = "an annotation of AlpacaEval, with generator_1, generator_2 and preference (a number or null)"
_BY_ORDER = "preference_by_order with two preferences (numbers or null)"


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
    """A judge's preference between two outputs to one instruction.

    Attributes:
      index: the instruction's place in the set, from 0; the row's own, or else the row's place in its file.
      instruction: its text, or None.
      baseline, model: who wrote output 1 and output 2.
      annotator: the judge's name, or None.
      preference: 1 (baseline) to 2 (model), 1.5 a tie; None where the judgment could not be parsed.
      length_baseline, length_model: characters of the outputs; None where the row has neither outputs nor lengths.
      location: where it was read, `file:line`.
      by_order: where both orders were judged, the preference with the baseline's output shown first, and with the
        model's; None for an order that could not be parsed.
    """

    index: int
    instruction: str | None
    baseline: str
    model: str
    annotator: str | None
    preference: float | None
    length_baseline: int | None
    length_model: int | None
    location: str
    by_order: tuple[float | None, float | None] | None = None


def read_annotations(sources: Iterable[str]) -> list[Annotation]:
    """Annotations of one or several files, as alpaca_eval writes them (`annotations.json`) or a line each.

    Raises:
      InputError: a file cannot be read, a row is no annotation, an item is annotated twice, or an index stands for two
        instructions.
    """
    found: dict[tuple[str, str, str | None, int], Annotation] = {}
    for source in sources:
        for place, (location, row) in enumerate(read_rows(source)):
            annotation = parse_annotation(row, place, location)
            key = (annotation.model, annotation.baseline, annotation.annotator, annotation.index)
            if key in found:
                raise InputError(
                    f"{location}: {annotation.model} on instruction {annotation.index} is annotated before, at "
                    f"{found[key].location}; wanted each once by a judge, so drop one of the files or rows"
                )
            found[key] = annotation
    check_instructions(found.values())
    return list(found.values())


def check_instructions(annotations: Iterable[Annotation]) -> None:
    """Raises InputError where one index stands for two instructions: items are matched by it, and would be others'."""
    first: dict[int, Annotation] = {}
    for annotation in annotations:
        if annotation.instruction is None:
            continue
        other = first.setdefault(annotation.index, annotation)
        if other.instruction != annotation.instruction:
            raise InputError(
                f"{annotation.location}: instruction {annotation.index} is {annotation.instruction[:40]!r}, but at "
                f"{other.location} it is {(other.instruction or '')[:40]!r}; wanted the set's order, or its `index` in "
                "every row"
            )


def parse_annotation(row: Mapping[str, Any], place: int, location: str) -> Annotation:
    """One row; `place` is its index where it has none of its own.

    Raises:
      InputError: it is no annotation.
    """
    preference = number_or_none(row, "preference", location, wanted=_WANTED)
    if preference == 0:  # the older mark of a tie
        preference = 1.5
    if preference is not None and not 1 <= preference <= 2:
        preference = None
    annotator = row.get("annotator")
    return Annotation(
        index=field(row, "index", int, location, wanted=_WANTED) if "index" in row else place,
        instruction=row.get("instruction"),
        baseline=field(row, "generator_1", str, location, wanted=_WANTED),
        model=field(row, "generator_2", str, location, wanted=_WANTED),
        annotator=None if annotator is None else str(annotator),
        preference=preference,
        length_baseline=_length(row, 1),
        length_model=_length(row, 2),
        location=location,
        by_order=_by_order(row, location),
    )


def _by_order(row: Mapping[str, Any], location: str) -> tuple[float | None, float | None] | None:
    """A field of ours, beside alpaca_eval's."""
    if row.get("preference_by_order") is None:
        return None
    first, second = (
        number_or_none({"preference_by_order": value}, "preference_by_order", location, wanted=_BY_ORDER)
        for value in field(row, "preference_by_order", list, location, wanted=_BY_ORDER)
    )
    return first, second


def _length(row: Mapping[str, Any], number: int) -> int | None:
    output, length = row.get(f"output_{number}"), row.get(f"len_{number}")
    if isinstance(output, str):
        return len(output)
    return length if isinstance(length, int) else None


@dataclasses.dataclass(frozen=True, slots=True)
class WinRate:
    """How one model does against the baseline, by one judge.

    Attributes:
      model, baseline, annotator: who is judged against whom, and by whom.
      estimate: of the mean preference for the model, 0 to 1.
      wins, losses, ties: of the parsed judgments; a win is any preference above 1.5.
      num_unparsed: judgments left out.
      discrete: the share of wins, ties half, when every preference is rounded to 1 or 2.
      mean_length, mean_baseline_length: mean characters of all outputs; None where they are not known.
      longer_wins: of the decided judgments where one output is longer, how many went to it; (count, of).
      p_value: two-sided, that model and baseline are equally good (sign-flip test).
      level: of the interval.
      position: what the order of the outputs did to the judge; None where no pair was judged in both orders.
      p_adjusted, num_compared: see `statistics.Tested`.
    """

    model: str
    baseline: str
    annotator: str | None
    estimate: Estimate
    wins: int
    losses: int
    ties: int
    num_unparsed: int
    discrete: float
    mean_length: float | None
    mean_baseline_length: float | None
    longer_wins: tuple[int, int]
    p_value: float
    level: float
    position: PositionBias | None = None
    p_adjusted: float | None = None
    num_compared: int = 1

    @property
    def label(self) -> str:
        """Who was judged against whom."""
        return f"{self.model} against {self.baseline}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; rates in per cent."""
        low, high = self.estimate.low, self.estimate.high
        return {
            "model": self.model,
            "baseline": self.baseline,
            "annotator": self.annotator,
            "win_rate": 100 * self.estimate.mean,
            "standard_error": _percent(self.estimate.standard_error),
            "interval": None if low is None or high is None else [100 * low, 100 * high],
            "n_wins": self.wins,
            "n_wins_base": self.losses,
            "n_draws": self.ties,
            "n_total": self.estimate.num_items,
            "n_unparsed": self.num_unparsed,
            "discrete_win_rate": 100 * self.discrete,
            "avg_length": None if self.mean_length is None else int(self.mean_length),
            "avg_length_baseline": None if self.mean_baseline_length is None else int(self.mean_baseline_length),
            "longer_wins": list(self.longer_wins),
            **p_values(self),
            "position": self.position.as_dict() if self.position else None,
        }

    @property
    def within_noise(self) -> bool:
        """Whether the model's difference from the baseline counts as noise."""
        return is_noise(self)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def by_contest(annotations: Iterable[Annotation]) -> dict[tuple[str, str, str | None], list[Annotation]]:
    """(model, baseline, annotator) -> its annotations, in the order of their first rows."""
    contests: dict[tuple[str, str, str | None], list[Annotation]] = {}
    for annotation in annotations:
        contests.setdefault((annotation.model, annotation.baseline, annotation.annotator), []).append(annotation)
    return contests


def scores_by_instruction(annotations: Iterable[Annotation]) -> dict[Hashable, float]:
    """Index -> preference for the model, 0 to 1; what could not be parsed is not in it."""
    return {a.index: a.preference - 1 for a in annotations if a.preference is not None}


def win_rate(annotations: Sequence[Annotation], *, sampling: Sampling) -> WinRate:
    """The result of one contest.

    win rate = mean(preference - 1); standard error = s / sqrt(N)   (alpaca_eval, metrics/helpers.py)

    Args:
      annotations: of one model, baseline and judge.
      sampling: how the interval and the p-value are drawn.

    Raises:
      InputError: no judgment could be parsed.
    """
    first = annotations[0]
    scores_N = np.array([score for _, score in sorted(scores_by_instruction(annotations).items(), key=str)])
    if not len(scores_N):
        raise InputError(
            f"{first.location}: none of the {len(annotations)} judgments of {first.model} against {first.baseline} has "
            "a preference from 1 to 2; wanted some that could be parsed"
        )
    places = [found for annotation in annotations if (found := places_of(annotation)) is not None]
    wins, losses = int((scores_N > 0.5).sum()), int((scores_N < 0.5).sum())
    # Rounding comes after ties are set apart, so that a tie stays one.
    rounded_N = np.where(scores_N == 0.5, 0.5, np.round(scores_N))
    return WinRate(
        model=first.model,
        baseline=first.baseline,
        annotator=first.annotator,
        estimate=estimate_mean(scores_N, whole=1.0, sampling=sampling),
        wins=wins,
        losses=losses,
        ties=len(scores_N) - wins - losses,
        num_unparsed=len(annotations) - len(scores_N),
        discrete=float(rounded_N.mean()),
        mean_length=_mean_length([a.length_model for a in annotations]),
        mean_baseline_length=_mean_length([a.length_baseline for a in annotations]),
        longer_wins=_longer_wins(annotations),
        p_value=sign_flip_p_value(scores_N - 0.5, sampling=sampling),
        level=sampling.level,
        position=position_bias(places, sampling=sampling) if places else None,
    )


def places_of(annotation: Annotation) -> tuple[Place, Place] | None:
    """Which place won in either order; None where both were not judged, or could not be parsed."""
    if annotation.by_order is None:
        return None
    baseline_first, model_first = annotation.by_order
    if baseline_first is None or model_first is None:
        return None
    return _place(1.5 - baseline_first), _place(model_first - 1.5)


def _place(for_the_first: float) -> Place:
    return "tie" if for_the_first == 0 else "first" if for_the_first > 0 else "second"


def _mean_length(lengths: Sequence[int | None]) -> float | None:
    known = [length for length in lengths if length is not None]
    return math.fsum(known) / len(known) if len(known) == len(lengths) else None


def _longer_wins(annotations: Sequence[Annotation]) -> tuple[int, int]:
    outcomes: Counter[bool] = Counter()
    for annotation in annotations:
        if annotation.length_model is None or annotation.length_baseline is None or annotation.preference is None:
            continue
        difference, margin = annotation.length_model - annotation.length_baseline, annotation.preference - 1.5
        if difference and margin:
            outcomes[(difference > 0) == (margin > 0)] += 1
    return outcomes[True], outcomes.total()
