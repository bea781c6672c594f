"""Ratings are read strictly, or not at all."""

from __future__ import annotations

import json
import math

import pytest

from zephyr_jax.judging.protocol import Reply
from zephyr_jax.judging.ratings import Rating, expected_rating, parse_ratings, ratings_schema

GOOD = [{"answer": 1, "rationale": "Clear.", "rating": "4"}, {"answer": 2, "rationale": " Wrong. ", "rating": 1}]


def _parse(entries: object, count: int = 2, *, inapplicable: bool = False) -> list[Rating] | None:
    return parse_ratings(json.dumps({"ratings": entries}), count, may_be_inapplicable=inapplicable)


def test_ratings_are_read_as_meant() -> None:
    wanted = [Rating("4", "Clear."), Rating("1", "Wrong.")]
    assert _parse(GOOD) == wanted == _parse(GOOD[::-1])
    fenced = f"```json\n{json.dumps({'ratings': GOOD})}\n```"
    assert parse_ratings(fenced, 2, may_be_inapplicable=False) == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"rating": "6"},
        {"rating": 0},
        {"rating": "4/5"},
        {"rating": 4.0},
        {"rating": True},
        {"rating": None},
        {"rating": "N/A"},
        {"answer": 2},
        {"answer": "1"},
        {"answer": 3},
        {"rationale": " "},
        {"rationale": None},
    ],
    ids=str,
)
def test_anything_else_is_no_rating(change: dict) -> None:
    assert _parse([GOOD[0] | change, GOOD[1]]) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "[]",
        "{}",
        '{"ratings": 3}',
        '{"ratings": null}',
        json.dumps({"ratings": GOOD})[:-2],
        "NaN",
        "[" * 9999,
        f"Here: {json.dumps({'ratings': GOOD})}",
        json.dumps({"ratings": GOOD}).replace('"rating": ', '"rating": "1", "rating": ', 1),  # which of the two?
    ],
)
def test_half_or_other_json_is_no_rating(text: str) -> None:
    assert parse_ratings(text, 2, may_be_inapplicable=True) is None


def test_a_reason_with_half_a_surrogate_pair_can_be_written_to_a_file() -> None:
    entries = [{"answer": 1, "rationale": "Fine \ud83d", "rating": "4"}]
    assert parse_ratings(json.dumps({"ratings": entries}), 1, may_be_inapplicable=False) == [Rating("4", "Fine \ufffd")]


def test_the_number_of_entries_is_that_of_the_answers() -> None:
    assert _parse(GOOD, 1) is None and _parse(GOOD[:1], 2) is None and _parse([*GOOD, GOOD[0]], 2) is None


def test_not_applicable_is_a_rating_only_where_it_may_be() -> None:
    entries = [GOOD[0] | {"rating": "N/A"}, GOOD[1]]
    assert _parse(entries, inapplicable=True) == [Rating("N/A", "Clear."), Rating("1", "Wrong.")]
    for may_be, allowed in ((True, 6), (False, 5)):
        schema = ratings_schema(2, may_be_inapplicable=may_be).schema
        entry = schema["properties"]["ratings"]["items"]
        assert len(entry["properties"]["rating"]["enum"]) == allowed
        assert entry["additionalProperties"] is False and set(entry["required"]) == set(entry["properties"])


def test_the_expected_rating_is_the_mean_over_the_digits() -> None:
    """p = 0.1, 0, 0.3, 0.1 on 1, 2, 3, 5 and nothing listed for 4: (0.1 + 0.9 + 0.5) / 0.5 = 3."""
    logprobs = (math.log(0.1), -math.inf, math.log(0.3), None, math.log(0.1))
    assert expected_rating(Reply("3", "stop", 1, 1, logprobs)) == Rating("3.0000", None)
    assert expected_rating(Reply("x", "stop", 1, 1, (None,) * 5)) is None
