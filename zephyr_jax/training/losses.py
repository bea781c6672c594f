"""Token log-probs and the losses of both stages: arrays in, arrays out.

Not here: the model that makes hidden states, batches, means over devices (objectives.py, step.py).

Dimensions: B rows, N targets a row, D model, V vocabulary, C ids of a part of the vocabulary, n parts, P
pairs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

MAX_PART_IDS = 4096  # [B, N, 4096] in float32 is the largest piece of the logits that ever exists
LEAST_LOGIT = -1e30


class TokenScores(NamedTuple):
    """What the head says about each target, float32 [B, N] each; 0 where the weight is 0.

    Attributes:
      log_probs: natural log of the target's probability; the only differentiable field.
      entropies: entropy of the predicted distribution, in nats.
      is_top: 1 where the target is the most probable token.
    """

    log_probs: jax.Array
    entropies: jax.Array
    is_top: jax.Array


def token_scores(
    hidden_BND: jax.Array, head_VD: jax.Array, *, targets_BN: jax.Array, weights_BN: jax.Array
) -> TokenScores:
    """log softmax(W h)[target] in float32, a part of the vocabulary at a time, so that [B, N, V] never exists.

    The forward pass goes through the vocabulary once with a running maximum and total (as the softmax of
    arXiv:2205.14135, algorithm 1); the backward pass goes through it again with the totals known, so that each part's
    rows of the head's gradient are made in one piece, by one product summed in float32.

    Args:
      hidden_BND: hidden states that predict the targets, in the compute dtype.
      head_VD: output matrix, in the compute dtype or in float32 (then it is cast here, and its gradient is float32).
      targets_BN: target ids, int32.
      weights_BN: 1 for a target, 0 for filler.

    Returns:
      TokenScores of [B, N] arrays.
    """
    log_probs_BN, entropies_BN, is_top_BN = _scores(hidden_BND, head_VD, targets_BN, weights_BN)
    return TokenScores(log_probs_BN, jax.lax.stop_gradient(entropies_BN), jax.lax.stop_gradient(is_top_BN))


@jax.custom_vjp
def _scores(hidden_BND, head_VD, targets_BN, weights_BN):
    return _scores_forward(hidden_BND, head_VD, targets_BN, weights_BN)[0]


class _Running(NamedTuple):
    """Of the part of the vocabulary seen so far, float32 [B, N] each.

    Attributes:
      largest: the largest logit.
      total: sum of exp(logit - largest).
      weighted: sum of exp(logit - largest) * (logit - largest), for the entropy.
      target: the target's logit, 0 until its part is seen.
    """

    largest: jax.Array
    total: jax.Array
    weighted: jax.Array
    target: jax.Array


def _scores_forward(hidden_BND, head_VD, targets_BN, weights_BN):
    vocab_size = head_VD.shape[0]
    cast_VD = head_VD.astype(hidden_BND.dtype)
    parts_CnD = _parts(cast_VD)

    def add_part(index: jax.Array, seen: _Running) -> _Running:
        logits_BNC, is_target_BNC, _ = _part_logits(hidden_BND, parts_CnD, targets_BN, index, vocab_size)
        largest_BN = jnp.maximum(seen.largest, jnp.max(logits_BNC, axis=-1))
        shifted_BNC = logits_BNC - largest_BN[..., None]
        odds_BNC = jnp.exp(shifted_BNC)  # softmax without its total
        shift_BN = seen.largest - largest_BN
        shrink_BN = jnp.exp(shift_BN)
        return _Running(
            largest_BN,
            seen.total * shrink_BN + jnp.sum(odds_BNC, axis=-1),
            (seen.weighted + shift_BN * seen.total) * shrink_BN + jnp.sum(odds_BNC * shifted_BNC, axis=-1),
            seen.target + jnp.sum(jnp.where(is_target_BNC, logits_BNC, 0.0), axis=-1),
        )

    zeros_BN = jnp.zeros(targets_BN.shape, jnp.float32)
    # Finite, and below every logit: -inf times the total of 0 would be NaN.
    nothing = _Running(jnp.full(targets_BN.shape, LEAST_LOGIT, jnp.float32), zeros_BN, zeros_BN, zeros_BN)
    seen = jax.lax.fori_loop(0, parts_CnD.shape[1], add_part, nothing)
    log_total_BN = seen.largest + jnp.log(seen.total)
    # H = log(total) - sum(softmax * shifted), since the entropy does not see the shift
    entropies_BN = jnp.log(seen.total) - seen.weighted / seen.total
    is_top_BN = (seen.target == seen.largest).astype(jnp.float32)
    scores = tuple(
        jnp.where(weights_BN > 0, field, 0.0) for field in (seen.target - log_total_BN, entropies_BN, is_top_BN)
    )
    # kept in the compute dtype beside the head itself, of which only the dtype is needed
    return scores, (hidden_BND, cast_VD, jnp.zeros((0,), head_VD.dtype), targets_BN, weights_BN, log_total_BN)


def _scores_backward(saved, gradients):
    hidden_BND, cast_VD, like_head, targets_BN, weights_BN, log_total_BN = saved
    vocab_size = cast_VD.shape[0]
    gradient_BN1 = jnp.where(weights_BN > 0, gradients[0], 0.0)[..., None]
    parts_CnD = _parts(cast_VD)

    def add_part(index: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dhidden_BND, dparts_CnD = sums
        logits_BNC, is_target_BNC, part_CD = _part_logits(hidden_BND, parts_CnD, targets_BN, index, vocab_size)
        probs_BNC = jnp.exp(logits_BNC - log_total_BN[..., None])
        dlogits_BNC = (gradient_BN1 * (is_target_BNC - probs_BNC)).astype(hidden_BND.dtype)
        dhidden_BND += jnp.einsum("BNC,CD->BND", dlogits_BNC, part_CD, preferred_element_type=jnp.float32)
        # rounded at once where the head is bfloat16: in float32 twice the bytes would be sent between devices
        dpart_CD = jnp.einsum("BNC,BND->CD", dlogits_BNC, hidden_BND, preferred_element_type=like_head.dtype)
        return dhidden_BND, jax.lax.dynamic_update_index_in_dim(dparts_CnD, dpart_CD, index, axis=1)

    zeros = jnp.zeros(hidden_BND.shape, jnp.float32), jnp.zeros(parts_CnD.shape, like_head.dtype)
    dhidden_BND, dparts_CnD = jax.lax.fori_loop(0, parts_CnD.shape[1], add_part, zeros)
    dhead_VD = dparts_CnD.reshape(-1, dparts_CnD.shape[-1])[:vocab_size]
    return dhidden_BND.astype(hidden_BND.dtype), dhead_VD, None, None


_scores.defvjp(_scores_forward, _scores_backward)


def _parts(head_VD: jax.Array) -> jax.Array:
    """The head as [C, n, D]: part i of n holds the ids i, n + i, 2 n + i, ...

    So a vocabulary that is split over devices is split in every part (where the split divides C; else XLA moves rows).
    Where no number of parts divides the vocabulary, the last ids are filler, and the head is copied.
    """
    vocab_size = head_VD.shape[0]
    least = -(-vocab_size // MAX_PART_IDS)
    num_parts = next((n for n in range(least, 2 * least + 1) if vocab_size % n == 0), least)
    missing = -vocab_size % num_parts
    head_VD = jnp.pad(head_VD, [(0, missing), (0, 0)]) if missing else head_VD
    return head_VD.reshape(-1, num_parts, head_VD.shape[1])


def _part_logits(
    hidden_BND: jax.Array, parts_CnD: jax.Array, targets_BN: jax.Array, index: jax.Array, vocab_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of a part: logits [B, N, C] in float32, LEAST_LOGIT for filler; where the targets stand in it; its rows [C, D].

    The rows are taken here, once: of a head that is split over devices the compiler would gather each taking anew.
    """
    part_CD = jax.lax.dynamic_index_in_dim(parts_CnD, index, axis=1, keepdims=False)
    logits_BNC = jnp.einsum("BND,CD->BNC", hidden_BND, part_CD, preferred_element_type=jnp.float32)
    ids_C = jnp.arange(parts_CnD.shape[0], dtype=jnp.int32) * parts_CnD.shape[1] + index
    if parts_CnD.shape[0] * parts_CnD.shape[1] != vocab_size:
        logits_BNC = jnp.where(ids_C < vocab_size, logits_BNC, LEAST_LOGIT)
    return logits_BNC, targets_BN[..., None] == ids_C, part_CD


