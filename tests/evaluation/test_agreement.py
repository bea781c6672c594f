"""An agreement stands beside what looking at nothing would agree, and a judge that is no better is called weak."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.fastchat_rows import a_grading, a_pair, write
from zephyr_jax.evaluation.agreement import agreement, read_judge
from zephyr_jax.evaluation.statistics import Sampling
from zephyr_jax.evaluation.trust import Trusts, agreement_of
from zephyr_jax.records import InputError

FEW = Sampling(resamples=500)


def _annotations(preferences, lengths=None, *, turned: bool = False):
    names = {"generator_1": "base", "generator_2": "ours"}
    for index, preference in enumerate(preferences):
        row = names | {"index": index, "preference": preference}
        if lengths:
            row |= {"len_1": 100, "len_2": 100 + lengths[index]}
        if turned:
            row |= {"generator_1": "ours", "generator_2": "base", "preference": preference and 3 - preference}
        yield row


def _compare(tmp_path: Path, judge, reference):
    files = [write(tmp_path / name, rows) for name, rows in (("judge.jsonl", judge), ("reference.jsonl", reference))]
    return agreement(read_judge(files[:1]), read_judge(files[1:]), sampling=FEW)


def test_a_judge_that_sees_what_the_reference_sees_is_not_weak(tmp_path: Path) -> None:
    """The contest is even and length says nothing: 95 of 100 agreed, chance one half, kappa 0.9."""
    reference = [1 + index % 2 for index in range(100)]
    judge = [3 - value if index < 5 else value for index, value in enumerate(reference)]
    lengths = [(-1) ** (index // 2) for index in range(100)]
    found, gradings = _compare(tmp_path, _annotations(judge), _annotations(reference, lengths))
    assert gradings is None and found is not None and found.agreed.share == 0.95 and not found.weak
    assert found.kappa == pytest.approx(0.9, abs=0.01)
    assert found.same_model.share == 0.5 and found.longer is not None and found.longer.share == 0.5
    assert found.sentence().startswith("agrees on 95.0%") and "WEAK" not in found.sentence()


def test_a_judge_that_only_likes_length_is_called_weak(tmp_path: Path) -> None:
    """The longer answer is the better one in 80 of 100; the judge always takes the longer one, and agrees in 80."""
    reference = [1 + index % 2 for index in range(100)]
    lengths = [(2 * value - 3) * (1 if index >= 20 else -1) for index, value in enumerate(reference)]
    judge = [2 if length > 0 else 1 for length in lengths]
    found, _ = _compare(tmp_path, _annotations(judge), _annotations(reference, lengths))
    assert found is not None and found.agreed.share == 0.8 and found.longer is not None and found.longer.share == 0.8
    assert found.weak and "a WEAK judge" in found.sentence() and found.as_dict()["weak"] is True


def test_always_choosing_the_better_model_agrees_often_and_says_nothing(tmp_path: Path) -> None:
    found, _ = _compare(tmp_path, _annotations([2] * 50), _annotations([2] * 45 + [1] * 5))
    assert found is not None and found.agreed.share == 0.9 and found.same_model.share == 0.9 and found.weak
    assert found.kappa == 0 and found.longer is None


def test_the_order_in_which_models_are_named_does_not_matter(tmp_path: Path) -> None:
    preferences = [1, 2, 2, 1.5, None]
    found, _ = _compare(tmp_path, _annotations(preferences), _annotations(preferences, turned=True))
    assert found is not None and found.agreed.count == found.agreed.total == 3
    assert found.agreed_with_ties.total == 4 and found.kappa == 1
    assert (found.num_common, found.num_unparsed) == (4, 0)  # what the reference does not say is no common item


def test_fastchats_pairs_and_reviews_are_verdicts_too(tmp_path: Path) -> None:
    review = {
        "question_id": 1,
        "model_1": "theirs",
        "model_2": "ours",
        "score": [9, 7.5],
        "answer_1": "long",
        "answer_2": "a",
    }
    pairs = [a_pair(1, "model_2", "model_2"), a_pair(2, "error", "tie")]
    found, _ = _compare(tmp_path, pairs, [review, review | {"question_id": 2, "score": [1, 2]}])
    assert found is not None and found.agreed.count == 1 and (found.num_common, found.num_unparsed) == (2, 1)
    assert found.longer is not None and found.longer.share == 1
    with pytest.raises(InputError, match="'score' is .* wanted a review"):
        _compare(tmp_path, pairs, [review | {"score": [1]}])


def test_an_index_that_stands_for_other_instructions_is_refused(tmp_path: Path) -> None:
    """Such as annotations of a shuffled set, whose rows have no index of their own."""
    rows = [{"generator_1": "base", "generator_2": "ours", "preference": 2, "instruction": text} for text in "abc"]
    with pytest.raises(InputError, match="instruction 0 is 'a', but at .*judge.jsonl:1 it is 'c'"):
        _compare(tmp_path, rows[::-1], rows)


def test_a_model_that_is_asked_is_no_reference_by_its_name(tmp_path: Path) -> None:
    """FastChat's browser wants the judge called gpt-4, whichever it is."""
    rows = [a_grading(number, 1 + number) for number in range(8)]
    mine = [row | {"judge": ["mine", "single-v1"]} for row in rows]
    files = [write(tmp_path / name, given) for name, given in (("mine.jsonl", mine), ("gpt-4.jsonl", rows))]
    result = agreement_of(*(read_judge([file]) for file in files), ((files[0],), (files[1],)), sampling=FEW)
    assert Trusts([result], {}).of("gpt-4", "gradings").is_reference
    assert Trusts([result], {"gpt-4": "granite"}).of("gpt-4", "gradings").cell() == "not measured"
    assert Trusts([result], {"gpt-4": "granite"}).of("mine", "gradings").cell() == "within 1 on 100.0 % of 8"


