"""The command `binarise`: a file of feedback to a file of pairs, its counts on stdout, its mistakes in one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zephyr_jax import binarise
from zephyr_jax.data.feedback_rows import ASPECTS


def feedback_row(number: int, ratings=("5", "2", "N/A", None)) -> dict:
    answers = [
        {
            "model": f"model-{place}",
            "response": f"Answer {place} to {number}.",
            "annotations": {aspect: {"Rating": rating} for aspect in ASPECTS},
            "overall_score": 9 - place,
        }
        for place, rating in enumerate(ratings)
    ]
    return {"instruction": f"Question {number}?", "completions": answers}


@pytest.fixture
def feedback(tmp_path: Path) -> Path:
    file = tmp_path / "feedback.jsonl"
    rows = [feedback_row(0), feedback_row(1, ("4", "4")), feedback_row(2, ("6", "1")), feedback_row(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_pairs_are_written_and_counts_go_to_stdout(feedback: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = feedback.with_name("pairs.jsonl")
    assert binarise.main(["--data", str(feedback), "--out", str(out), "--max-bad-rows", "0.5"]) == 0
    pairs = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(pair["prompt"], pair["score_chosen"], pair["score_rejected"]) for pair in pairs] == [
        ("Question 0?", 5.0, 2.0),
        ("Question 3?", 5.0, 2.0),
    ]
    captured = capsys.readouterr()
    counts = json.loads(captured.out)
    assert counts["unreadable"] == {"a rating of instruction_following is neither 1 to 5 nor N/A": 1}
    assert counts["dropped"] == {"chosen and rejected tie": 1} and counts["pairs"] == 2
    assert (counts["without_score"], counts["not_applicable"], counts["unrated"]) == (4, 8, 8)
    assert f"{feedback}:3: a rating of instruction_following" in captured.err and "2 pairs" in captured.err


def test_a_bad_row_does_not_change_the_pairs_of_the_others(feedback: Path) -> None:
    out, alone = feedback.with_name("pairs.jsonl"), feedback.with_name("alone.jsonl")
    arguments = ["--score", "overall_score", "--max-bad-rows", "0.5", "--data"]
    assert binarise.main([*arguments, str(feedback), "--out", str(out)]) == 0
    last = feedback.with_name("last.jsonl")
    last.write_text(feedback.read_text(encoding="utf-8").splitlines()[3] + "\n", encoding="utf-8")
    assert binarise.main([*arguments, str(last), "--out", str(alone)]) == 0
    assert out.read_text(encoding="utf-8").splitlines()[-1:] == alone.read_text(encoding="utf-8").splitlines()


def test_no_score_of_the_kind_says_which_to_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "unrated.jsonl", tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(feedback_row(0, (None, None))) + "\n", encoding="utf-8")
    assert binarise.main(["--data", str(file), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert "no pair in 1 rows under rule best_vs_random" in message
    assert "no answer has a score of the kind aspect_mean: try --score with one of overall_score" in message
    assert not out.exists() and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "argila"], "rule: got 'argila', wanted one of .*did you mean 'argilla'"),
        (["--out", "."], "--out .: cannot be written"),
        (["--max-bad-rows", "0"], "more than max_bad_rows allows"),
    ],
)
def test_a_mistake_is_one_message(
    feedback: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(feedback.with_name("pairs.jsonl"))
    assert binarise.main(["--data", str(feedback), "--out", out, *arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    import re

    assert re.search(message, error)
    assert not Path(out).exists()
