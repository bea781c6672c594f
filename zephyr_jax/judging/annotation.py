"""Step (c): the teacher scores the answers to each prompt, aspect by aspect; rows in UltraFeedback's raw layout.

`json`: all answers to a prompt in one call per aspect, in an order drawn for that aspect, each with a reason.
`logprobs`: each answer alone, by the probabilities of the digits. An answer without text is not shown and not scored,
and where no two answers differ none is: no pair could be made of them.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from zephyr_jax.feedback_recipe import AnnotationOptions
from zephyr_jax.judging.calls import Caller, ask_until
from zephyr_jax.judging.protocol import ChatRequest, derived_seed, draw_order
from zephyr_jax.judging.ratings import DIGITS, Rating, expected_rating, parse_ratings, ratings_schema
from zephyr_jax.judging.rubrics import ASPECT_RUBRICS, digit_messages, rating_messages
from zephyr_jax.records import Message

# Place of a completion in its row -> its rating, for the places that a call was about.
Ratings = dict[int, Rating]
Job = Callable[[], Awaitable["Ratings | None"]]


def prompt_messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The prompt of a row."""
    return tuple(row.get("messages") or ({"role": "user", "content": row["instruction"]},))


def annotation_jobs(
    rows: Sequence[Mapping[str, Any]],
    options: AnnotationOptions,
    teacher: Caller,
    *,
    seed: int,
    unusable: collections.Counter[str],
) -> list[tuple[tuple[int, str], Job]]:
    """All calls of the step: ((row, aspect), job that gives ratings, or None where none could be had)."""
    jobs: list[tuple[tuple[int, str], Job]] = []
    for index, row in enumerate(rows):
        places = [place for place, completion in enumerate(row["completions"]) if completion["response"]]
        if len({row["completions"][place]["response"] for place in places}) < 2:
            continue
        for aspect in options.aspects:
            ask = functools.partial(_rate, row, aspect, options, teacher, seed=seed, unusable=unusable)
            groups = [places] if options.rating == "json" else [[place] for place in places]
            jobs += [((index, aspect), functools.partial(ask, group)) for group in groups]
    return jobs


async def _rate(
    row: Mapping[str, Any],
    aspect: str,
    options: AnnotationOptions,
    teacher: Caller,
    places: Sequence[int],
    *,
    seed: int,
    unusable: collections.Counter[str],
) -> Ratings | None:
    """One question about the answers at `places`, asked until it is answered."""
    prompt_id = row["prompt_id"]
    order = [int(place) for place in draw_order([str(place) for place in places], seed, "shuffle", prompt_id, aspect)]
    answers = [row["completions"][place]["response"] for place in order]
    may_be_inapplicable = ASPECT_RUBRICS[aspect].may_be_inapplicable is not None

    def request(attempt: int) -> ChatRequest:
        if options.rating == "logprobs":
            messages = digit_messages(aspect, prompt_messages(row), answers[0])
            return ChatRequest(messages, max_tokens=1, temperature=0.0, choices=DIGITS)
        return ChatRequest(
            rating_messages(aspect, prompt_messages(row), answers),
            max_tokens=options.max_tokens,
            temperature=options.temperature if attempt == 0 else options.retry_temperature,
            seed=derived_seed(seed, "annotation", prompt_id, aspect, attempt),
            schema=ratings_schema(len(answers), may_be_inapplicable=may_be_inapplicable),
        )

    def read(reply: Any) -> list[Rating] | None:
        if options.rating == "logprobs":
            rating = expected_rating(reply)
            return None if rating is None else [rating]
        return parse_ratings(reply.text, len(answers), may_be_inapplicable=may_be_inapplicable)

    ratings = await ask_until(
        teacher,
        request,
        read,
        # The same question has the same probabilities.
        max_tries=options.max_tries if options.rating == "json" else 1,
        call=f"annotation:{prompt_id}:{aspect}",
        unusable=unusable,
    )
    return None if ratings is None else dict(zip(order, ratings, strict=True))


def annotated_row(row: Mapping[str, Any], ratings: Mapping[str, Sequence[Ratings | None]]) -> dict[str, Any]:
    """A row with `annotations` in each completion: aspect -> {Rating, Rationale}, or null where there is no rating.

    Args:
      row: of the completions.
      ratings: aspect -> what its calls gave.
    """
    completions = []
    for place, completion in enumerate(row["completions"]):
        annotations: dict[str, Any] = {}
        for aspect, found in ratings.items():
            rating = next((part[place] for part in found if part is not None and place in part), None)
            annotations[aspect] = rating and {"Rating": rating.rating, "Rationale": rating.rationale}
        completions.append({**completion, "annotations": annotations})
    return {**row, "completions": completions}
