"""A judge's position bias is what showing both orders says it is, for judges whose bias is known."""

from __future__ import annotations

import asyncio
import random

import pytest

from zephyr_jax.evaluation.alpaca_eval import parse_annotation, win_rate
from zephyr_jax.evaluation.alpaca_judging import Annotator, Output, OutputPair, parse_prompt
from zephyr_jax.evaluation.bench_judging import Bench, pair_jobs
from zephyr_jax.evaluation.bench_prompts import JudgePrompt
from zephyr_jax.evaluation.fastchat_files import Question
from zephyr_jax.evaluation.pairwise import pair_result
from zephyr_jax.evaluation.position import PositionBias, position_bias
from zephyr_jax.evaluation.statistics import Sampling
from zephyr_jax.judging.protocol import ChatRequest, Reply

NUM_ITEMS = 400
SAMPLING = Sampling(resamples=500)
PROMPT = "<|im_start|>user\n{instruction}|{output_1}|{output_2}<|im_end|>"
# Answers of the better model have a plus; every fourth of them is the shorter one.
GOOD, BAD = "+", "-"


def _better(number: int) -> str:
    return f"{GOOD}{number}" if number % 4 == 0 else f"{GOOD}{number} and some more words"


def _always_the_first(first: str, second: str) -> str:
    return "first"


def _the_longer(first: str, second: str) -> str:
    return "first" if len(first) > len(second) else "second"


def _right_four_times_of_five(first: str, second: str) -> str:
    """The draw hangs on what is shown, in its order: errors in the two orders have nothing to do with each other."""
    is_right = random.Random(f"{first}|{second}").random() < 0.8
    return "first" if (GOOD in first) == is_right else "second"


def _by_alpaca_eval(judge) -> tuple[float, PositionBias | None]:
    """The win rate of the better model, and the judge's bias, judged in both orders."""
    pairs = [
        OutputPair(
            number,
            Output(f"instruction {number}", f"{BAD}{number} short text", "base", None),
            Output(f"instruction {number}", _better(number), "good", None),
        )
        for number in range(NUM_ITEMS)
    ]

    async def ask(request: ChatRequest, call: str) -> Reply:
        _, first, second = request.messages[-1]["content"].split("|")
        ranks = (1, 2) if judge(first, second) == "first" else (2, 1)
        return Reply(f"[{{'model': 'model_1', 'rank': {ranks[0]}}}]", "stop", 1, 1)

    annotator = Annotator("j", parse_prompt(PROMPT, name="p"), "ranking", both_orders=True)

    async def run():
        return [await job() for job in annotator.jobs(pairs, ask)]

    rows = asyncio.run(run())
    rate = win_rate([parse_annotation(row, row["index"], "x") for row in rows], sampling=SAMPLING)
    return rate.estimate.mean, rate.position


def _by_mt_bench(judge) -> tuple[float, PositionBias | None]:
    questions = [Question(number, "writing", ("Q?",)) for number in range(NUM_ITEMS)]
    prompts = {"pair-v2": JudgePrompt("pair-v2", "s", "{answer_a}|{answer_b}", "f:1")}
    good = {number: [_better(number)] for number in range(NUM_ITEMS)}
    bad = {number: [f"{BAD}{number} short text"] for number in range(NUM_ITEMS)}

    async def ask(request: ChatRequest, call: str) -> Reply:
        verdict = judge(*request.messages[-1]["content"].split("|"))
        return Reply("[[A]]" if verdict == "first" else "[[B]]", "stop", 1, 1)

    jobs = pair_jobs(Bench(questions, prompts, {}, "j"), ("good", "bad"), (good, bad), ask)

    async def run():
        return [await job() for job in jobs]

    result = pair_result([row for row in asyncio.run(run()) if row is not None], sampling=SAMPLING)
    assert result is not None
    return result.estimate.mean, result.position


each_protocol = pytest.mark.parametrize("measured", [_by_alpaca_eval, _by_mt_bench])


@each_protocol
def test_a_judge_that_always_takes_the_first_follows_the_position_alone(measured) -> None:
    score, bias = measured(_always_the_first)
    assert score == 0.5 and (bias.to_first, bias.to_second) == (NUM_ITEMS, 0)
    assert bias.follows.share == 1 and bias.same_verdict.share == 0 and bias.first_share.mean == 1
    assert bias.is_sure and "j favours the answer shown first: 100.0% of its verdicts follow" in bias.sentence("j")


@each_protocol
def test_a_judge_that_takes_the_longer_has_no_position_bias(measured) -> None:
    """It is wrong on every fourth item, the same way in both orders."""
    score, bias = measured(_the_longer)
    assert score == 0.75 and bias.follows.count == 0 and bias.same_verdict.share == 1
    assert bias.first_share.mean == 0.5 and bias.p_value == 1 and "does not surely favour" in bias.sentence("j")


@each_protocol
def test_a_judge_that_errs_at_random_is_not_called_biased(measured) -> None:
    """Right in both orders 0.64, wrong in both 0.04, else 0.32: those follow the position, half to each place. Score
    0.64 + 0.32 / 2 = 0.8. Bounds are four standard deviations of 400 draws."""
    score, bias = measured(_right_four_times_of_five)
    assert score == pytest.approx(0.8, abs=0.06)
    assert bias.follows.share == pytest.approx(0.32, abs=0.094) and bias.follows.total == NUM_ITEMS
    assert bias.follows.low < 0.32 < bias.follows.high
    assert bias.first_share.mean == pytest.approx(0.5, abs=0.06) and not bias.is_sure


def test_ties_follow_nothing() -> None:
    bias = position_bias([("tie", "tie"), ("first", "tie"), ("first", "first")], sampling=SAMPLING)
    assert (bias.follows.count, bias.follows.total, bias.same_verdict.count) == (1, 1, 1)
    nothing = position_bias([("tie", "tie")], sampling=SAMPLING)
    assert nothing.first_share is None and "is not known" in nothing.sentence("j")
    assert nothing.as_dict()["follows_position"] is None


def test_two_turns_of_a_question_are_one_vote_on_the_place() -> None:
    """Five questions whose two turns both went to the first place: p = 2 / 2^5, not 2 / 2^10; one may cancel itself."""
    both_turns = [question for question in range(5) for _ in range(2)]
    found = position_bias([("first", "first")] * 10, groups=both_turns, sampling=SAMPLING)
    assert (found.to_first, found.p_value) == (10, 2 / 32) and found.follows.low < 0.5
    mixed = [("first", "first"), ("second", "second"), *[("first", "first")] * 8]
    assert position_bias(mixed, groups=both_turns, sampling=SAMPLING).p_value == 2 / 16
