"""MT-Bench scores are the means of what FastChat would average, and its files go in and out unchanged."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from tests.evaluation.fastchat_rows import a_grading, a_pair, a_question, write
from zephyr_jax.evaluation.fastchat_files import (
    check_file_names,
    file_name,
    read_answers,
    read_judgments,
    read_questions,
    write_rows,
)
from zephyr_jax.evaluation.mt_bench import CATEGORIES, bench_score, by_model, parse_rating, scores_by_answer
from zephyr_jax.evaluation.statistics import Sampling
from zephyr_jax.records import InputError

FEW = Sampling(resamples=500)
RUN = Path("mt_bench") / "example_run"


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[7]]", 7),
        ("Rating: [[8.5]], and not [[3]]", 8.5),
        ("[3] is the footnote. Rating: [[9]]", 9),
        ("Rating: [6]", 6),
        ("Rating: [[10]]", 10),
        ("Rating: [[0]]", 0),
        ("Rating: [[ 7 ]]", -1),
        ("Rating: [[7/10]]", -1),
        ("Rating: [[-3]]", -1),
        ("Rating: 7", -1),
        (f"Rating: [[{'9' * 5000}]]", -1),  # Python reads no whole number of so many digits
        ("", -1),
    ],
)
def test_a_rating_is_parsed_as_fastchat_does(text: str, rating: float) -> None:
    assert parse_rating(text) == rating


def _score(tmp_path: Path, rows, categories=None):
    gradings, _ = read_judgments([write(tmp_path / "single.jsonl", rows)])
    return bench_score(gradings, categories or {}, sampling=FEW)


def test_the_score_is_the_mean_over_all_gradings_that_could_be_parsed(tmp_path: Path) -> None:
    """(8 + 4 + 6) / 3 = 6, not the mean of the turns' means, (7 + 4) / 2; the unparsed one is counted alone."""
    rows = [a_grading(1, 8), a_grading(1, 4, turn=2), a_grading(2, 6), a_grading(2, -1, turn=2)]
    found = _score(tmp_path, rows, {1: "math", 2: "writing"})
    assert found is not None and found.estimate.mean == 6 and found.num_unparsed == 1
    assert (found.estimate.num_items, found.estimate.num_groups) == (3, 2)
    assert {turn: estimate.mean for turn, estimate in found.turns.items()} == {1: 7, 2: 4}
    assert [(name, estimate.mean) for name, estimate in found.categories.items()] == [("writing", 6), ("math", 6)]
    assert found.judge_spread is None and found.num_contradicted == 0


def test_repeated_judging_shows_its_spread(tmp_path: Path) -> None:
    """Rounds of means 6, 7 and 8: standard deviation 1. A later round's items are its own, whatever was unparsed."""
    rows = [a_grading(question, score) for score in (5, 6, 7) for question in (1,)]
    rows += [a_grading(question, score) for score in (7, 8, 9) for question in (2,)]
    found = _score(tmp_path, rows)
    assert found is not None and found.rounds == (6, 7, 8) and found.judge_spread == 1
    assert list(found.categories) == ["unknown"]


def test_what_looks_wrong_is_counted(tmp_path: Path) -> None:
    rows = [a_grading(1, 0), a_grading(2, 7, judgment="Rating: [[3]]"), a_grading(3, 5)]
    found = _score(tmp_path, rows)
    assert found is not None and found.num_outside == 1 and found.num_contradicted == 1 and found.estimate.mean == 4
    assert _score(tmp_path, [a_grading(1, -1)]) is None


