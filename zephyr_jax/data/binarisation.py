"""From a prompt's scored answers to one preference pair (chosen, rejected), by rules that published data sets used.

| rule | score of an answer | rejected | as in |
|---|---|---|---|
| best_vs_random | mean of its aspects | any other, at random | Zephyr's paper (arXiv 2310.16944, section 3) |
| best_vs_worst | mean of its aspects | the lowest score | |
| buggy_overall_score | overall_score as it stands | any other, at random | HuggingFaceH4/ultrafeedback_binarized |
| argilla | mean of its aspects | a lower score, at random | argilla/ultrafeedback-binarized-preferences |

Chosen is always an answer with the highest score. What counts as what:

  N/A      an aspect rated N/A, or without a rating (null), is left out of the mean; answers of one prompt may so be
           compared by different aspects, as in both releases.
  null     an answer without a score (no aspect rated, no overall_score) or without text takes no part.
  ties     among several best, or several worst, one is drawn. A pair whose two scores are equal says nothing: it is
           dropped, or kept with `keep_ties` (the H4 release has such pairs, Argilla's cleaned one has none).
  margin   a pair whose scores differ by less is dropped; `argilla` draws among the answers that are lower by at least
           the margin.
  equal    an answer with the text of the chosen one is never the rejected one.

The bug: the first release's annotation script multiplied overall scores <= 1 by ten, so that the worst answers got 10
(github.com/OpenBMB/UltraFeedback, issue 8). The score `overall_score` is without it: see `repaired_overall_score`.

A draw depends on the seed, the prompt's id and the answers' texts alone: not on other rows, not on the order of rows or
answers. (The H4 release restarted Python's generator with each row, so its rejected answer was the first of four, or
the third where the first was chosen; that is not reproduced.) No JAX.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from zephyr_jax.data.feedback_rows import ASPECTS
from zephyr_jax.records import InputError, ReadReport, ScoredCompletion, ScoredCompletions

_TOLERANCE = 1e-9  # means of thirds: 14/3 - 11/3 is not 1


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """What an answer's score is (a key of SCORES), and which other answer is rejected: random, lower or worst."""

    score: str
    rejected: str


RULES = {
    "best_vs_random": Rule("aspect_mean", "random"),
    "best_vs_worst": Rule("aspect_mean", "worst"),
    "buggy_overall_score": Rule("buggy_overall_score", "random"),
    "argilla": Rule("aspect_mean", "lower"),
}


def aspect_mean(completion: ScoredCompletion) -> float | None:
    """The mean of an answer's ratings, 1 to 5, over the aspects that are rated; None where none is."""
    rated = [rating for rating in completion.ratings.values() if rating is not None]
    return sum(rated) / len(rated) if rated else None


def repaired_overall_score(completion: ScoredCompletion) -> float | None:
    """overall_score without the bug of the first release, by the rule of those who made it (their README, "Update").

    10 and mean of the aspects <= 2   was a 1: 1
    10 and mean of the aspects <= 4   may have been either; they asked the teacher again, and here it is None
    10 otherwise, or nothing rated    as it stands
    any other score                   as it stands
    """
    mean = aspect_mean(completion)
    if completion.overall_score != 10 or mean is None or mean > 4:
        return completion.overall_score
    return 1.0 if mean <= 2 else None


SCORES: dict[str, Callable[[ScoredCompletion], float | None]] = {
    "aspect_mean": aspect_mean,
    "overall_score": repaired_overall_score,
    "buggy_overall_score": lambda completion: completion.overall_score,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BinarisationOptions:
    """How pairs are made.

    Attributes:
      seed: decides every draw.
      rule: a key of RULES.
      score: a key of SCORES, in place of the rule's own (for feedback that has no aspects); None: the rule's.
      margin: least difference of the two scores, on the scale of the score; 0: any.
      keep_ties: keep pairs whose scores are equal; needs margin 0.

    Raises:
      InputError: an unknown name, a margin that is none, or ties kept beside a margin.
    """

    seed: int
    rule: str = "best_vs_random"
    score: str | None = None
    margin: float = 0.0
    keep_ties: bool = False

    def __post_init__(self) -> None:
        _check_name("rule", self.rule, RULES)
        if self.score is not None:
            _check_name("score", self.score, SCORES)
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise InputError(f"margin: got {self.margin}, wanted a number of 0 or more")
        if self.keep_ties and self.margin > 0:
            raise InputError(f"keep_ties: a tie has no margin, but margin is {self.margin}; set one of them only")

    @property
    def score_kind(self) -> str:
        """The score in use."""
        return self.score or RULES[self.rule].score


def _check_name(option: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of those"
        raise InputError(f"{option}: got {name!r}, wanted one of {', '.join(known)}; {hint}")


@dataclasses.dataclass
class BinarisationReport(ReadReport):
    """What became of the rows: beside those dropped (with why), what was seen in their answers.

    Attributes:
      num_pairs: pairs made, one a prompt.
      num_completions: answers in all.
      num_without_text: answers that are empty.
      num_without_score: answers whose score is null.
      num_not_applicable: aspects rated N/A.
      num_unrated: aspects with no rating (null).
      num_tied_best: rows where several answers share the best score, one of them drawn.
      num_ties_kept: pairs with equal scores among those made.
      tens: overall scores of 10: `kept`, `unchecked` (no aspect rated), `repaired` (to 1), `undecided` (to null); what
        the repair says, whether or not the rule uses it.
    """

    num_pairs: int = 0
    num_completions: int = 0
    num_without_text: int = 0
    num_without_score: int = 0
    num_not_applicable: int = 0
    num_unrated: int = 0
    num_tied_best: int = 0
    num_ties_kept: int = 0
    tens: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"kept": 0, "unchecked": 0, "repaired": 0, "undecided": 0}
    )

    def as_dict(self) -> dict[str, Any]:
        """All counts, for a file or a message."""
        counts = ReadReport.as_dict(self)
        del counts["cut"]
        return counts | {
            "pairs": self.num_pairs,
            "completions": self.num_completions,
            "without_text": self.num_without_text,
            "without_score": self.num_without_score,
            "not_applicable": self.num_not_applicable,
            "unrated": self.num_unrated,
            "tied_best": self.num_tied_best,
            "ties_kept": self.num_ties_kept,
            "tens": dict(self.tens),
        }

    def count_completion(self, completion: ScoredCompletion, score: float | None) -> None:
        """Adds one answer, with its score under the rule."""
        self.num_completions += 1
        self.num_without_text += not completion.response.strip()
        self.num_without_score += score is None
        self.num_not_applicable += sum(rating is None for rating in completion.ratings.values())
        self.num_unrated += sum(aspect not in completion.ratings for aspect in ASPECTS)
        if completion.overall_score == 10:
            repaired = repaired_overall_score(completion)
            if aspect_mean(completion) is None:
                self.tens["unchecked"] += 1
            else:
                self.tens["undecided" if repaired is None else "kept" if repaired == 10 else "repaired"] += 1


