"""The command `data_report`: the page and the figures, on rows by hand and on real preferences."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from zephyr_jax import data_report
from zephyr_jax.data.comparison_statistics import model_records
from zephyr_jax.data.comparisons import Comparison


def pair(number: int, *, longer: bool, margin: float | None = None) -> dict:
    answers = [f"Long answer number {number}, which goes on." + " And on." * (number % 5), f"No. {number}"]
    chosen, rejected = answers if longer else reversed(answers)
    row = {"prompt": f"Question <{number % 7}>?", "chosen": chosen, "rejected": rejected}
    row |= {"chosen_model": "wordy" if longer else "terse", "rejected_model": "terse" if longer else "wordy"}
    return row | ({} if margin is None else {"score_chosen": 5 + margin, "score_rejected": 5.0})


def write(file: Path, rows: list) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture
def needs_matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra [report])")


@pytest.mark.usefixtures("needs_matplotlib")
def test_the_page_says_that_longer_answers_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [pair(number, longer=number % 10 != 0, margin=1.0 + number % 3) for number in range(100)] + [{"chosen": "x"}]
    file, out = write(tmp_path / "pairs.jsonl", rows), tmp_path / "report.html"
    assert data_report.main([file, "--out", str(out)]) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert figures["longer_chosen"] == 0.9 and figures["comparisons"] == 100 and figures["prompts"] == 7
    assert figures["unreadable"] == {"no column rejected": 1} and f"{file}:101: no column rejected" in captured.err
    page = out.read_text(encoding="utf-8")
    assert "the chosen answer is the longer one in 90.0 % of 100 comparisons" in page
    assert "wordy wins 90.0 % of its 100 comparisons" in page
    assert re.search(r"Question &lt;\d&gt;\?", page) and "Question <" not in page
    assert page.count("<svg") == 3 and not re.search(r'(src|href)="http', page)


@pytest.mark.usefixtures("needs_matplotlib")
def test_few_pairs_without_scores_or_models_make_a_page_too(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    row = {"prompt": "Q?", "chosen": "Same size", "rejected": "same size"}
    assert data_report.main([write(tmp_path / "one.jsonl", [row]), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "No length bias to be seen" in page or "short answers" in page
    assert "Which model wins" not in page and "Scores and margins" not in page


@pytest.mark.usefixtures("needs_matplotlib")
def test_answers_of_equal_length_are_no_bias_towards_short_ones(tmp_path: Path) -> None:
    """Of 100 comparisons 60 are of equal length, and of the others the longer one is chosen in half."""
    texts = [("aa", "bb")] * 60 + [("aaa", "bb"), ("aa", "bbb")] * 20
    rows = [{"prompt": "Q?", "chosen": chosen, "rejected": rejected} for chosen, rejected in texts]
    out = tmp_path / "report.html"
    assert data_report.main([write(tmp_path / "pairs.jsonl", rows), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "No length bias to be seen" in page and "in 20.0 % of 100 comparisons" in page
    assert "60 are of equal length" in page


@pytest.mark.usefixtures("needs_matplotlib")
def test_a_page_of_many_sources_shows_the_largest(tmp_path: Path) -> None:
    """Where each row has a source of its own (an address, say) the table would have a line for every row."""
    rows = [pair(number, longer=True) | {"source": f"http://site/{number // 2}"} for number in range(199)]
    out = tmp_path / "report.html"
    assert data_report.main([write(tmp_path / "pairs.jsonl", rows), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert (
        len(re.findall(r"<td[^>]*>http://site/", page)) == 25
        and "100 sources; the 25 with the most comparisons" in page
    )


@pytest.mark.usefixtures("needs_matplotlib")
def test_raw_feedback_is_compared_answer_by_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [{"model": f"m{score}", "response": "a" * score, "overall_score": score} for score in (9, 7, 7, 3)]
    file = write(tmp_path / "feedback.jsonl", [{"instruction": "Q?", "completions": answers}])
    assert data_report.main([file, "--out", str(tmp_path / "r.html"), "--score", "overall_score"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["comparisons"] == 5 and figures["dropped"] == {data_report.TIED: 1}
    assert figures["longer_chosen"] == 1.0 and figures["correlation_length_margin"] == pytest.approx(1.0)


def test_feedback_without_the_score_says_which_others_there_are(tmp_path: Path, capsys) -> None:
    answers = [{"response": "a", "overall_score": 5}, {"response": "b", "overall_score": 6}]
    file = write(tmp_path / "feedback.jsonl", [{"instruction": "Q?", "completions": answers}])
    assert data_report.main([file, "--out", str(tmp_path / "r.html")]) == 2
    assert "--score takes aspect_mean, overall_score, buggy_overall_score" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_a_model_against_itself_is_no_record() -> None:
    same = Comparison(({"role": "user", "content": "Q?"},), "a", "b", None, None, "m", "m", "s", "x:1")
    assert model_records([same]) == []


@pytest.mark.usefixtures("needs_matplotlib")
def test_the_length_bias_of_real_preferences_is_found(zephyr_data: Path, tmp_path: Path, capsys) -> None:
    """69 % by its own description; counted here from the file itself."""
    file, out = zephyr_data / "preferences_train.jsonl", tmp_path / "report.html"
    rows = [json.loads(line) for line in file.open(encoding="utf-8")]
    longer = sum(len(row["chosen"][-1]["content"]) > len(row["rejected"][-1]["content"]) for row in rows) / len(rows)
    assert data_report.main([str(file), "--out", str(out)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["longer_chosen"] == longer and round(100 * longer) == 69
    assert figures["longer_chosen_interval"][0] > 0.5 and figures["correlation_length_margin"] > 0.2
    page = out.read_text(encoding="utf-8")
    assert f"Length bias: the chosen answer is the longer one in {100 * longer:.1f} % of {len(rows)}" in page
