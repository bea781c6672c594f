"""Academic tasks: rows to the very texts that are asked, and outcomes to scores.

The wanted texts are written out here; tests/parity/test_academic.py holds them against the harness itself.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.evaluation.academic_rows import ARC, GSM8K, HELLASWAG, MMLU, PREAMBLE, TRUTHFULQA, a_task
from zephyr_jax.academic_options import AcademicTaskOptions
from zephyr_jax.evaluation.academic.items import Generated, Likelihood
from zephyr_jax.records import InputError


def likely(*logprobs: float) -> list[Likelihood]:
    return [Likelihood(logprob, False, 1) for logprob in logprobs]


def test_arc_is_asked_the_same_from_the_hubs_columns_and_from_joined_ones(tmp_path: Path) -> None:
    joined = {
        "query": "Question: What do stones do in week 0?\nAnswer:",
        "choices": ["fall", "rise with stones", "nothing", "sing"],
        "gold": 0,
    }
    (hub,), (own,) = (a_task(tmp_path, "arc_easy", [row]).items for row in (ARC[0], joined))
    assert hub == own and hub.requests()[1] == (joined["query"], " rise with stones")
    assert hub.correct == (True, False, False, False)


def test_hellaswag_loses_the_marks_of_wikihow(tmp_path: Path) -> None:
    """A mark goes, and two spaces become one; `capitalize` makes HE small."""
    item = a_task(tmp_path, "hellaswag", HELLASWAG, limit=2).items[1]
    assert item.context == "Carrying leaves: A man carries leaves. How. to go on. Walk. Then he"
    assert item.choices == (" Drops the leaves.", "sits down.", " leaves fly .", "waves.")
    assert item.correct.index(True) == 1


def test_mmlu_takes_the_first_examples_of_the_subject(tmp_path: Path) -> None:
    task = a_task(tmp_path, "mmlu", MMLU, shots=1, fewshot=[MMLU[9], MMLU[3], MMLU[2]], limit=1)
    assert [item.number for item in task.items] == [0, 8] and task.items[1].group == "anatomy"
    assert task.items[0].context == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "How many rivers (3)?\nA. none\nB. one \nC. two\nD. many\nAnswer: D\n\n"
        "How many stones (0)?\nA. none\nB. one \nC. two\nD. many\nAnswer:"
    )
    assert [continuation for _, continuation in task.items[0].requests()] == [" A", " B", " C", " D"]


def test_examples_are_drawn_from_one_generator_for_all_questions(tmp_path: Path) -> None:
    task = a_task(tmp_path, "gsm8k", GSM8K[:3], shots=2, fewshot=GSM8K[3:])
    rng = random.Random(1234)
    for item, row in zip(task.items, GSM8K[:3], strict=True):
        drawn = rng.sample(GSM8K[3:], 2)
        texts = [f"Question: {example['question']}\nAnswer: {example['answer']}\n\n" for example in drawn]
        assert item.prompt == "".join(texts) + f"Question: {row['question']}\nAnswer:"


def test_a_question_is_never_among_its_own_examples(tmp_path: Path) -> None:
    rows = [*ARC, *ARC]  # each twice, so that one draw can hold it twice
    file = str(tmp_path / "arc_easy.jsonl")
    for item in a_task(tmp_path, "arc_easy", rows, shots=3, fewshot=file).items:
        assert item.context.count(item.question) == 1 and item.context.count("Question: ") == 4


def test_truthfulqa_stands_after_its_six_examples(tmp_path: Path) -> None:
    task = a_task(tmp_path, "truthfulqa_mc2", TRUTHFULQA, fewshot=PREAMBLE)
    assert task.items[0].context.startswith("Q: Is 0 a number?\nA: 0 is one.\n\nQ: Is 1 a number?")
    assert task.items[0].context.endswith("A: 5 is one.\n\nQ: Do stones dream?\nA:")
    assert "fewshot.jsonl" in task.notes[0]
    with pytest.raises(InputError, match="has 5 rows, wanted the 6 examples"):
        a_task(tmp_path, "truthfulqa_mc2", TRUTHFULQA, fewshot=PREAMBLE[1:])


def test_without_a_file_or_the_harness_truthfulqa_says_what_it_needs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="give the file, or pip install lm_eval"):
        a_task(tmp_path, "truthfulqa_mc1", TRUTHFULQA)


def test_accuracy_is_by_log_prob_and_by_log_prob_per_character(tmp_path: Path) -> None:
    """Choices of 4, 16, 7 and 4 characters: -4 is the likeliest, and -8 / 16 is the least per character."""
    task = a_task(tmp_path, "arc_easy", ARC[:2])
    assert task.scores(task.items[0], likely(-4, -8, -7, -6)) == {"acc": 1, "acc_norm": 0}
    assert task.scores(task.items[1], likely(-4, -8, -7, -6)) == {"acc": 0, "acc_norm": 1}
    assert task.scores(task.items[0], likely(-4, -99, -9, -4)) == {"acc": 1, "acc_norm": 1}  # the first of equals


def test_mc2_is_the_share_of_the_right_choices_even_where_all_are_unlikely(tmp_path: Path) -> None:
    """exp(0) and exp(-1) of 1 + e^-1 + e^-2 + e^-3, whatever all of them are below it."""
    wanted = (1 + 0.36787944) / (1 + 0.36787944 + 0.13533528 + 0.04978707)
    task = a_task(tmp_path, "truthfulqa_mc2", TRUTHFULQA, fewshot=PREAMBLE)
    for least in (0.0, -2000.0):
        scores = task.scores(task.items[0], likely(least, least - 1, least - 2, least - 3))
        assert scores["mc2"] == pytest.approx(wanted, abs=1e-6)
    first = a_task(tmp_path, "truthfulqa_mc1", TRUTHFULQA, fewshot=PREAMBLE)
    assert first.scores(first.items[0], likely(-1, -2, -3)) == {"mc1": 1}


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        ("5 + 1 is\n#### 1,000\n", 1, 1),
        ("It is $1,000.", 0, 1),
        ("#### 1000 and not 999", 1, 0),
        ("#### 999 or rather 1000.", 0, 1),
        ("####1000", 0, 1),
        ("nothing", 0, 0),
    ],
)
def test_the_number_of_a_sum_is_compared(tmp_path: Path, answer: str, strict: int, flexible: int) -> None:
    task = a_task(tmp_path, "gsm8k", GSM8K[:1], shots=0)
    scores = task.scores(task.items[0], Generated(answer, 9, "stop"))
    assert scores == {"strict-match": strict, "flexible-extract": flexible}


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("arc_easy", [{"question": "?"}], "has no 'choices'"),
        ("arc_easy", [ARC[0] | {"answerKey": "Z"}], "'answerKey' is 'Z'"),
        ("arc_easy", [{"query": "?", "choices": ["a"], "gold": 1}], "the answer is choice 1 of 0 to 0"),
        ("hellaswag", [HELLASWAG[0] | {"label": ""}], "'label' is ''"),
        ("mmlu", [MMLU[0] | {"choices": ["a"]}], "has 1 choices"),
        ("truthfulqa_mc2", [TRUTHFULQA[0] | {"mc2_targets": {"choices": ["a"], "labels": [1]}}], "labels \\[1\\]"),
        ("gsm8k", [{"question": "?"}], "has no 'answer'"),
        ("arc_easy", [], "has no rows"),
        (
            "ifeval",
            [{"prompt": "?", "instruction_id_list": ["a:b"], "kwargs": [{}]}],
            "knows no instruction 'a:b'",
        ),
        (
            "ifeval",
            [{"prompt": "?", "instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": None}]}],
            "startend:end_checker has no end_phrase",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, name: str, rows: list, message: str) -> None:
    options = {"shots": 0} if name == "gsm8k" else {"fewshot": PREAMBLE} if name.startswith("truth") else {}
    with pytest.raises(InputError, match=message) as caught:
        a_task(tmp_path, name, rows, **options)
    assert f"{name}.jsonl" in str(caught.value)


def test_too_few_examples_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 2 examples, and 3 are wanted before each question"):
        a_task(tmp_path, "arc_challenge", ARC, shots=3, fewshot=ARC[:2])
    with pytest.raises(InputError, match="has no examples of anatomy"):
        a_task(tmp_path, "mmlu", MMLU, shots=1, fewshot=MMLU[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "arc_easy", "shots": 2}, "fewshot: got none, wanted the file that the 2 examples"),
        ({"task": "gsm8k"}, "fewshot: got none, wanted the file that the 5 examples"),
        ({"task": "truthfulqa_mc2", "shots": 2}, "shots: got 2, wanted 0 for truthfulqa_mc2"),
        ({"task": "mmlu", "fewshot": "x"}, "fewshot: got a value, but mmlu has no shots here"),
        ({"task": "mmlu", "chat_template": True}, "chat_template: got a value, but mmlu has nothing generated"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AcademicTaskOptions(file="x", **options)
