"""Comparisons of pairs and of feedback, and their statistics, against values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zephyr_jax.data import comparison_statistics as statistics
from zephyr_jax.data.binarisation import SCORES
from zephyr_jax.data.comparisons import Comparison, comparison_of_pair, comparisons_of_feedback
from zephyr_jax.data.rows import RowError


def comparison(chosen="long answer", rejected="short", scores=(None, None), models=(None, None), prompt="Q?"):
    return Comparison(({"role": "user", "content": prompt},), chosen, rejected, *scores, *models, "s", "x:1")


def of_lengths(*pairs, margins=None):
    margins = margins or [None] * len(pairs)
    return [
        comparison("c" * chosen, "r" * rejected, (None, None) if margin is None else (margin, 0.0))
        for (chosen, rejected), margin in zip(pairs, margins, strict=True)
    ]


def test_a_pair_is_one_comparison_with_its_models_and_source() -> None:
    row = {"prompt": "Q?", "chosen": "A.", "rejected": "B.", "score_chosen": 9, "score_rejected": 7.5}
    row |= {"chosen_model": "gpt-4", "rejected_model": "alpaca", "source": "flan"}
    found = comparison_of_pair(row, "x:1", file="pairs.jsonl")
    assert (found.chosen_model, found.rejected_model, found.source, found.margin) == ("gpt-4", "alpaca", "flan", 1.5)
    bare = comparison_of_pair({"prompt": "Q?", "chosen": "A.", "rejected": "B."}, "x:1", file="pairs.jsonl")
    assert (bare.chosen_model, bare.source, bare.margin) == (None, "pairs.jsonl", None)


def test_feedback_is_every_pair_of_answers_whose_scores_differ() -> None:
    """A 9, B 7, C 7, D unscored, E empty: A over B and A over C; B and C tie."""
    answers = [("A", 9), ("B", 7), ("C", 7), ("D", None), (" ", 5)]
    completions = [{"model": text, "response": text, "overall_score": score} for text, score in answers]
    row = {"instruction": "Q?", "completions": completions}
    found, num_ties = comparisons_of_feedback(row, "x:1", file="f.jsonl", score=SCORES["overall_score"])
    assert [(c.chosen, c.rejected, c.margin, c.source) for c in found] == [
        ("A", "B", 2.0, "f.jsonl"),
        ("A", "C", 2.0, "f.jsonl"),
    ]
    assert num_ties == 1
    with pytest.raises(RowError, match="fewer than two answers with text and a score"):
        comparisons_of_feedback(row, "x:1", file="f.jsonl", score=SCORES["aspect_mean"])


def test_wilsons_interval_ends_where_the_normal_test_turns() -> None:
    """The ends are where |p - 0.8| = 1.96 sqrt(p (1 - p) / 10), which is what the interval is made of."""
    share = statistics.share_of(8, 10)
    for end in (share.low, share.high):
        assert abs(end - 0.8) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 10))
    assert share.low < share.share == 0.8 < share.high
    assert statistics.share_of(0, 5).low == pytest.approx(0) and statistics.share_of(5, 5).high == pytest.approx(1)
    assert math.isnan(statistics.share_of(0, 0).share)


def test_ranks_share_their_mean_where_values_tie() -> None:
    x, y = np.array([1.0, 2, 2, 3]), np.array([10.0, 20, 20, 1000])
    assert statistics.rank_correlation(x, y) == pytest.approx(1.0)
    assert statistics.rank_correlation(x, -y) == pytest.approx(-1.0)
    assert statistics.correlation(x, y) < 0.9
    assert statistics.correlation(x, np.ones(4)) is None and statistics.correlation(x[:2], y[:2]) is None


def test_rank_correlation_by_hand() -> None:
    """Ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 * 4 / (5 * 24) = 0.8."""
    assert statistics.rank_correlation(np.arange(5.0), np.array([3.0, 1, 9, 7, 20])) == pytest.approx(0.8)


def test_length_bias_counts_the_longer_chosen_of_all() -> None:
    bias = statistics.length_bias(of_lengths((5, 1), (9, 2), (3, 3), (1, 4), margins=[2.0, 4.0, 1.0, None]))
    assert (bias.longer.count, bias.longer.total, bias.num_equal, bias.num_scored) == (2, 4, 1, 3)
    assert bias.pearson == pytest.approx(np.corrcoef([4, 7, 0], [2, 4, 1])[0, 1])
    assert bias.spearman == pytest.approx(1.0)


def test_groups_by_ratio_are_equally_large_and_leave_out_equal_lengths() -> None:
    """Ratios 2 (chosen longer), 2 (shorter), 1 (left out), 10, 10 (longer)."""
    pairs = of_lengths((2, 1), (2, 4), (3, 3), (10, 1), (20, 2))
    groups = statistics.longer_chosen_by_ratio(pairs, num_bins=2)
    assert [(middle, share.count, share.total) for middle, share in groups] == [(2.0, 1, 2), (10.0, 2, 2)]


def test_wins_and_losses_by_model() -> None:
    played = [("a", "b"), ("a", "b"), ("b", "a"), ("a", "c"), ("a", "a"), ("a", None)]
    pairs = [comparison(models=models) for models in played]
    records = statistics.model_records(pairs)
    assert [(r.model, r.wins.count, r.wins.total) for r in records] == [("a", 3, 4), ("b", 1, 3), ("c", 0, 1)]
    assert records[2].mean_characters == 5 and records[0].mean_characters == (3 * 11 + 5) / 4
    assert statistics.wins_between(pairs, ["a", "b"]).tolist() == [[0, 2], [1, 0]]


def test_the_summary_is_plain_numbers() -> None:
    pairs = of_lengths((5, 1), (1, 2), margins=[0.0, 3.0])
    found = statistics.summary(pairs)
    assert (found["comparisons"], found["prompts"], found["scored"], found["ties"]) == (2, 1, 2, 1)
    assert found["longer_chosen"] == 0.5 and found["mean_margin"] == 1.5 and found["multi_turn"] == 0
