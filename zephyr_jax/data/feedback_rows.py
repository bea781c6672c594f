"""From one row in UltraFeedback's raw layout to its scored answers, or to the reason why it has none.

    {"source": "...", "instruction": "Which day follows Monday?",
     "completions": [{"model": "...", "principle": "honesty", "response": "Tuesday.", "overall_score": 7.5,
                      "annotations": {"honesty": {"Rating": "N/A", "Rationale": "..."},
                                      "helpfulness": {"Rating": "4", "Rationale": "..."}, ...}}, ...]}

Not here: what is made of the scores, which is `binarisation.py`'s.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from zephyr_jax.data.rows import RowError, checked_text, parse_prompt
from zephyr_jax.records import ScoredCompletion, ScoredCompletions

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def parse_feedback(row: Mapping[str, Any], location: str) -> ScoredCompletions:
    """Validates a row of AI feedback.

    Ratings are numbers from 1 to 5 or N/A, as numbers or as text (the release has whole numbers as text; ours may be
    expected values under a judge's probabilities, with decimals); a null aspect, a null
    rating and a null overall_score are no fault of the row: that answer simply lacks them. Annotations beside the four
    aspects are ignored, and so are rationales.

    Args:
      row: column name -> value: `instruction` and `completions`; `prompt_id` and `source` where there are such; and
        `messages`, ending with a user's turn, where the prompt is more than one turn.
      location: where the row was read, `file:line`.

    Returns:
      The prompt and its answers, their text untouched.

    Raises:
      RowError: there is no instruction, no list of answers, or an answer whose response, rating or score is none.
    """
    instruction = checked_text(row.get("instruction"), "instruction")
    completions = row.get("completions")
    if not isinstance(completions, list | tuple):
        raise RowError("completions is not a list of answers")
    if not completions:
        raise RowError("completions is empty")
    prompt_id, source = row.get("prompt_id"), row.get("source")
    return ScoredCompletions(
        parse_prompt({"messages": row.get("messages"), "prompt": instruction}, location),
        instruction,
        hashlib.sha256(instruction.encode()).hexdigest() if prompt_id is None else str(prompt_id),
        tuple(map(_completion, completions)),
        None if source is None else str(source),
        location,
    )


def _completion(completion: Any) -> ScoredCompletion:
    if not isinstance(completion, Mapping):
        raise RowError("an answer is not an object")
    response, model = completion.get("response"), completion.get("model")
    if not isinstance(response, str):
        raise RowError("a response is not text")
    if response.strip():
        checked_text(response, "a response")
    annotations = completion.get("annotations")
    if not isinstance(annotations, Mapping | None):
        raise RowError("annotations of an answer is not an object")
    return ScoredCompletion(
        None if model is None else str(model),
        response,
        _ratings(annotations or {}),
        _overall_score(completion.get("overall_score")),
    )


def _ratings(annotations: Mapping[str, Any]) -> dict[str, float | None]:
    ratings: dict[str, float | None] = {}
    for aspect in ASPECTS:
        annotation = annotations.get(aspect)
        if annotation is None:
            continue
        if not isinstance(annotation, Mapping):
            raise RowError(f"the annotation of {aspect} is not an object with a Rating")
        rating = annotation.get("Rating")
        if rating is None:
            continue
        if _is_not_applicable(rating):
            ratings[aspect] = None
            continue
        number = _number(rating)
        if number is None or not 1 <= number <= 5:
            raise RowError(f"a rating of {aspect} is neither 1 to 5 nor N/A")
        ratings[aspect] = number
    return ratings


def _overall_score(score: Any) -> float | None:
    if score is None or _is_not_applicable(score):
        return None
    number = _number(score)
    if number is None:
        raise RowError("an overall_score is neither null nor a finite number")
    return number


def _is_not_applicable(value: Any) -> bool:
    return isinstance(value, str) and value.strip().upper() == "N/A"


def _number(value: Any) -> float | None:
    """A finite number, given as one or as text; None where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
