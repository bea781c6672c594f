"""A judge is shown what FastChat shows, is asked again when it cannot be read, and its words become FastChat's rows."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from tests.evaluation.fastchat_rows import write
from tests.evaluation.live import in_session
from zephyr_jax.evaluation.bench_judging import Bench, grading_jobs, pair_jobs
from zephyr_jax.evaluation.bench_prompts import JudgePrompt, prompt_name, read_judge_prompts
from zephyr_jax.evaluation.bench_run import JudgedBench, check_bench, judge_bench
from zephyr_jax.evaluation.fastchat_files import Question, read_judgments, read_questions
from zephyr_jax.evaluation_recipe import BenchJudgingOptions
from zephyr_jax.judging.protocol import CallFailed, ChatRequest, Reply
from zephyr_jax.records import InputError

TEMPLATES = {
    "single-v1": "Q {question} A {answer}",
    "single-math-v1": "Q {question} R {ref_answer_1} A {answer}",
    "single-v1-multi-turn": "{question_1} {answer_1} {question_2} {answer_2}",
    "single-math-v1-multi-turn": "{ref_answer_1} {ref_answer_2} {question_2} {answer_2}",
    "pair-v2": "Q {question} A {answer_a} B {answer_b}",
}
WRITING = Question(1, "writing", ("write", "again"))
MATH = Question(2, "math", ("1+1?", "2+2?"))
ANSWERS = {1: ["ours {1}", "ours 2"], 2: ["two", "four"]}


def _bench(*questions: Question, **options) -> Bench:
    prompts = {name: JudgePrompt(name, "system", text, "file:1") for name, text in TEMPLATES.items()}
    return Bench(questions, prompts, {2: ["2", "4"]}, "judge", **options)


class Judge:
    """Says what it is told to, in this order, and remembers what it was asked."""

    def __init__(self, *texts: str):
        self.texts, self.asked = list(texts), list[ChatRequest]()

    async def __call__(self, request: ChatRequest, call: str) -> Reply:
        self.asked.append(request)
        if not self.texts:
            raise CallFailed("no more")
        return Reply(self.texts.pop(0), "stop", 1, 1)


def _run(jobs):
    async def all_of_them():
        return [await job() for job in jobs]

    return asyncio.run(all_of_them())


def test_turns_and_references_are_shown_as_in_fastchat() -> None:
    judge = Judge(*["[[5]]"] * 4)
    rows = _run(grading_jobs(_bench(WRITING, MATH), "ours", ANSWERS, judge))
    assert [request.messages[-1]["content"] for request in judge.asked] == [
        "Q write A ours {1}",
        "write ours {1} again ours 2",
        "Q 1+1? R 2 A two",
        "2 4 2+2? four",
    ]
    assert {request.messages[0]["content"] for request in judge.asked} == {"system"}
    assert {request.temperature for request in judge.asked} == {0.0}
    assert [(row.template, row.turn, row.score, row.tstamp) for row in rows] == [
        ("single-v1", 1, 5, 0),
        ("single-v1-multi-turn", 2, 5, 0),
        ("single-math-v1", 1, 5, 0),
        ("single-math-v1-multi-turn", 2, 5, 0),
    ]
    assert prompt_name("pair", "coding", 2) == "pair-math-v1-multi-turn"


def test_what_cannot_be_read_is_asked_again_and_then_kept_as_unparsed() -> None:
    judge = Judge("nothing", "Rating: [[8]]", "nothing", "still nothing")
    first, second = _run(grading_jobs(_bench(WRITING), "ours", ANSWERS, judge))
    assert (first.score, first.judgment, second.score, second.judgment) == (8, "Rating: [[8]]", -1, "still nothing")
    assert [request.temperature for request in judge.asked] == [0.0, 0.7, 0.0, 0.7]
    assert len({request.seed for request in judge.asked}) == 4


def test_a_weak_judge_is_read_by_its_probabilities_of_the_digits() -> None:
    """Half of the digits' probability on 3 and half on 8 is 5.5; no digit among the likely tokens is no rating."""
    asked: list[ChatRequest] = []

    async def judge(request: ChatRequest, call: str) -> Reply:
        asked.append(request)
        listed = (None, None, -2.0, None, None, None, None, -2.0, None)
        return Reply("3", "stop", 1, 1, listed if len(asked) == 1 else (None,) * 9)

    first, second = _run(grading_jobs(_bench(WRITING, reading="logprobs"), "ours", ANSWERS, judge))
    assert (first.judgment, first.score, second.judgment, second.score) == ("[[5.5000]]", 5.5, "", -1)
    assert first.user_prompt.startswith("Q write A ours {1}\n\nGive no explanation") and first.template == "single-v1"
    assert len(asked) == 2 and asked[0].choices == tuple("123456789") and asked[0].max_tokens == 1


