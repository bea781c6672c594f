"""Intervals cover, groups count once, a paired test finds small steady differences, and noise is called noise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from zephyr_jax.evaluation.statistics import (
    Sampling,
    bootstrap_interval,
    compare,
    estimate_mean,
    share,
    sign_flip_p_value,
    sign_test_p_value,
    t_quantile,
    with_holm,
)

FEW = Sampling(resamples=2000)


def test_the_standard_error_of_single_items_is_the_textbooks() -> None:
    """0, 0, 0, 1: mean 1/4, sample variance 1/4, so s / sqrt(4) = 1/4."""
    found = estimate_mean([0, 0, 0, 1], sampling=FEW)
    assert (found.mean, found.standard_error) == (0.25, pytest.approx(0.25))
    assert found.low is not None and found.high is not None and found.low < 0.25 < found.high


def test_an_item_said_twice_makes_the_mean_no_surer() -> None:
    values = np.random.default_rng(0).normal(5, 2, 40)
    once = estimate_mean(values, sampling=FEW)
    twice = estimate_mean(np.repeat(values, 2), groups=[f"{g:02}" for g in range(40) for _ in "ab"], sampling=FEW)
    unaware = estimate_mean(np.repeat(values, 2), sampling=FEW)
    assert twice.mean == pytest.approx(once.mean) and (twice.num_items, twice.num_groups) == (80, 40)
    assert twice.standard_error == pytest.approx(once.standard_error) and twice.low == pytest.approx(once.low)
    assert unaware.standard_error is not None and once.standard_error is not None
    assert unaware.standard_error < 0.75 * once.standard_error


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 samples of 40, 95 % each: 190 expected, and below 176 with odds under 1 in 10 000."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        found = estimate_mean(rng.normal(3, 1, 40), sampling=Sampling(resamples=400))
        assert found.low is not None and found.high is not None
        covered += found.low <= 3 <= found.high
    assert 176 <= covered <= 199


def test_one_group_has_no_error_and_no_interval() -> None:
    found = estimate_mean([1.0, 3.0], groups=["q", "q"], sampling=FEW)
    assert (found.mean, found.standard_error, found.low, found.high) == (2.0, None, None, None)


def test_the_same_seed_gives_the_same_interval_however_it_is_drawn(monkeypatch) -> None:
    values = np.random.default_rng(2).normal(size=30)
    whole = estimate_mean(values, sampling=FEW)
    monkeypatch.setattr("zephyr_jax.evaluation.statistics._DRAWS_AT_ONCE", 100)
    assert estimate_mean(values, sampling=FEW) == whole
    assert estimate_mean(values, sampling=Sampling(resamples=2000, seed=1)).low != whole.low


def test_the_order_of_rows_does_not_matter() -> None:
    values, groups = [1.0, 5.0, 2.0, 7.0, 3.0, 3.0], ["a", "b", "a", "c", "d", "d"]
    turned = estimate_mean(values[::-1], groups=groups[::-1], sampling=FEW)
    assert estimate_mean(values, groups=groups, sampling=FEW) == turned


def test_any_statistic_can_be_drawn_anew() -> None:
    values = np.random.default_rng(3).normal(size=30)
    low, high = bootstrap_interval(lambda index: float(values[index].mean()), 30, sampling=FEW)
    again = estimate_mean(values, sampling=FEW)
    assert low == pytest.approx(again.low, abs=0.05) and high == pytest.approx(again.high, abs=0.05)


def test_pairing_finds_a_small_steady_difference_under_large_noise() -> None:
    """Questions differ by 3, the models by 0.3 on every one, give or take 0.3: 0.3 / (0.3 / sqrt(80)) = 9 errors."""
    rng = np.random.default_rng(4)
    hard = rng.normal(6, 3, 80)
    first = dict(enumerate(hard + 0.3 + rng.normal(0, 0.3, 80)))
    second = dict(enumerate(hard))
    found = compare(("ours", first), ("theirs", second), sampling=FEW)
    assert found is not None and not found.within_noise and found.p_value == 1 / 2001
    assert "ours is 0.3" in found.sentence("questions") and "above theirs" in found.sentence("questions")
    back = compare(("theirs", second), ("ours", first), sampling=FEW)
    assert back is not None and "below ours" in back.sentence("questions")


def test_noise_is_called_noise_and_only_common_items_count() -> None:
    rng = np.random.default_rng(5)
    first, second = dict(enumerate(rng.normal(size=50))), {item + 10: x for item, x in enumerate(rng.normal(size=50))}
    found = compare(("a", first), ("b", second), sampling=FEW)
    assert found is not None and found.difference.num_items == 40 and found.within_noise
    assert "within noise" in found.sentence("items") and found.as_dict()["within_noise"] is True
    assert compare(("a", {1: 2.0}), ("b", {2: 2.0}), sampling=FEW) is None


def test_the_sign_flip_test_agrees_with_all_flips_counted() -> None:
    """1, 2, 3, 4 all of one sign: of the 16 ways only all + and all - are as far: p = 1/8."""
    assert sign_flip_p_value(np.array([1.0, 2, 3, 4]), sampling=Sampling(resamples=20_000)) == pytest.approx(
        0.125, abs=4 * math.sqrt(0.125 * 0.875 / 20_000)
    )
    assert sign_flip_p_value(np.zeros(5), sampling=FEW) == 1.0


def test_the_sign_test_is_exact() -> None:
    """Five of five: 2 / 2^5; four of five: 2 (5 + 1) / 2^5; an even split says nothing."""
    assert sign_test_p_value(5, 0) == 2 / 32 and sign_test_p_value(1, 4) == 12 / 32
    assert sign_test_p_value(3, 3) == 1.0 and sign_test_p_value(0, 0) == 1.0


@pytest.mark.parametrize(
    ("share_below", "degrees", "wanted"),
    [(0.975, 1, 12.7062), (0.975, 9, 2.26216), (0.975, 79, 1.99045), (0.975, 804, 1.96293), (0.95, 4, 2.13185)],
)
def test_students_t_is_the_tables(share_below: float, degrees: int, wanted: float) -> None:
    assert t_quantile(share_below, degrees) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(("truth", "num_items"), [(0.5, 20), (0.9, 20), (0.98, 20), (0.98, 85), (0.1, 400)])
def test_the_interval_of_a_share_covers_it_also_near_the_ends(truth: float, num_items: int) -> None:
    """Of 400 samples 380 expected, below 360 with odds of 1 in 100 000; the plain bootstrap has 130 for 0.98 of 20."""
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(400):
        found = share(list(rng.random(num_items) < truth), sampling=FEW)
        covered += found.low <= truth <= found.high
    assert covered >= 360


def test_twenty_wins_of_twenty_are_no_certainty() -> None:
    """Wilson with t of 19 degrees: 20 / (20 + 2.093^2) = 0.820; where all tie there is room for one that does not."""
    found = estimate_mean([1.0] * 20, whole=1.0, sampling=FEW)
    assert (found.mean, found.high) == (1.0, 1.0) and found.low == pytest.approx(0.8203, abs=1e-4)
    percent = estimate_mean([100.0] * 20, whole=100.0, sampling=FEW)
    assert percent.low == pytest.approx(82.03, abs=1e-2)
    ties = estimate_mean([0.5] * 20, whole=1.0, sampling=FEW)
    assert ties.low is not None and ties.high is not None and 0.4 < ties.low < 0.5 < ties.high < 0.6
    nothing = share([], sampling=FEW)
    assert math.isnan(nothing.share) and (nothing.low, nothing.high) == (0, 1)


def test_shares_of_two_turns_a_question_count_questions() -> None:
    """Both turns alike: the interval is that of the 40 questions, not of 80 answers."""
    hits = [number % 4 != 0 for number in range(40)]
    once = share(hits, sampling=FEW)
    twice = share([hit for hit in hits for _ in "ab"], groups=[q for q in range(40) for _ in "ab"], sampling=FEW)
    assert (twice.count, twice.total) == (60, 80) and twice.low == pytest.approx(once.low)
    unaware = share(hits * 2, sampling=FEW)
    assert twice.high - twice.low > 1.3 * (unaware.high - unaware.low)


@pytest.mark.parametrize(("num_questions", "least"), [(10, 270), (80, 274)])
def test_mt_bench_means_cover_with_clustered_turns(num_questions: int, least: int) -> None:
    """Ratings with a ceiling, two turns that share their question's difficulty: of 300 intervals 285 are expected.

    The plain percentiles cover 0.90 with ten questions; turns counted as independent cover 0.86 with eighty.
    """
    rng = np.random.default_rng(7)

    def sample(count: int) -> np.ndarray:
        hard = rng.normal(7.5, 2, (count, 1))
        return np.clip(np.rint(hard + rng.normal(0, 1, (count, 2))), 1, 10)

    truth = sample(400_000).mean()
    covered = unaware = 0
    for _ in range(300):
        values = sample(num_questions).ravel()
        few = Sampling(resamples=600)
        found = estimate_mean(values, groups=[place // 2 for place in range(len(values))], sampling=few)
        alone = estimate_mean(values, sampling=few)
        assert found.low is not None and found.high is not None and alone.low is not None and alone.high is not None
        covered += found.low <= truth <= found.high
        unaware += alone.low <= truth <= alone.high
    assert covered >= least and unaware < covered - 10


@pytest.mark.parametrize("num_questions", [2, 3, 5])
def test_a_few_questions_say_little(num_questions: int) -> None:
    """95 % of 300 intervals are 285; between the least and the greatest question's mean it would be half of them for 2.

    So few as a category has in a run of 20 questions.
    """
    rng = np.random.default_rng(9)

    def sample(count: int) -> np.ndarray:
        return np.clip(np.rint(rng.normal(7.5, 2, count)), 1, 10)

    truth, covered = sample(400_000).mean(), 0
    for _ in range(300):
        found = estimate_mean(sample(num_questions), within=(1, 10), sampling=FEW)
        assert found.low is not None and found.high is not None and 1 <= found.low <= found.high <= 10
        covered += found.low <= truth <= found.high
    assert covered >= 276


def test_a_few_that_are_alike_show_no_spread() -> None:
    alike = [8.0, 8.0, 8.0]
    bounded, unbounded = (estimate_mean(alike, within=within, sampling=FEW) for within in ((1.0, 10.0), None))
    assert (bounded.mean, bounded.standard_error, bounded.low, bounded.high) == (8, 0, 1, 10)
    assert (unbounded.mean, unbounded.low, unbounded.high) == (8, None, None)
    found = compare(("a", dict.fromkeys("xyz", 9.0)), ("b", dict.fromkeys("xyz", 3.0)), within=(1, 10), sampling=FEW)
    assert found is not None and found.difference.low is not None and found.difference.low < 0 and found.within_noise


def test_turns_of_a_question_flip_their_sign_together() -> None:
    """Five questions, better by both turns: of 2^5 signs two are as far, p = 1/16, not the 2 / 2^10 of ten items."""
    first = {(question, turn): 1.0 for question in range(5) for turn in (1, 2)}
    second = dict.fromkeys(first, 0.0)
    many = Sampling(resamples=20_000)
    found = compare(("a", first), ("b", second), group_of=lambda item: item[0], sampling=many)
    assert found is not None and found.p_value == pytest.approx(1 / 16, abs=0.01)
    assert (found.difference.num_items, found.difference.num_groups) == (10, 5)
    # A turn that only one model has a score for is no part of the comparison.
    del second[0, 2]
    fewer = compare(("a", first), ("b", second), group_of=lambda item: item[0], sampling=many)
    assert fewer is not None and fewer.difference.num_items == 9 and fewer.difference.mean == 1


def test_models_that_are_alike_are_rarely_told_apart_however_many_they_are() -> None:
    """Ten models without a difference, 45 comparisons: some 2 of them are below 0.05, allowing for 45 hardly any."""
    rng = np.random.default_rng(8)
    alarms = alone = 0
    for _ in range(20):
        scores = {model: dict(enumerate(rng.normal(size=40))) for model in "abcdefghij"}
        names = list(scores)
        found = [
            compare((a, scores[a]), (b, scores[b]), sampling=Sampling(resamples=2000))
            for place, a in enumerate(names)
            for b in names[place + 1 :]
        ]
        held = with_holm([one for one in found if one])
        alone += any(one.p_value <= 0.05 for one in held)
        alarms += any(not one.within_noise for one in held)
    assert alone >= 10 and alarms <= 4  # 1 of 20 expected


def test_holms_values_are_the_papers_and_are_said() -> None:
    """0.01, 0.04, 0.03 of three: 3 x 0.01, then 2 x 0.03, and 0.04 may not be below 0.06."""
    one = compare(("a", {1: 1.0, 2: 2.0}), ("b", {1: 0.0, 2: 0.0}), sampling=FEW)
    assert one is not None
    found = with_holm([dataclasses.replace(one, p_value=p) for p in (0.01, 0.04, 0.03)])
    assert [each.p_adjusted for each in found] == pytest.approx([0.03, 0.06, 0.06])
    assert [each.within_noise for each in found] == [False, True, True]
    assert "p = 0.04, 0.06 allowing for 3 comparisons" in found[1].sentence("items")
    assert found[1].as_dict()["p_adjusted"] == pytest.approx(0.06) and found[1].as_dict()["num_compared"] == 3
    assert "allowing" not in with_holm([one])[0].sentence("items") and with_holm([]) == ()
