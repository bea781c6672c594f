"""MT-Bench's questions are asked turn by turn, at FastChat's temperatures, with seeds that nothing else moves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.evaluation.fastchat_rows import a_question, write
from zephyr_jax.evaluation.answering import AnswerCounts
from zephyr_jax.evaluation.bench_answering import Sitting, chosen_questions
from zephyr_jax.evaluation.fastchat_files import Question, read_answers, read_questions, write_rows
from zephyr_jax.evaluation.mt_bench import CATEGORIES
from zephyr_jax.evaluation_recipe import BENCH_TEMPERATURES
from zephyr_jax.judging.protocol import CallFailed, ChatRequest, Reply, Unanswerable
from zephyr_jax.records import InputError

WRITING = Question(81, "writing", ("Write.", "Again."))
MATH = Question(111, "math", ("1+1?", "2+2?"))


class Model:
    """Answers with what it was asked last, in capitals; where a text is in `refused`, it cannot be asked it."""

    def __init__(self, *, refused: str = "nothing", finish_reason: str = "stop"):
        self.refused, self.finish_reason = refused, finish_reason
        self.asked: dict[str, ChatRequest] = {}

    async def ask(self, request: ChatRequest, call: str) -> Reply:
        assert call not in self.asked
        self.asked[call] = request
        if self.refused in request.messages[-1]["content"]:
            raise Unanswerable("too long")
        return Reply(f"\n {request.messages[-1]['content'].upper()}\n", self.finish_reason, 5, 7)


def answered(model: Model, *questions: Question, **options):
    sitting = Sitting("ours", BENCH_TEMPERATURES, **options)
    counts = AnswerCounts("ours")

    async def run():
        keys, jobs = zip(*sitting.jobs(questions, model.ask, counts), strict=True)
        return dict(zip(keys, await asyncio.gather(*(job() for job in jobs)), strict=True))

    texts = asyncio.run(run())
    return None if counts.num_failed else sitting.rows(questions, texts), counts


def test_the_second_turn_is_asked_after_the_models_own_first_answer() -> None:
    model = Model()
    (row,), counts = answered(model, WRITING, max_new_tokens=9)
    assert row.choices == (("WRITE.", "AGAIN."),) and row.model == "ours"
    first, second = model.asked.values()
    assert [message["role"] for message in first.messages] == ["user"]
    assert [(message["role"], message["content"]) for message in second.messages] == [
        ("user", "Write."),
        ("assistant", "WRITE."),
        ("user", "Again."),
    ]
    assert {request.max_tokens for request in model.asked.values()} == {9}
    assert (counts.num_answers, counts.num_cut, counts.mean_tokens, counts.mean_characters) == (2, 0, 7, 6)


def test_temperatures_are_the_categories_and_a_questions_own_goes_first() -> None:
    expected = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
    sitting = Sitting("ours", BENCH_TEMPERATURES)
    for category in CATEGORIES:
        assert sitting.temperature(Question(1, category, ("?",))) == expected.get(category, 0)
    assert sitting.temperature(Question(1, "cooking", ("?",))) == 0.7
    assert sitting.temperature(Question(1, "math", ("?",), (), 0.3)) == 0.3


def test_seeds_hang_on_the_question_its_choice_and_the_turn_alone() -> None:
    both, alone = Model(), Model()
    answered(both, WRITING, MATH, choices=2)
    answered(alone, MATH, choices=2)
    seeds = {call: request.seed for call, request in both.asked.items()}
    assert len(set(seeds.values())) == len(seeds) == 8
    assert {call: request.seed for call, request in alone.asked.items()}.items() <= seeds.items()
    assert {seeds[call] for call in seeds}.isdisjoint(
        Sitting("ours", {}, seed=43).request(WRITING, ["x"] * turn, choice=0).seed for turn in (0, 1)
    )


def test_the_rows_are_fastchats_and_are_read_back(tmp_path: Path) -> None:
    rows, _ = answered(Model(), WRITING, MATH, choices=2)
    file = tmp_path / "ours.jsonl"
    write_rows(file, rows)
    assert read_answers([str(file)]) == rows
    written = json.loads(file.read_text().splitlines()[0])
    assert list(written) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert written["choices"][1] == {"index": 1, "turns": ["WRITE.", "AGAIN."]}
    assert len({row.answer_id for row in rows}) == 2 and len(written["answer_id"]) == 22
    assert answered(Model(), WRITING, MATH, choices=2)[0] == rows  # again, and later


def test_a_cut_answer_is_kept_and_counted() -> None:
    (row,), counts = answered(Model(finish_reason="length"), WRITING)
    assert row.choices == (("WRITE.", "AGAIN."),) and counts.num_cut == 2
    assert "2 cut by the limit of new tokens" in counts.sentence()


@pytest.mark.parametrize(("refused", "turns"), [("Write", ("", "AGAIN.")), ("Again", ("WRITE.", ""))])
def test_a_turn_that_cannot_be_asked_is_empty_and_counted(refused: str, turns: tuple[str, str]) -> None:
    model = Model(refused=refused)
    rows, counts = answered(model, WRITING, MATH)
    assert [row.choices[0] for row in rows] == [turns, ("1+1?", "2+2?")]
    assert model.asked["mt_bench answer:81:0:2"].messages[1]["content"] == turns[0]
    assert (counts.num_answers, counts.num_unanswerable) == (3, 1)
    assert "1 could not be asked and count as empty answers (too long)" in counts.sentence()


def test_an_answer_that_did_not_come_is_counted_and_its_next_turn_is_not_asked() -> None:
    """The model gives no answer to one first turn; the other question goes on."""

    class Failing(Model):
        async def ask(self, request: ChatRequest, call: str) -> Reply:
            if call == "mt_bench answer:81:0:1":
                raise CallFailed("timed out")
            return await super().ask(request, call)

    model = Failing()
    rows, counts = answered(model, WRITING, MATH)
    assert rows is None and (counts.num_failed, counts.why_failed) == (1, "timed out")
    assert list(model.asked) == ["mt_bench answer:111:0:1", "mt_bench answer:111:0:2"]


def test_a_part_of_the_questions_has_all_categories(tmp_path: Path) -> None:
    rows = [a_question(number, CATEGORIES[number // 10]) for number in range(80)]
    questions = read_questions(write(tmp_path / "question.jsonl", rows))
    chosen = chosen_questions(questions, limit=20)
    ids = [question.question_id for question in chosen]
    assert ids == [*range(0, 3), *range(10, 13), *range(20, 23), *range(30, 33), *(40, 41, 50, 51, 60, 61, 70, 71)]
    assert chosen_questions(questions) == questions
    by_id = chosen_questions(questions, question_ids=[7, 3])
    assert [question.question_id for question in by_id] == [3, 7]
    with pytest.raises(InputError, match="has no question 80, 81 .it has 0 to 79"):
        chosen_questions(questions, question_ids=[80, 1, 81])
    with pytest.raises(InputError, match="got 81, but the file has 80 questions"):
        chosen_questions(questions, limit=81)


def test_a_questions_own_temperature_is_read_from_the_file(tmp_path: Path) -> None:
    rows = [
        a_question(1, "math") | {"required_temperature": 0.5},
        a_question(2, "math") | {"required_temperature": None},
    ]
    questions = read_questions(write(tmp_path / "question.jsonl", rows))
    assert [question.required_temperature for question in questions] == [0.5, None]
    with pytest.raises(InputError, match="'required_temperature' is -1.0; wanted 0 or more"):
        read_questions(write(tmp_path / "question.jsonl", [a_question(1, "math") | {"required_temperature": -1}]))