def test_without_a_file_of_references_those_of_the_questions_are_shown(tmp_path: Path) -> None:
    prompts = [{"name": name, "system_prompt": "", "prompt_template": text} for name, text in TEMPLATES.items()]
    options = BenchJudgingOptions(
        judge="judge",
        answers=(
            write(tmp_path / "a.jsonl", [{"question_id": 2, "model_id": "m", "choices": [{"turns": ["x", "y"]}]}]),
        ),
        prompts=write(tmp_path / "prompts.jsonl", prompts),
    )
    check_bench(options, [dataclasses.replace(MATH, reference=("2", "4"))])
    with pytest.raises(InputError, match="has the place 'ref_answer_1'"):
        check_bench(options, [MATH])


def test_repeated_grading_is_another_question_each_time() -> None:
    judge = Judge(*["[[5]]"] * 4)
    for repetition in range(2):
        _run(grading_jobs(_bench(WRITING), "ours", ANSWERS, judge, repetition=repetition))
    assert len({request.seed for request in judge.asked}) == 4


def test_an_answer_that_nobody_judged_has_no_row() -> None:
    assert _run(grading_jobs(_bench(WRITING), "ours", ANSWERS, Judge("nothing"))) != [None, None]
    assert _run(grading_jobs(_bench(WRITING), "ours", ANSWERS, Judge())) == [None, None]


def test_pairs_are_shown_in_both_orders_and_verdicts_name_the_models() -> None:
    judge = Judge("[[A]]", "[[A]]", "[[C]]", "unclear", "unclear")
    once = Question(1, "writing", ("write",))
    (row,) = _run(pair_jobs(_bench(once), ("ours", "theirs"), ({1: ["x"]}, {1: ["y"]}), judge))
    assert row.user_prompts == ("Q write A x B y", "Q write A y B x") and row.verdicts == ("model_1", "model_2")
    (row,) = _run(pair_jobs(_bench(once), ("ours", "theirs"), ({1: ["x"]}, {1: ["y"]}), judge))
    assert row.verdicts == ("tie", "error")


def test_a_missing_reference_or_prompt_is_named() -> None:
    unknown = Question(3, "math", ("?",))
    with pytest.raises(
        InputError, match=r"prompt single-math-v1 for turn 1 of question 3 has the place 'ref_answer_1'"
    ):
        _run(grading_jobs(_bench(unknown), "ours", {3: ["x"]}, Judge("[[1]]")))
    with pytest.raises(InputError, match=r"has no prompt 'pair-math-v1'"):
        _run(pair_jobs(_bench(unknown), ("a", "b"), ({3: ["x"]}, {3: ["y"]}), Judge("[[A]]")))
    longer = Question(4, "writing", ("a", "b", "c"))
    with pytest.raises(InputError, match=r"no place \{answer_3\}, so that it cannot show turn 3 of question 4"):
        _run(grading_jobs(_bench(longer), "ours", {4: ["x", "y", "z"]}, Judge(*["[[1]]"] * 3)))


def _judged(options: BenchJudgingOptions, questions: list[Question]) -> JudgedBench:
    return in_session(lambda session: judge_bench(options, questions, session, seed=1))


def _options(folder: Path, **changes) -> BenchJudgingOptions:
    run = folder / "example_run"
    fields = {
        "answers": (str(run / "model_answer" / "mistral-orpo-trl.jsonl"),),
        "prompts": str(folder / "judge_prompts.jsonl"),
        "references": str(folder / "reference_answer" / "gpt-4.jsonl"),
        "replay": (str(run / "model_judgment" / "gpt-4_single.jsonl"),),
    }
    return BenchJudgingOptions(**(fields | changes))