def test_models_and_judges_are_told_apart(tmp_path: Path) -> None:
    rows = [a_grading(1, 8), a_grading(1, 4, model="theirs"), a_grading(1, 2, judge=["weak", "single-v1"])]
    gradings, pairs = read_judgments([write(tmp_path / "a.jsonl", [*rows, a_pair(1, "tie", "tie")])])
    assert list(by_model(gradings)) == [("ours", "gpt-4"), ("theirs", "gpt-4"), ("ours", "weak")] and len(pairs) == 1
    assert scores_by_answer([*gradings[:1], *gradings[:1]]) == {(1, 1): 8}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1}, r":1: has no 'judge'.*; wanted a single-answer judgment"),
        (a_grading(1, 8, judge="gpt-4"), "'judge' is 'gpt-4'"),
        (a_grading(1, 8, judge=["gpt-4"]), r"wanted \[name, prompt\]"),
        (a_grading(1, 8) | {"score": None}, "'score' is None"),
        (a_grading(1, 8) | {"score": float("nan")}, "'score' is nan; wanted a number, -1 where"),
        (a_pair(1, "A", "tie"), "'g1_winner' is 'A'; wanted one of model_1, model_2, tie, error"),
    ],
)
def test_a_row_of_another_kind_is_named(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_judgments([write(tmp_path / "a.jsonl", [row])])


def test_questions_are_read_with_their_categories(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", [a_question(81, "writing"), a_question(82, "math") | {"reference": ["4"]}])
    first, second = read_questions(file)
    assert (first.category, first.turns, first.reference) == ("writing", ("First?", "Second?"), ())
    assert second.reference == ("4",)
    with pytest.raises(InputError, match="question 81 is there twice"):
        read_questions(write(tmp_path / "twice.jsonl", [a_question(81, "math")] * 2))
    with pytest.raises(InputError, match="'turns' is empty"):
        read_questions(write(tmp_path / "none.jsonl", [a_question(81, "math") | {"turns": []}]))


def test_the_last_answer_to_a_question_counts(tmp_path: Path) -> None:
    row = {"question_id": 1, "answer_id": "x", "model_id": "ours", "choices": [{"index": 0, "turns": ["a", "b"]}]}
    file = write(tmp_path / "a.jsonl", [row, row | {"choices": [{"index": 0, "turns": ["c", "d"]}]}])
    (answer,) = read_answers([file])
    assert answer.choices == (("c", "d"),)
    with pytest.raises(InputError, match="turns are no list of texts"):
        read_answers([write(tmp_path / "b.jsonl", [row | {"choices": [{"index": 0}]}])])


def test_rows_that_others_wrote_are_read_and_written(tmp_path: Path) -> None:
    """Without a time or with a date; with half a character, as models cut at a token leave it."""
    choices = [{"index": 0, "turns": ["half \ud83d", "b"]}]
    for tstamp in (None, "2023-11-01"):
        row = {"question_id": 1, "model_id": "ours", "choices": choices, "tstamp": tstamp}
        (answer,) = read_answers([write(tmp_path / "a.jsonl", [row])])
        write_rows(tmp_path / "again.jsonl", [answer])
        assert read_answers([str(tmp_path / "again.jsonl")]) == [answer] and answer.choices[0][0] == "half \ufffd"
        (grading,), _ = read_judgments([write(tmp_path / "j.jsonl", [a_grading(1, 8, tstamp=tstamp)])])
        assert grading.score == 8


def test_two_models_never_share_a_file() -> None:
    assert file_name("Zephyr 7B: β") == "Zephyr 7B: β"  # FastChat's viewers know a model by its file
    assert file_name("org/model") == "org-model" and file_name("..") == "-"
    with pytest.raises(InputError, match="'org/model' and 'org-model' would be written to the same file 'org-model'"):
        check_file_names(["a", "org/model", "org-model"], "mt_bench.judging.answers")


def test_real_files_come_out_as_they_went_in(zephyr_data: Path, tmp_path: Path) -> None:
    """Answers, gradings and pairs of a real run: the same JSON, by question as FastChat orders its files."""
    folder = zephyr_data / RUN
    for path in sorted([*folder.glob("*/*.jsonl"), *(zephyr_data / "judge_examples").glob("unreliable*.jsonl")]):
        if path.parent.name == "model_answer":
            rows = list(read_answers([str(path)]))
        else:
            gradings, pairs = read_judgments([str(path)])
            rows = [*gradings, *pairs]
        write_rows(tmp_path / path.name, rows)
        before, after = (
            [json.loads(line) for line in file.open(encoding="utf-8")] for file in (path, tmp_path / path.name)
        )
        assert after == sorted(before, key=lambda row: row["question_id"]), path.name


def test_real_judgments_give_the_mean_of_an_independent_computation(zephyr_data: Path) -> None:
    """By hand from the raw file, and the figures that came with it."""
    file = zephyr_data / RUN / "model_judgment" / "gpt-4_single.jsonl"
    raw = [json.loads(line) for line in file.open(encoding="utf-8")]
    category_of = {q.question_id: q.category for q in read_questions(str(zephyr_data / "mt_bench" / "question.jsonl"))}
    gradings, _ = read_judgments([str(file)])
    known = {"mistral-orpo-trl": (7.165625, 7.73125, 6.6), "mistral-orpo-capybara": (6.81875, 7.125, 6.5125)}
    for (model, judge), rows in by_model(gradings).items():
        found = bench_score(rows, category_of, sampling=FEW)
        assert found is not None and judge == "gpt-4" and found.estimate.num_items == 160
        assert (found.num_unparsed, found.num_contradicted, found.rounds) == (0, 0, (found.estimate.mean,))
        mine = [row for row in raw if row["model"] == model and row["score"] != -1]
        assert found.estimate.mean == pytest.approx(statistics.fmean(row["score"] for row in mine), abs=1e-12)
        means = (found.estimate.mean, found.turns[1].mean, found.turns[2].mean)
        assert means == pytest.approx(known[model], abs=1e-12)
        assert tuple(found.categories) == CATEGORIES
        for name, estimate in found.categories.items():
            there = [row["score"] for row in mine if category_of[row["question_id"]] == name]
            assert len(there) == 20 and estimate.mean == pytest.approx(statistics.fmean(there), abs=1e-12)


def test_a_weak_judges_failures_are_counted_as_published(zephyr_data: Path) -> None:
    """40 of 160 have a rating; FastChat's parsing finds the stored score in every text."""
    file = zephyr_data / "judge_examples" / "unreliable_local_judge_granite-7b-lab.jsonl"
    gradings, _ = read_judgments([str(file)])
    found = bench_score(gradings, {}, sampling=FEW)
    assert found is not None and (found.estimate.num_items, found.num_unparsed) == (40, 120)
    assert found.num_outside == 2 and found.num_contradicted == 0


def test_questions_come_in_the_hubs_columns_too(tmp_path: Path) -> None:
    """HuggingFaceH4/mt_bench_prompts: prompt_id, prompt, category and reference, which is empty where there is none."""
    rows = [
        {"prompt_id": 90000001, "category": "math", "prompt": ["1+1?", "2+2?"], "reference": ["2", "4"]},
        {"prompt_id": 7, "category": "writing", "prompt": ["Write.", "Again."], "reference": []},
    ]
    first, second = read_questions(write(tmp_path / "hub.jsonl", rows))
    assert (first.question_id, first.turns, first.reference) == (90000001, ("1+1?", "2+2?"), ("2", "4"))
    assert (second.question_id, second.turns, second.reference) == (7, ("Write.", "Again."), ())
