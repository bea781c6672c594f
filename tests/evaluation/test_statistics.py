"""Intervals cover, groups count once, a paired test finds small steady differences, and noise is called noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zephyr_jax.evaluation.statistics import (
    Sampling,
    bootstrap_interval,
    compare,
    estimate_mean,
    sign_flip_p_value,
    sign_test_p_value,
)

FEW = Sampling(resamples=2000)


def test_the_standard_error_of_single_items_is_the_textbooks() -> None:
    """0, 0, 0, 1: mean 1/4, sample variance 1/4, so s / sqrt(4) = 1/4."""
    found = estimate_mean([0, 0, 0, 1], sampling=FEW)
    assert (found.mean, found.standard_error) == (0.25, pytest.approx(0.25))
    assert found.low is not None and found.high is not None and 0 <= found.low < 0.25 < found.high <= 1


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
