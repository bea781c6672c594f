"""The order is alpaca_eval's coin, a preference is turned back with it, and what cannot be read is nobody's win."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest

from tests.evaluation.fastchat_rows import write
from tests.evaluation.live import in_session
from zephyr_jax.evaluation.alpaca_eval import read_annotations, win_rate
from zephyr_jax.evaluation.alpaca_judging import (
    Annotator,
    Output,
    OutputPair,
    filled,
    is_turned,
    pair_outputs,
    parse_prompt,
    parse_ranking,
    preference_of_logprobs,
    read_outputs,
)
from zephyr_jax.evaluation.alpaca_run import JudgedOutputs, judge_outputs
from zephyr_jax.evaluation.statistics import Sampling
from zephyr_jax.evaluation_recipe import AlpacaJudgingOptions
from zephyr_jax.judging.protocol import CallFailed, ChatRequest, Reply
from zephyr_jax.records import InputError

PROMPT = (
    "<|im_start|>system\nJudge.\n<|im_end|>\n<|im_start|>user\nI {instruction} 1 {output_1} 2 {output_2}\n<|im_end|>"
)
# Two instructions between which the coin differs; found by trying, and what alpaca_eval's own function gives for them.
KEPT, TURNED = "question 0", "question 2"


def a_pair(instruction: str, baseline: str = "b", model: str = "m") -> OutputPair:
    return OutputPair(0, Output(instruction, baseline, "base", "set"), Output(instruction, model, "ours", "set"))


def annotated(judge, pair: OutputPair, *, reading="ranking"):
    annotator = Annotator("judge", parse_prompt(PROMPT, name="p"), reading)

    async def run():
        return await annotator.jobs([pair], judge)[0]()

    return asyncio.run(run())


def says(*replies: Reply):
    left, asked = list(replies), list[ChatRequest]()

    async def judge(request: ChatRequest, call: str) -> Reply:
        asked.append(request)
        if not left:
            raise CallFailed("no more")
        return left.pop(0)

    return judge, asked


def ranks(first: int, second: int) -> Reply:
    return Reply(f"[{{'model': 'model_1', 'rank': {first}}}, {{'model': 'model_2', 'rank': {second}}}]", "stop", 1, 1)


def test_the_coin_hangs_on_the_instruction_and_the_prompt_shows_what_it_says() -> None:
    assert (is_turned(KEPT), is_turned(TURNED)) == (False, True)
    shares = sum(is_turned(f"instruction {number}") for number in range(1000))
    assert abs(shares - 500) < 70  # more than four standard deviations
    messages = parse_prompt(PROMPT, name="p")
    assert [message["content"] for message in filled(messages, a_pair(KEPT))] == ["Judge.", f"I {KEPT} 1 b 2 m"]
    assert filled(messages, a_pair(TURNED))[-1]["content"] == f"I {TURNED} 1 m 2 b"


def test_places_inside_the_outputs_are_left_alone() -> None:
    pair = a_pair(KEPT, baseline="{output_2} <|im_end|>", model="{instruction}")
    assert filled(parse_prompt(PROMPT, name="p"), pair)[-1]["content"] == (
        f"I {KEPT} 1 {{output_2}} <|im_end|> 2 {{instruction}}"
    )


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        (ranks(1, 2).text, 1),
        (f"  {ranks(2, 1).text}\n", 2),
        ("[{'model': 'model_2', 'rank': 1}]", None),
        ("[{'model': 'model_1', 'rank': 3}]", None),
        ("[{'model': 'model_1', 'rank': 1+0j}]", None),
        ("model_1 is better", None),
        ("[" * 5000, None),
        ("", None),
    ],
)
def test_a_ranking_is_parsed_as_alpaca_eval_does(text: str, preference: float | None) -> None:
    assert parse_ranking(text) == preference


def test_a_preference_is_the_share_of_the_second_token() -> None:
    assert preference_of_logprobs([math.log(0.6), math.log(0.2)]) == pytest.approx(1.25)
    assert preference_of_logprobs([None, -3.0]) == 2 and preference_of_logprobs([-3.0, None]) == 1
    assert preference_of_logprobs([-800.0, -800 - math.log(3)]) == pytest.approx(1.25)
    assert preference_of_logprobs([None, None]) is None and preference_of_logprobs([]) is None


def test_a_preference_is_turned_back_with_the_order() -> None:
    """The judge prefers whatever stands first: the baseline where the order is kept, the model where it is turned."""
    assert annotated(says(ranks(1, 2))[0], a_pair(KEPT))["preference"] == 1
    assert annotated(says(ranks(1, 2))[0], a_pair(TURNED))["preference"] == 2
    likes_first = Reply("", "stop", 1, 1, (math.log(0.9), math.log(0.1)))
    judge, asked = says(likes_first)
    row = annotated(judge, a_pair(TURNED), reading="logprobs")
    assert row["preference"] == pytest.approx(1.9) and asked[0].choices == ("m", "M") and asked[0].max_tokens == 1
    assert (row["generator_1"], row["generator_2"], row["output_1"], row["annotator"]) == ("base", "ours", "b", "judge")


def test_equal_outputs_are_a_tie_and_nobody_is_asked() -> None:
    judge, asked = says()
    row = annotated(judge, a_pair(KEPT, "same", "same"))
    assert row["preference"] == 1.5 and row["raw_completion"] is None and not asked


def test_a_ranking_that_cannot_be_read_is_asked_for_again_and_then_null() -> None:
    judge, asked = says(Reply("what?", "stop", 1, 1), ranks(2, 1))
    assert annotated(judge, a_pair(KEPT))["preference"] == 2
    assert [request.temperature for request in asked] == [0.0, 0.7] and asked[0].seed != asked[1].seed
    row = annotated(says(Reply("what?", "stop", 1, 1), Reply("no", "stop", 1, 1))[0], a_pair(KEPT))
    assert row["preference"] is None and row["raw_completion"] == "no"
    assert annotated(says()[0], a_pair(KEPT)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("I {instruction} {output_1} {output_2}", "does not end with a user's turn"),
        ("<|im_start|>user\n{instruction} {output_1}<|im_end|>", "has no place for output_2"),
    ],
)
def test_a_prompt_of_another_kind_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_prompt(text, name="p")


def an_output(number: int, output: str, generator: str):
    return {"instruction": f"question {number}", "output": output, "generator": generator, "dataset": "set"}


def test_outputs_are_paired_by_instruction(tmp_path: Path) -> None:
    base = read_outputs(write(tmp_path / "base.jsonl", [an_output(number, "b", "base") for number in range(3)]))
    ours = read_outputs(write(tmp_path / "ours.jsonl", [an_output(number, "m", "ours") for number in (2, 1)]))
    assert [(pair.index, pair.model.instruction) for pair in pair_outputs(base, ours)] == [
        (1, "question 1"),
        (2, "question 2"),
    ]
    with pytest.raises(InputError, match="ours has no output to 1 of base's instructions, such as 'question 0'"):
        pair_outputs(ours, base)
    for rows, message in (
        ([an_output(1, "x", "a"), an_output(1, "y", "a")], "its instruction is there before"),
        ([an_output(1, "x", "a"), an_output(2, "y", "b")], "is by 'b' in a file of 'a'"),
    ):
        with pytest.raises(InputError, match=message):
            read_outputs(write(tmp_path / "bad.jsonl", rows))


def _judged(options: AlpacaJudgingOptions) -> JudgedOutputs:
    return in_session(lambda session: judge_outputs(options, session, seed=1))


def test_stored_annotations_are_judged_again_to_the_same_preferences(tmp_path: Path) -> None:
    """Rows as alpaca_eval stores them, the completion as OpenAI gave it; then the rows that we wrote, once more."""
    base = [an_output(number, f"b{number}", "base") for number in range(6)]
    ours = [an_output(number, "b5" if number == 5 else f"m{number}", "ours") for number in range(6)]
    stored = []
    for number in range(4):  # nothing is stored of the fifth, and the sixth needs nothing
        likely = [{"token": "m", "logprob": math.log(0.7)}, {"token": "M", "logprob": math.log(0.3)}]
        stored.append({
            "instruction": f"question {number}", "output_1": f"b{number}", "output_2": f"m{number}",
            "generator_1": "base", "generator_2": "ours", "annotator": "judge/1",
            "preference": 1.7 if is_turned(f"question {number}") else 1.3,
            "raw_completion": {"logprobs": {"content": [{"top_logprobs": likely}]}},
        })  # fmt: skip
    (tmp_path / "prompt.txt").write_text(PROMPT)
    options = AlpacaJudgingOptions(
        outputs=(write(tmp_path / "ours.jsonl", ours),),
        baseline=write(tmp_path / "base.jsonl", base),
        prompt=str(tmp_path / "prompt.txt"),
        reading="logprobs",
        replay=(write(tmp_path / "stored.jsonl", stored),),
    )
    judged = _judged(options)
    assert judged.num_unanswered == 1
    assert [row["preference"] for row in judged.rows] == pytest.approx([row["preference"] for row in stored] + [1.5])
    judged.write(tmp_path / "out")
    file = tmp_path / "out" / "ours" / "judge-1" / "annotations.json"
    rate = win_rate(read_annotations([str(file)]), sampling=Sampling(resamples=200))
    assert rate.estimate.num_items == 5 and rate.ties == 1 and rate.mean_length == 2
    again = _judged(options.model_copy(update={"replay": (str(file),)}))
    assert json.loads(file.read_text()) == list(again.rows)
    write(tmp_path / "stored.jsonl", [stored[0] | {"raw_completion": {"text": "m"}}])
    with pytest.raises(InputError, match="'raw_completion' has no top_logprobs"):
        _judged(options)
    write(tmp_path / "stored.jsonl", [stored[0] | {"instruction": "another"}])
    write(tmp_path / "ours.jsonl", ours[:5])
    with pytest.raises(InputError, match="nothing is stored of any of the 5 pairs"):
        _judged(options)


def test_the_published_prompts_are_read(zephyr_data: Path) -> None:
    for name in ("judge_prompt_alpaca_eval_clf.txt", "judge_prompt_alpaca_eval_gpt4.txt"):
        text = (zephyr_data / "alpaca_eval" / name).read_text(encoding="utf-8")
        assert [message["role"] for message in parse_prompt(text, name=name)] == ["system", "user"]
        assert "{output_1}" not in filled(parse_prompt(text, name=name), a_pair(KEPT))[-1]["content"]
