"""Sums, counts and metrics of a micro-batch of pairs, from log-probs made up by hand."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small_stages import dpo
from zephyr_jax.training import objectives
from zephyr_jax.training.losses import SequenceLogProbs, TokenScores
from zephyr_jax.training.step import finish


@pytest.fixture
def totals(monkeypatch):
    """Pairs of margin 4, 0 and -2 nats, the third pair's place filled with nothing; beta 0.5; 5 target tokens."""
    policy = SequenceLogProbs(*(jnp.asarray(row) for row in ([-10.0, -20, 9, -3], [-14.0, -20, 7, -1], [1.0] * 4)), 1.0)
    scores = TokenScores(jnp.zeros((1, 6)), jnp.asarray([[1.0, 1, 2, 2, 4, 0]]), jnp.asarray([[1.0, 0, 1, 0, 0, 0]]))
    monkeypatch.setattr(objectives, "score_pairs", lambda *_, **__: (policy, scores))
    batch = {
        "reference_chosen": jnp.asarray([-11.0, -20, 0, -2]),
        "reference_rejected": jnp.asarray([-11.0, -20, 0, -2]),
        "pair_weights": jnp.asarray([1.0, 1, 0, 1]),
        "target_weights": jnp.asarray([[1.0, 1, 1, 1, 1, 0]]),
    }
    return dpo(beta=0.5)({}, batch)


def test_ddpo_metrics_by_hand(totals):
    """Log-ratios: chosen 1, 0, -1; rejected -3, 0, 1; times 0.5. x = 2, 0, -1: one of three strictly above 0.

    The loss is the mean of ln(1 + e^-x); the entropy 10 / 5 and the accuracy 2 / 5 are means over tokens.
    """
    values = {name: float(value) for name, value in finish(totals).items()}
    assert values == pytest.approx(
        {
            "loss": np.mean([math.log1p(math.exp(-x)) for x in (2, 0, -1)]),
            "rewards/chosen": 0.0,
            "rewards/rejected": (-1.5 + 0 + 0.5) / 3,
            "rewards/margins": (2 + 0 - 1) / 3,
            "rewards/accuracies": 1 / 3,
            "rewards/max_abs_margin": 2.0,
            "logps/chosen": -33 / 3,
            "logps/rejected": -35 / 3,
            "entropy": 10 / 5,
            "mean_token_accuracy": 2 / 5,
        },
        abs=1e-6,
    )


def test_the_loss_is_divided_by_the_pairs_that_are_there(totals):
    assert float(totals.divisor) == 3
