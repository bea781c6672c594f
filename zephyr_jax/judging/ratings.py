"""Reads what a teacher said of answers: strictly, so that a rating is there as meant or not at all.

Not here: the words of the question (rubrics.py), and asking again (calls.py).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from zephyr_jax.judging.protocol import AnswerSchema, Reply, whole_characters

DIGITS = ("1", "2", "3", "4", "5")
NOT_APPLICABLE = "N/A"
# Servers without a JSON mode often put the object in a fence; nothing else is forgiven.
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class Rating:
    """One answer's rating by one aspect: the text of a number from 1 to 5 or N/A, and the teacher's reason if any."""

    rating: str
    rationale: str | None


def ratings_schema(num_answers: int, *, may_be_inapplicable: bool) -> AnswerSchema:
    """The JSON that `parse_ratings` reads, as a schema within what strict modes of servers take."""
    entry = {
        "type": "object",
        "properties": {
            "answer": {"type": "integer"},
            "rationale": {"type": "string"},
            "rating": {"type": "string", "enum": [*DIGITS, *([NOT_APPLICABLE] if may_be_inapplicable else [])]},
        },
        "required": ["answer", "rationale", "rating"],
        "additionalProperties": False,
    }
    ratings = {"type": "array", "items": entry, "minItems": num_answers, "maxItems": num_answers}
    return AnswerSchema(
        "ratings",
        {
            "type": "object",
            "properties": {"ratings": ratings},
            "required": ["ratings"],
            "additionalProperties": False,
        },
    )


def parse_ratings(text: str, num_answers: int, *, may_be_inapplicable: bool) -> list[Rating] | None:
    """Ratings of answers 1 to `num_answers`, in this order.

    Args:
      text: one JSON object (in a fence or not): {"ratings": [{"answer": 1, "rationale": "...", "rating": "4"}, ...]};
        a rating may be a whole number too.
      num_answers: entries there must be, one for each answer.
      may_be_inapplicable: whether N/A is a rating.

    Returns:
      The ratings; None where the text is anything else.
    """
    fenced = _FENCE.fullmatch(text)
    try:
        content = json.loads(fenced.group(1) if fenced else text, object_pairs_hook=_once_each)
        entries = content["ratings"]
        found = {_place(entry["answer"]): _rating(entry, may_be_inapplicable) for entry in entries}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if len(entries) != num_answers or set(found) != set(range(1, num_answers + 1)):
        return None
    return [found[number] for number in range(1, num_answers + 1)]


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one that says a thing twice is not read, since which it means would be a guess."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(pairs)
    return content


def _place(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(value)
    return value


def _rating(entry: Any, may_be_inapplicable: bool) -> Rating:
    rating, rationale = entry["rating"], entry["rationale"]
    text = str(rating) if type(rating) is int else rating
    allowed = (*DIGITS, NOT_APPLICABLE) if may_be_inapplicable else DIGITS
    if text not in allowed or not isinstance(rationale, str) or not rationale.strip():
        raise ValueError(entry)
    return Rating(text, whole_characters(rationale.strip()))


def expected_rating(reply: Reply) -> Rating | None:
    """The mean of the digits 1 to 5 under their probabilities as the next token, renormalised to the digits.

    sum_d d p(d) / sum_d p(d)   (arXiv:2303.16634, section 2, weights scores so; a digit not listed counts as p = 0)

    Args:
      reply: to a request whose choices are DIGITS.

    Returns:
      The rating with four decimals; None where no digit is among the likely tokens.
    """
    mean = expected_digit(reply.choice_logprobs, DIGITS)
    return None if mean is None else Rating(f"{mean:.4f}", None)


def expected_digit(logprobs: Sequence[float | None], digits: Sequence[str]) -> float | None:
    """The mean of digits under the log-probabilities of each as the next token, renormalised; see expected_rating."""
    weights = [0.0 if logprob is None else math.exp(logprob) for logprob in logprobs]
    total = sum(weights)
    if not total > 0:
        return None
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True)) / total