class SequenceLogProbs(NamedTuple):
    """Sums of log-probs over each answer's tokens and their number, float32 [P] each."""

    chosen: jax.Array
    rejected: jax.Array
    num_chosen_tokens: jax.Array
    num_rejected_tokens: jax.Array


def sum_by_sequence(log_probs_BN: jax.Array, *, slots_BN: jax.Array, weights_BN: jax.Array, num_pairs: int):
    """Token log-probs summed over the answer that each token belongs to.

    Args:
      log_probs_BN: token log-probs, 0 where the weight is 0.
      slots_BN: 2 p for the chosen answer of pair p, 2 p + 1 for the rejected one.
      weights_BN: 1 for a target, 0 for filler.
      num_pairs: P.

    Returns:
      SequenceLogProbs of [P] arrays.
    """
    add = functools.partial(
        jax.ops.segment_sum, segment_ids=slots_BN.reshape(-1).astype(jnp.int32), num_segments=2 * num_pairs
    )
    sums_P2 = add((log_probs_BN * weights_BN).reshape(-1)).reshape(num_pairs, 2)
    counts_P2 = add(weights_BN.reshape(-1)).reshape(num_pairs, 2)
    return SequenceLogProbs(sums_P2[:, 0], sums_P2[:, 1], counts_P2[:, 0], counts_P2[:, 1])


