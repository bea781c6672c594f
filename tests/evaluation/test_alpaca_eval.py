"""Win rates are AlpacaEval's own, digit by digit, and what could not be parsed is counted, not scored."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from zephyr_jax.evaluation.alpaca_eval import by_contest, read_annotations, scores_by_instruction, win_rate
from zephyr_jax.evaluation.statistics import Sampling
from zephyr_jax.records import InputError

FEW = Sampling(resamples=1000)


def annotation(preference, **fields):
    return {"generator_1": "base", "generator_2": "ours", "annotator": "judge", "preference": preference} | fields


def write(path: Path, rows: list[dict]) -> str:
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_ties_count_half_and_unparsed_judgments_not_at_all(tmp_path: Path) -> None:
    """Scores 1, 1, 0, 1/2 (0 and 1.5 are ties) and 1/2; null, NaN and 3 are left out: 3 of 5, variance 0.175."""
    preferences = [2, 2.0, 1, 0, 1.5, None, math.nan, 3]
    file = write(tmp_path / "annotations.json", [annotation(p) for p in preferences])
    found = win_rate(read_annotations([file]), sampling=FEW).as_dict()
    assert found["win_rate"] == 60 and found["standard_error"] == pytest.approx(100 * math.sqrt(0.175 / 5))
    assert (found["n_wins"], found["n_wins_base"], found["n_draws"], found["n_total"]) == (2, 1, 2, 5)
    assert found["n_unparsed"] == 3 and found["avg_length"] is None and found["discrete_win_rate"] == 60
    assert found["interval"][0] < 60 < found["interval"][1] and found["within_noise"] is True


def test_preferences_between_count_by_their_size_and_the_discrete_rate_rounds_them(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [annotation(p) for p in (1.4, 1.6, 1.9, 1.5)])
    found = win_rate(read_annotations([file]), sampling=FEW).as_dict()
    assert found["win_rate"] == pytest.approx(60) and found["discrete_win_rate"] == pytest.approx(62.5)
    assert (found["n_wins"], found["n_wins_base"], found["n_draws"]) == (2, 1, 1)


def test_lengths_come_from_the_outputs_or_as_numbers(tmp_path: Path) -> None:
    rows = [annotation(2, output_1="ab", output_2="abcd"), annotation(1, len_1=9, len_2=5)]
    found = win_rate(read_annotations([write(tmp_path / "a.jsonl", rows)]), sampling=FEW)
    assert (found.mean_length, found.mean_baseline_length) == (4.5, 5.5)
    assert found.longer_wins == (2, 2)


def test_contests_are_told_apart_and_an_item_has_one_annotation(tmp_path: Path) -> None:
    rows = [annotation(2, index=4), annotation(1, index=4, generator_2="theirs"), annotation(1, index=4, annotator="x")]
    file = write(tmp_path / "a.jsonl", rows)
    contests = by_contest(read_annotations([file]))
    assert [contest[0] for contest in contests] == ["ours", "theirs", "ours"]
    assert scores_by_instruction(contests["ours", "base", "judge"]) == {4: 1.0}
    with pytest.raises(InputError, match=r"a.jsonl:1: ours on instruction 4 is annotated before, at .*a.jsonl:1"):
        read_annotations([file, file])
    shuffled = [annotation(2, instruction=text) for text in "ab"]
    other = [annotation(2, instruction=text, generator_2="theirs") for text in "ba"]
    with pytest.raises(InputError, match=r"c.jsonl:1: instruction 0 is 'b', but at .*b.jsonl:1 it is 'a'; wanted the"):
        read_annotations([write(tmp_path / "b.jsonl", shuffled), write(tmp_path / "c.jsonl", other)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"generator_1": "a", "generator_2": "b"}, r":1: has no 'preference' \(it has generator_1, generator_2\)"),
        (annotation("2"), r"'preference' is '2'; wanted an annotation of AlpacaEval"),
        (annotation(2, index="4"), r"'index' is '4'"),
    ],
)
def test_a_row_that_is_no_annotation_is_named(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_annotations([write(tmp_path / "a.jsonl", [row])])


def test_without_any_parsed_judgment_there_is_no_score(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [annotation(None)])
    with pytest.raises(InputError, match="none of the 1 judgments of ours against base"):
        win_rate(read_annotations([file]), sampling=FEW)


def published(zephyr_data: Path, leaderboard: str, model: str) -> dict[str, str]:
    with (zephyr_data / "alpaca_eval" / leaderboard).open(encoding="utf-8", newline="") as file:
        return next(row for row in csv.DictReader(file) if row[""] == model)


@pytest.mark.parametrize(
    ("model", "annotator", "leaderboard", "win_rate_percent"),
    [
        ("zephyr-7b-beta", "alpaca_eval_gpt4", "leaderboard_alpaca_eval_1_gpt4.csv", 90.5978),
        (
            "OpenHermes-2.5-Mistral-7B",
            "weighted_alpaca_eval_gpt4_turbo",
            "leaderboard_alpaca_eval_2_weighted_gpt4_turbo.csv",
            10.3404,
        ),
    ],
)
def test_the_published_figures_come_out_of_the_published_annotations(
    zephyr_data: Path, model: str, annotator: str, leaderboard: str, win_rate_percent: float
) -> None:
    """Every column of AlpacaEval's own leaderboard that does not need its length model."""
    file = str(zephyr_data / "alpaca_eval" / f"annotations_{model}_{annotator}.jsonl")
    found = win_rate(read_annotations([file]), sampling=FEW).as_dict()
    wanted = published(zephyr_data, leaderboard, model)
    assert round(found["win_rate"], 4) == win_rate_percent
    for column in ("win_rate", "standard_error", "discrete_win_rate"):
        assert found[column] == pytest.approx(float(wanted[column]), abs=1e-4), column
    for column in ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length"):
        assert found[column] == int(float(wanted[column])), column
    assert found["n_total"] + found["n_unparsed"] == 805 and not found["within_noise"]
    low, high = found["interval"]
    assert high - low == pytest.approx(2 * 1.96 * found["standard_error"], rel=0.1)
