"""From a micro-batch to the sums that a train step needs: the model, the log-probs and the losses put together.

A micro-batch is the dict of arrays that data/packing.py describes. Every objective returns sums with their counts,
never means, so that micro-batches and devices of unequal size add up to the big batch.

Dimensions: B rows, T positions, N targets a row, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zephyr_jax.model.mistral import ModelSettings, Params, hidden_states_and_head
from zephyr_jax.recipe import Ddpo, ModelShape
from zephyr_jax.training.losses import (
    SequenceLogProbs,
    TokenScores,
    preference_loss,
    sum_by_sequence,
    token_scores,
)

MicroBatch = Mapping[str, jax.Array]


class Totals(NamedTuple):
    """What one micro-batch adds to a step.

    Attributes:
      loss: sum of the losses, a scalar.
      divisor: what the loss is divided by in the end: the number of target tokens or of pairs.
      means: metric -> (sum, count).
      maxima: metric -> maximum.
    """

    loss: jax.Array
    divisor: jax.Array
    means: dict[str, tuple[jax.Array, jax.Array]]
    maxima: dict[str, jax.Array]


Objective = Callable[[Params, MicroBatch], Totals]


def score_targets(params: Params, batch: MicroBatch, *, shape: ModelShape, settings: ModelSettings) -> TokenScores:
    """Scores of a micro-batch's target tokens; only the hidden states that predict one are sent through the head.

    Args:
      params: the parameter tree.
      batch: tokens, positions, segments, branches [B, T]; target_sources, target_ids, target_weights [B, N].
      shape: the model's shape.
      settings: dtype, attention and remat.

    Returns:
      TokenScores of [B, N] arrays.
    """
    hidden_BTD, head_VD = hidden_states_and_head(
        params,
        batch["tokens"],
        shape=shape,
        settings=settings,
        positions_BT=batch["positions"],
        segments_BT=batch["segments"],
        branches_BT=batch["branches"],
    )
    hidden_BND = jnp.take_along_axis(hidden_BTD, batch["target_sources"][:, :, None], axis=1)
    return token_scores(hidden_BND, head_VD, targets_BN=batch["target_ids"], weights_BN=batch["target_weights"])


def score_pairs(
    params: Params, batch: MicroBatch, *, shape: ModelShape, settings: ModelSettings
) -> tuple[SequenceLogProbs, TokenScores]:
    """Sums of log-probs over both answers of each pair, [P], and the token scores they are made of."""
    scores = score_targets(params, batch, shape=shape, settings=settings)
    sums = sum_by_sequence(
        scores.log_probs,
        slots_BN=batch["target_slots"],
        weights_BN=batch["target_weights"],
        num_pairs=batch["pair_weights"].shape[0],
    )
    return sums, scores


def _token_means(scores: TokenScores, weights_BN: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    count = jnp.sum(weights_BN)
    return {
        "entropy": (jnp.sum(scores.entropies), count),
        "mean_token_accuracy": (jnp.sum(scores.is_top), count),
    }


def sft_objective(*, shape: ModelShape, settings: ModelSettings) -> Objective:
    """Cross-entropy of the target tokens, summed; divided by their number in the end."""

    def objective(params: Params, batch: MicroBatch) -> Totals:
        scores = score_targets(params, batch, shape=shape, settings=settings)
        weights_BN = batch["target_weights"]
        return Totals(-jnp.sum(scores.log_probs), jnp.sum(weights_BN), _token_means(scores, weights_BN), {})

    return objective


def dpo_objective(options: Ddpo, *, shape: ModelShape, settings: ModelSettings) -> Objective:
    """The preference loss of a micro-batch's pairs, summed, with the metrics under TRL's names.

    The batch carries `reference_chosen` and `reference_rejected` [P] beside the arrays of a packed micro-batch.
    `rewards/max_abs_margin` is for the check that the policy starts at the reference.
    """

    def objective(params: Params, batch: MicroBatch) -> Totals:
        policy, scores = score_pairs(params, batch, shape=shape, settings=settings)
        reference = policy._replace(chosen=batch["reference_chosen"], rejected=batch["reference_rejected"])
        result = preference_loss(
            policy, reference, beta=options.beta, loss=options.loss, label_smoothing=options.label_smoothing
        )
        weights_P = batch["pair_weights"]
        count = jnp.sum(weights_P)
        margins_P = result.rewards_chosen - result.rewards_rejected
        per_pair = {
            "rewards/chosen": result.rewards_chosen,
            "rewards/rejected": result.rewards_rejected,
            "rewards/margins": margins_P,
            "rewards/accuracies": (margins_P > 0).astype(jnp.float32),
            "logps/chosen": policy.chosen,
            "logps/rejected": policy.rejected,
        }
        means = {name: (jnp.sum(values_P * weights_P), count) for name, values_P in per_pair.items()}
        means |= _token_means(scores, batch["target_weights"])
        maxima = {"rewards/max_abs_margin": jnp.max(jnp.abs(margins_P) * weights_P)}
        return Totals(jnp.sum(result.losses * weights_P), count, means, maxima)

    return objective