class PreferenceLoss(NamedTuple):
    """Per pair, float32 [P] each: the loss, and beta times how far each answer's log-prob left the reference."""

    losses: jax.Array
    rewards_chosen: jax.Array
    rewards_rejected: jax.Array


def preference_loss(
    policy: SequenceLogProbs,
    reference: SequenceLogProbs,
    *,
    beta: float,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """The direct preference losses over x = beta ((log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected)).

    sigmoid: -(1 - e) log sigmoid(x) - e log sigmoid(-x), e the label smoothing: the probability that a label is
    wrong. hinge: max(0, 1 - x). ipo: (r_chosen / n_chosen - r_rejected / n_rejected - 1 / (2 beta))^2, r the
    log-ratio of an answer and n its tokens, as TRL computes it.

    Args:
      policy: log-probs under the policy.
      reference: log-probs under the frozen reference model; only `chosen` and `rejected` are read.
      beta: strength of the pull towards the reference; for ipo the inverse of twice the target margin.
      loss: sigmoid, hinge or ipo.
      label_smoothing: e, sigmoid only.

    Returns:
      PreferenceLoss of [P] arrays; rewards carry no gradient.

    References:
      arXiv:2305.18290 (sigmoid), its authors' note on conservative DPO (label smoothing), arXiv:2305.10425 (hinge),
      arXiv:2310.12036 (ipo).
    """
    ratio_chosen = policy.chosen - reference.chosen  # log pi(y_w|x) / pi_ref(y_w|x)
    ratio_rejected = policy.rejected - reference.rejected  # log pi(y_l|x) / pi_ref(y_l|x)
    x = beta * (ratio_chosen - ratio_rejected)
    if loss == "sigmoid":
        losses = -(1 - label_smoothing) * jax.nn.log_sigmoid(x)  # eq. 7, arXiv:2305.18290
        losses -= label_smoothing * jax.nn.log_sigmoid(-x)
    elif loss == "hinge":
        losses = jax.nn.relu(1 - x)
    else:
        assert loss == "ipo", loss
        mean_chosen = ratio_chosen / jnp.maximum(policy.num_chosen_tokens, 1)
        mean_rejected = ratio_rejected / jnp.maximum(policy.num_rejected_tokens, 1)
        losses = jnp.square(mean_chosen - mean_rejected - 1 / (2 * beta))  # eq. 17, arXiv:2310.12036
    rewards = jax.lax.stop_gradient((beta * ratio_chosen, beta * ratio_rejected))
    return PreferenceLoss(losses, *rewards)


def loss_at_zero_margin(*, beta: float, loss: str) -> float:
    """What `preference_loss` is where policy and reference agree: ln 2, 1 or 1 / (4 beta^2)."""
    return {"sigmoid": 0.6931471805599453, "hinge": 1.0, "ipo": 1 / (4 * beta**2)}[loss]
