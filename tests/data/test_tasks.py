"""The embedded default's data: the same every time, a fallible teacher, and an eval split that training never saw."""

from __future__ import annotations

import collections
import hashlib
import json

import pytest

from zephyr_jax.data import tasks
from zephyr_jax.data.rows import parse_conversation, parse_pair
from zephyr_jax.data.task_families import OPENERS, all_families
from zephyr_jax.records import InputError

# Of chat/train, preferences/train and preferences/eval; to be renewed when the questions are changed on purpose.
DIGESTS = ["857d76600d31c834", "74e337ae24796437", "fd949e11fc6d5bcc"]

CHAT = list(tasks.iterate_task_rows("chat", "train"))
CHAT_EVAL = list(tasks.iterate_task_rows("chat", "eval"))
PAIRS = list(tasks.iterate_task_rows("preferences", "train"))
PAIRS_EVAL = list(tasks.iterate_task_rows("preferences", "eval"))
FACTS = {
    opener + phrasing.format(fact.subject): fact
    for family in all_families()
    for phrasing in family.phrasings
    for fact in family.facts
    for opener in OPENERS
}


def is_right(question, answer):
    return answer == f"{FACTS[question].right}."


def asked_and_answered(rows):
    """Every (question, answer) of the dialogues."""
    for row in rows:
        for question, answer in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            yield question["content"], answer["content"]


def test_the_rows_never_change():
    """The digests were taken when the data set was made: a run of last year can be repeated, whatever the Python."""
    digests = [hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] for rows in (CHAT, PAIRS, PAIRS_EVAL)]
    assert digests == DIGESTS


def test_reading_twice_gives_the_same_rows():
    assert list(tasks.iterate_task_rows("preferences", "train")) == PAIRS


def test_every_row_is_valid():
    """A row that is not valid raises; a valid one keeps its texts as they are."""
    for row in CHAT + CHAT_EVAL:
        assert list(parse_conversation(row, "x:1").messages) == row["messages"]
    for row in PAIRS + PAIRS_EVAL:
        pair = parse_pair(row, "x:1")
        assert (pair.chosen, pair.rejected) == (row["chosen"][-1]["content"], row["rejected"][-1]["content"])


def test_no_eval_question_is_asked_in_training():
    held_out = {question for question, _ in asked_and_answered(CHAT_EVAL)}
    trained = {question for question, _ in asked_and_answered(CHAT + PAIRS)}
    assert not held_out & trained
    assert held_out == {row["prompt"] for row in PAIRS_EVAL} and len(held_out) == len(CHAT_EVAL) == 280


def without_opener(prompt):
    opener = max((opener for opener in OPENERS if prompt.startswith(opener)), key=len)
    return prompt.removeprefix(opener)


def test_each_fact_is_held_out_in_one_phrasing_whatever_stands_before_it():
    trained = {without_opener(row["prompt"]) for row in PAIRS}
    for family in all_families():
        for fact in family.facts:
            asked = [phrasing.format(fact.subject) in trained for phrasing in family.phrasings]
            assert sum(asked) == len(asked) - 1
    assert not trained & {without_opener(row["prompt"]) for row in PAIRS_EVAL}


def test_eval_mixes_the_families_so_that_its_start_has_all_of_them():
    assert {row["family"] for row in PAIRS_EVAL[:40]} == {family.name for family in all_families()}


def test_eval_answers_and_chosen_answers_are_right_and_rejected_ones_wrong():
    assert all(is_right(*pair) for pair in asked_and_answered(CHAT_EVAL))
    for row in PAIRS + PAIRS_EVAL:
        assert is_right(row["prompt"], row["chosen"][-1]["content"])
        assert not is_right(row["prompt"], row["rejected"][-1]["content"])


def test_the_teacher_errs_in_a_third_of_its_answers_and_always_on_the_same_facts():
    """Half of the facts (4 of 9 or of 7, so 32 of 70) are misconceived: (32 x 0.6 + 38 x 0.1) / 70."""
    answers = list(asked_and_answered(CHAT))
    wrong = [not is_right(*pair) for pair in answers]
    assert sum(wrong) / len(wrong) == pytest.approx(0.329, abs=0.02)
    by_fact = collections.defaultdict(list)
    for (question, _), is_wrong in zip(answers, wrong, strict=True):
        by_fact[FACTS[question]].append(is_wrong)
    misconceived = [sum(errors) > len(errors) / 2 for errors in by_fact.values()]
    assert sum(misconceived) / len(misconceived) == pytest.approx(32 / 70, abs=0.05)


def test_the_teachers_wrong_answers_have_the_right_form():
    wrong = {row["prompt"]: row["rejected"][-1]["content"] for row in PAIRS}
    assert all(is_right(*pair) or pair[1] == wrong[pair[0]] for pair in asked_and_answered(CHAT))


def test_some_dialogues_have_two_questions():
    lengths = collections.Counter(len(row["messages"]) for row in CHAT)
    assert set(lengths) == {2, 4} and lengths[4] / len(CHAT) == pytest.approx(0.1, abs=0.02)


def test_texts_are_short_and_prompts_are_asked_once_per_preference():
    assert max(len(question + answer) for question, answer in asked_and_answered(CHAT)) <= 64
    assert len({row["prompt_id"] for row in PAIRS}) == len(PAIRS)


def test_a_wrong_answer_is_right_nowhere():
    facts = [fact for family in all_families() for fact in family.facts]
    assert not {fact.wrong for fact in facts} & {fact.right for fact in facts}


def test_no_question_is_asked_twice():
    prompts = [phrasing.format(fact.subject) for f in all_families() for phrasing in f.phrasings for fact in f.facts]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        ("Which day comes after Monday?", "Tuesday", "Teusday"),
        ("Question: What day follows Sunday?", "Monday", "Munday"),
        ("Hello. What is 3 + 4?", "7", "34"),
        ("Tell me: Put into the plural: mouse.", "mice", "mouses"),
        ("Question: What is the past of go?", "went", "goed"),
        ("What is the opposite of hot?", "cold", "warm"),
        ("Name the capital of Turkey.", "Ankara", "Istanbul"),
    ],
)
def test_the_answers_are_those_of_the_world(prompt, right, wrong):
    """The other tests take the facts from the same tables as the data."""
    assert (FACTS[prompt].right, FACTS[prompt].wrong) == (right, wrong)


def test_an_unknown_kind_or_split_is_an_input_error():
    with pytest.raises(InputError, match="got the kind 'poems', wanted chat or preferences"):
        tasks.iterate_task_rows("poems", "train")
    with pytest.raises(InputError, match="got the split 'test', wanted one of train, eval"):
        tasks.iterate_task_rows("chat", "test")