def test_two_gradings_make_no_judge_trusted(tmp_path: Path) -> None:
    """Both nearer than the median, by 3 points each: two of a kind say nothing of the next."""
    rows = [a_grading(1, 3), a_grading(2, 9)]
    _, found = _compare(tmp_path, rows, rows)
    assert found is not None and found.gain.mean == 3 and found.weak and found.rank_interval is None


def test_gradings_are_compared_by_how_far_they_are_off(tmp_path: Path) -> None:
    """Reference 2, 4, 6, 8 ten times; the judge is one above, but for an unparsed one: off by 1; the median 5 by 2."""
    reference = [a_grading(number, (2, 4, 6, 8)[number % 4]) for number in range(40)]
    judge = [a_grading(number, (3, 5, 7, 9)[number % 4]) for number in range(1, 40)] + [a_grading(0, -1)]
    verdicts, found = _compare(tmp_path, judge, reference)
    assert verdicts is None and found is not None and (found.num_common, found.num_unparsed) == (40, 1)
    assert (found.exact.count, found.within_one.count, found.difference.mean, found.error) == (0, 39, 1, 1)
    assert found.rank_correlation == pytest.approx(1) and found.constant_error == pytest.approx(2, abs=0.06)
    assert not found.weak and "nearer than one constant rating" in found.sentence()


def test_a_judge_that_guesses_ratings_is_called_weak(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference = [a_grading(number, int(rng.integers(7, 11))) for number in range(60)]
    judge = [a_grading(number, int(rng.integers(1, 11))) for number in range(60)]
    _, found = _compare(tmp_path, judge, reference)
    assert found is not None and found.weak and "a WEAK judge" in found.sentence()
    assert found.as_dict()["kind"] == "gradings"


def test_nothing_in_common_is_no_agreement(tmp_path: Path) -> None:
    assert _compare(tmp_path, [a_grading(1, 5)], [a_grading(2, 5)]) == (None, None)


def test_length_alone_agrees_with_gpt_4_more_often_than_a_coin(zephyr_data: Path) -> None:
    """GPT-4 beside itself: full agreement; its verdicts beside the lengths, counted here from the raw file."""
    file = zephyr_data / "judge_examples" / "vicuna_blog_gpt4_reviews.jsonl"
    found, _ = agreement(read_judge([str(file)]), read_judge([str(file)]), sampling=FEW)
    assert found is not None and found.agreed.share == 1 and found.kappa == 1 and not found.weak
    rows = [json.loads(line) for line in file.open(encoding="utf-8")]
    longer = decided = 0
    for row in rows:
        margin, length = row["score"][0] - row["score"][1], len(row["answer_1"]) - len(row["answer_2"])
        if margin and length and -1 not in row["score"]:
            decided += 1
            longer += math.copysign(1, margin) == math.copysign(1, length)
    assert found.longer is not None and (found.longer.count, found.longer.total) == (longer, decided)
    assert found.longer.low > 0.5


def test_a_judge_is_held_beside_the_lazy_ones_on_the_same_items(tmp_path: Path) -> None:
    """90 of 200 verdicts are the favourite model's less often than not; the judge agrees in 130, the favourite in 110.

    Apart the intervals overlap; item by item the judge is right on 20 more and wrong on none that the favourite has.
    """
    reference = [2] * 110 + [1] * 90
    judge = [2] * 110 + [1] * 20 + [2] * 70
    found, _ = _compare(tmp_path, _annotations(judge), _annotations(reference))
    assert found is not None and (found.agreed.count, found.same_model.count) == (130, 110)
    assert found.agreed.low < found.same_model.high and not found.weak
    assert found.gains[0].mean == pytest.approx(0.1) and found.gains[0].low is not None and found.gains[0].low > 0
    assert found.as_dict()["gains"][0]["num_items"] == 200