def test_a_real_run_is_judged_again_to_the_same_rows(zephyr_data: Path, tmp_path: Path) -> None:
    """Every prompt is letter for letter the one that GPT-4 was shown, or its judgment would not be found."""
    folder = zephyr_data / "mt_bench"
    judged = _judged(_options(folder), read_questions(str(folder / "question.jsonl")))
    assert judged.judge == "gpt-4" and judged.num_unanswered == 0 and len(judged.gradings) == 160
    stored, _ = read_judgments([str(folder / "example_run" / "model_judgment" / "gpt-4_single.jsonl")])
    wanted = {(row.question_id, row.turn): row for row in stored if row.model == "mistral-orpo-trl"}
    for row in judged.gradings:
        assert row.as_row() | {"tstamp": 0} == wanted[row.question_id, row.turn].as_row() | {"tstamp": 0}
    judged.write(tmp_path)
    again, _ = read_judgments([str(tmp_path / "model_judgment" / "gpt-4_single.jsonl")])
    assert sorted(again, key=str) == sorted(judged.gradings, key=str)
    assert len((tmp_path / "model_answer" / "mistral-orpo-trl.jsonl").read_text().splitlines()) == 80


def test_real_pairs_are_judged_again_in_both_orders(zephyr_data: Path) -> None:
    """75 first turns are stored; of the other 85 turns the judge says nothing."""
    folder = zephyr_data / "mt_bench"
    run = folder / "example_run"
    options = _options(
        folder,
        answers=tuple(str(run / "model_answer" / f"{model}.jsonl") for model in ("phi-3", "phi-3-dpo")),
        replay=(str(run / "model_judgment" / "gpt-4_pair.jsonl"),),
        mode="pair",
    )
    judged = _judged(options, read_questions(str(folder / "question.jsonl")))
    _, stored = read_judgments(options.replay)
    wanted = {row.question_id: (row.verdicts, row.judgments) for row in stored}
    assert judged.num_unanswered == 85 and len(judged.pairs) == 75
    assert {row.question_id: (row.verdicts, row.judgments) for row in judged.pairs} == wanted


def test_answers_that_are_missing_are_named(tmp_path: Path) -> None:
    row = {"question_id": 1, "answer_id": "x", "model_id": "ours", "choices": [{"index": 0, "turns": ["a"]}]}
    judgment = {"question_id": 1, "model": "ours", "judge": ["j", "t"], "judgment": "x", "score": 1, "turn": 1}
    prompts = [{"name": name, "system_prompt": "s", "prompt_template": text} for name, text in TEMPLATES.items()]
    options = BenchJudgingOptions(
        answers=(write(tmp_path / "a.jsonl", [row]),),
        prompts=write(tmp_path / "p.jsonl", prompts),
        replay=(write(tmp_path / "j.jsonl", [judgment]),),
    )
    with pytest.raises(InputError, match="ours has 1 turns of an answer to question 1, wanted 2"):
        _judged(options, [WRITING])
    with pytest.raises(InputError, match="nothing is stored to any of the 1 questions that j was asked"):
        _judged(options, [Question(1, "writing", ("write",))])
    with pytest.raises(InputError, match="has answers of ours alone; mode pair wants two models"):
        _judged(options.model_copy(update={"mode": "pair"}), [WRITING])
    write(tmp_path / "j.jsonl", [judgment, judgment | {"judge": ["k", "t"]}])
    with pytest.raises(InputError, match="has judgments by j, k; wanted those of one judge"):
        _judged(options, [Question(1, "writing", ("write",))])
    write(tmp_path / "j.jsonl", [judgment | {"user_prompt": "Q write A a", "judgment": f"[[{x}]]"} for x in (4, 6)])
    judged = _judged(options.model_copy(update={"repetitions": 3}), [Question(1, "writing", ("write",))])
    assert [row.score for row in judged.gradings] == [4, 6] and judged.num_unanswered == 1
    assert json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])["name"] in read_judge_prompts(options.prompts)
