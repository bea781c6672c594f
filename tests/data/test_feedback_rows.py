"""Which rows in UltraFeedback's raw layout are AI feedback, and the reasons for which the others are not."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from zephyr_jax.data import sources
from zephyr_jax.data.feedback_rows import parse_feedback
from zephyr_jax.data.rows import RowError
from zephyr_jax.recipe import Source
from zephyr_jax.records import ScoredCompletion

INSTRUCTION = "Which day follows Monday?"


def answer(**changed):
    annotations = {
        "instruction_following": {"Rating": "5", "Rationale": "Does what is asked."},
        "honesty": {"Rating": "N/A", "Rationale": "A fact."},
        "truthfulness": {"Type": ["1"], "Rationale": "True.", "Rating": "4", "Rationale For Rating": "Nearly."},
        "helpfulness": None,
    }
    return {
        "model": "gpt-4", "principle": "honesty", "custom_system_prompt": "Be honest.", "response": "Tuesday.",
        "annotations": annotations, "critique": "Fine.", "overall_score": 7.5, "fine-grained_score": 4.5, **changed,
    }  # fmt: skip


def row(*completions, **changed):
    models = [completion.get("model") for completion in completions if isinstance(completion, dict)]
    return {"source": "flan", "instruction": INSTRUCTION, "models": models, "completions": list(completions), **changed}


def test_ratings_in_text_are_numbers_and_not_applicable_is_none() -> None:
    record = parse_feedback(row(answer()), "uf.jsonl:3")
    assert record.completions == (
        ScoredCompletion("gpt-4", "Tuesday.", {"instruction_following": 5, "honesty": None, "truthfulness": 4}, 7.5),
    )
    assert record.prompt == ({"role": "user", "content": INSTRUCTION},) and record.instruction == INSTRUCTION
    assert record.source == "flan" and record.location == "uf.jsonl:3"
    assert record.prompt_id == hashlib.sha256(INSTRUCTION.encode()).hexdigest()


@pytest.mark.parametrize(
    ("rating", "read"), [("3", 3), (3, 3), (" 3.0 ", 3), ("3.25", 3.25), ("n/a", None), ("N/A", None)]
)
def test_a_rating_may_be_a_number_or_text(rating, read) -> None:
    annotations = {"honesty": {"Rating": rating}}
    assert parse_feedback(row(answer(annotations=annotations)), "x:1").completions[0].ratings == {"honesty": read}


@pytest.mark.parametrize("annotations", [None, {}, {"honesty": None}, {"honesty": {"Rating": None}}, {"rubric": 5}])
def test_what_is_not_rated_is_no_fault(annotations) -> None:
    assert parse_feedback(row(answer(annotations=annotations)), "x:1").completions[0].ratings == {}


@pytest.mark.parametrize(("score", "read"), [(10, 10.0), ("8", 8.0), ("7.5", 7.5), (None, None), ("N/A", None)])
def test_an_overall_score_may_be_a_number_text_or_null(score, read) -> None:
    assert parse_feedback(row(answer(overall_score=score)), "x:1").completions[0].overall_score == read


def test_an_empty_response_is_kept_for_the_rule_to_leave_out() -> None:
    assert parse_feedback(row(answer(response="")), "x:1").completions[0].response == ""


def test_a_prompt_of_several_turns_stands_in_messages() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    turns.append({"role": "user", "content": INSTRUCTION})
    record = parse_feedback(row(answer(), messages=turns, prompt_id=7), "x:1")
    assert record.prompt == tuple(turns) and record.prompt_id == "7"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (row(answer(), instruction=None), "instruction has no text"),
        (row(answer(), instruction=["Hi"]), "instruction is not text"),
        (row(answer(), completions="none"), "completions is not a list of answers"),
        (row(), "completions is empty"),
        (row("Tuesday."), "an answer is not an object"),
        (row(answer(response=None)), "a response is not text"),
        (row(answer(response="\ud83d")), "a response has half a surrogate pair"),
        (row(answer(annotations="good")), "annotations of an answer is not an object"),
        (row(answer(annotations={"honesty": 4})), "the annotation of honesty is not an object with a Rating"),
        (row(answer(annotations={"honesty": {"Rating": "6"}})), "a rating of honesty is neither 1 to 5 nor N/A"),
        (row(answer(annotations={"honesty": {"Rating": "5.5"}})), "a rating of honesty is neither 1 to 5 nor N/A"),
        (row(answer(annotations={"honesty": {"Rating": True}})), "a rating of honesty is neither 1 to 5 nor N/A"),
        (row(answer(overall_score="good")), "an overall_score is neither null nor a finite number"),
        (row(answer(overall_score=float("nan"))), "an overall_score is neither null nor a finite number"),
        (row(answer(), messages=[{"role": "assistant", "content": "Hi"}]), "messages starts with an assistant turn"),
    ],
)
def test_a_row_that_is_no_feedback_says_why(broken, reason) -> None:
    with pytest.raises(RowError) as error:
        parse_feedback(broken, "x:1")
    assert error.value.reason == reason


def test_files_of_every_kind_give_the_same_feedback_and_a_bad_row_has_its_line(tmp_path) -> None:
    rows = [
        row(answer()),
        row(answer(overall_score=None), answer(annotations=None)),
        row(),
        row(answer(response="No.")),
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "uf.parquet")
    (tmp_path / "uf.json").write_text(json.dumps(rows))
    (tmp_path / "uf.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    for name in ("uf.parquet", "uf.json", "uf.jsonl"):
        source = Source(source=str(tmp_path / name))
        records, report = sources.read_feedback([source], seed=0, max_bad_rows=0.25)
        assert [record.completions for record in records] == [
            parse_feedback(line, "x:1").completions for line in (rows[0], rows[1], rows[3])
        ]
        assert [(bad.location, bad.reason) for bad in report.bad_rows] == [
            (f"{tmp_path / name}:3", "completions is empty")
        ]