def binarise(
    record: ScoredCompletions, options: BinarisationOptions, report: BinarisationReport
) -> dict[str, Any] | None:
    """One preference pair of one prompt's answers.

    Args:
      record: the prompt and its answers.
      options: how.
      report: counts what was seen; the row itself (`num_rows`) is counted by who reads.

    Returns:
      A row in the columns of ultrafeedback_binarized (prompt, prompt_id, chosen, rejected, messages, score_chosen,
      score_rejected), and where it comes from: source, chosen_model, rejected_model, chosen_index, rejected_index
      (0-based places in `completions`), rule, score_kind. None where there is no pair, with the reason in the report.
    """
    completions, rule = record.completions, RULES[options.rule]
    scores: list[float | None] = []
    for completion in completions:
        score = SCORES[options.score_kind](completion)
        report.count_completion(completion, score)
        scores.append(score if completion.response.strip() else None)
    scored = {index: score for index, score in enumerate(scores) if score is not None}
    if len(scored) < 2:
        report.count_dropped("fewer than two answers with text and a score")
        return None
    best = max(scored.values())
    tied = [index for index, score in scored.items() if score == best]
    report.num_tied_best += len(tied) > 1
    chosen = _draw(record, tied, options.seed, "chosen")
    text = completions[chosen].response
    others = {index: score for index, score in scored.items() if completions[index].response != text}
    if not others:
        report.count_dropped("no other answer differs from the best")
        return None
    rejected = _draw(record, _rejectable(others, best, rule, options.margin), options.seed, "rejected")
    difference = best - others[rejected]
    if difference == 0 and not options.keep_ties:
        report.count_dropped("chosen and rejected tie")
        return None
    if difference < options.margin - _TOLERANCE:
        report.count_dropped(f"scores differ by less than {options.margin:g}")
        return None
    report.num_ties_kept += difference == 0
    report.num_pairs += 1
    return _pair_row(record, chosen, rejected, (best, others[rejected]), options)


def _rejectable(others: dict[int, float], best: float, rule: Rule, margin: float) -> list[int]:
    """The answers among which the rejected one is drawn."""
    if rule.rejected == "worst":
        worst = min(others.values())
        return [index for index, score in others.items() if score == worst]
    if rule.rejected == "lower":
        lower = [index for index, score in others.items() if score < best]
        far_enough = [index for index in lower if best - others[index] >= margin - _TOLERANCE]
        # Where there are none, the pair is dropped for its margin, or is a tie.
        return far_enough or lower or list(others)
    return list(others)


def _draw(record: ScoredCompletions, indexes: Sequence[int], seed: int, what: str) -> int:
    """The answer whose SHA-256 of seed, purpose, prompt id and text is least: even odds, whatever the order."""

    def key(index: int) -> bytes:
        text = f"{seed}\n{what}\n{record.prompt_id}\n{record.completions[index].response}"
        return hashlib.sha256(text.encode()).digest()

    return min(indexes, key=key)


def _pair_row(
    record: ScoredCompletions, chosen: int, rejected: int, scores: tuple[float, float], options: BinarisationOptions
) -> dict[str, Any]:
    def dialogue(index: int) -> list[dict[str, str]]:
        answer = {"role": "assistant", "content": record.completions[index].response}
        return [*({"role": m["role"], "content": m["content"]} for m in record.prompt), answer]

    return {
        "prompt": record.instruction,
        "prompt_id": record.prompt_id,
        "chosen": dialogue(chosen),
        "rejected": dialogue(rejected),
        "messages": dialogue(chosen),
        "score_chosen": scores[0],
        "score_rejected": scores[1],
        "source": record.source,
        "chosen_model": record.completions[chosen].model,
        "rejected_model": record.completions[rejected].model,
        "chosen_index": chosen,
        "rejected_index": rejected,
        "rule": options.rule,
        "score_kind": options.score_kind,
    }
