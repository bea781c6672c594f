"""Token log-probs and the losses of both stages: arrays in, arrays out.

Not here: the model that makes hidden states, batches, means over devices (objectives.py, step.py).

Dimensions: B rows, N targets a row, D model, V vocabulary, C targets of a chunk, P pairs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

MAX_CHUNK_TARGETS = 512  # [B, 512, V] in float32 is the largest piece of the logits that ever exists


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
    hidden_BND: jax.Array, head_DV: jax.Array, *, targets_BN: jax.Array, weights_BN: jax.Array
) -> TokenScores:
    """log softmax(h W)[target] in float32, a chunk of targets at a time, so that [B, N, V] never exists.

    The backward pass recomputes each chunk's logits and sums the head's gradient in float32. A chunk in which no
    target has a weight is skipped in both passes.

    Args:
      hidden_BND: hidden states that predict the targets, in the compute dtype.
      head_DV: output matrix, in the compute dtype.
      targets_BN: target ids, int32.
      weights_BN: 1 for a target, 0 for filler.

    Returns:
      TokenScores of [B, N] arrays.
    """
    log_probs_BN, entropies_BN, is_top_BN = _scores(hidden_BND, head_DV, targets_BN, weights_BN)
    return TokenScores(log_probs_BN, jax.lax.stop_gradient(entropies_BN), jax.lax.stop_gradient(is_top_BN))


@jax.custom_vjp
def _scores(hidden_BND, head_DV, targets_BN, weights_BN):
    return _scores_forward(hidden_BND, head_DV, targets_BN, weights_BN)[0]


def _scores_forward(hidden_BND, head_DV, targets_BN, weights_BN):
    def score(chunk):
        hidden_BCD, targets_BC, weights_BC = chunk
        logits_BCV = _logits(hidden_BCD, head_DV)
        largest_BC = jnp.max(logits_BCV, axis=-1)
        target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
        shifted_BCV = logits_BCV - largest_BC[..., None]
        odds_BCV = jnp.exp(shifted_BCV)  # softmax without its total
        total_BC = jnp.sum(odds_BCV, axis=-1)
        log_total_BC = largest_BC + jnp.log(total_BC)
        # H = log(total) - sum(softmax * shifted), since the entropy does not see the shift
        entropies_BC = jnp.log(total_BC) - jnp.sum(odds_BCV * shifted_BCV, axis=-1) / total_BC
        is_top_BC = (target_BC == largest_BC).astype(jnp.float32)
        scores = (target_BC - log_total_BC, entropies_BC, is_top_BC)
        return tuple(jnp.where(weights_BC > 0, field, 0.0) for field in scores), log_total_BC

    def skip(chunk):
        zeros_BC = jnp.zeros(chunk[1].shape, jnp.float32)
        return (zeros_BC, zeros_BC, zeros_BC), zeros_BC

    def body(_, chunk):
        return None, jax.lax.cond(jnp.any(chunk[2] > 0), score, skip, chunk)

    _, chunked = jax.lax.scan(body, None, _chunks(hidden_BND, targets_BN, weights_BN))
    scores, log_total_BN = jax.tree.map(_joined, chunked)
    return scores, (hidden_BND, head_DV, targets_BN, weights_BN, log_total_BN)


def _scores_backward(saved, gradients):
    hidden_BND, head_DV, targets_BN, weights_BN, log_total_BN = saved
    gradient_BN = jnp.where(weights_BN > 0, gradients[0], 0.0)

    def backward(gradient_DV, chunk):
        hidden_BCD, targets_BC, _, log_total_BC, gradient_BC = chunk
        probs_BCV = jnp.exp(_logits(hidden_BCD, head_DV) - log_total_BC[..., None])
        one_hot_BCV = jax.nn.one_hot(targets_BC, head_DV.shape[1], dtype=jnp.float32)
        dlogits_BCV = (gradient_BC[..., None] * (one_hot_BCV - probs_BCV)).astype(head_DV.dtype)
        dhidden_BCD = jnp.einsum("BCV,DV->BCD", dlogits_BCV, head_DV)
        dhead_DV = jnp.einsum("BCD,BCV->DV", hidden_BCD, dlogits_BCV, preferred_element_type=jnp.float32)
        return gradient_DV + dhead_DV, dhidden_BCD

    def skip(gradient_DV, chunk):
        return gradient_DV, jnp.zeros_like(chunk[0])

    def body(gradient_DV, chunk):
        return jax.lax.cond(jnp.any(chunk[2] > 0), backward, skip, gradient_DV, chunk)

    chunks = _chunks(hidden_BND, targets_BN, weights_BN, log_total_BN, gradient_BN)
    dhead_DV, dhidden = jax.lax.scan(body, jnp.zeros(head_DV.shape, jnp.float32), chunks)
    return _joined(dhidden), dhead_DV.astype(head_DV.dtype), None, None


_scores.defvjp(_scores_forward, _scores_backward)


def _logits(hidden_BCD: jax.Array, head_DV: jax.Array) -> jax.Array:
    return jnp.einsum("BCD,DV->BCV", hidden_BCD, head_DV, preferred_element_type=jnp.float32)


def _chunks(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[B, N, ...] -> [N / C, B, C, ...], C the largest divisor of N up to MAX_CHUNK_TARGETS."""
    num_targets = arrays[0].shape[1]
    size = next(c for c in range(min(num_targets, MAX_CHUNK_TARGETS), 0, -1) if num_targets % c == 0)
    return tuple(jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0) for a in arrays)


def _joined(chunked: jax.Array) -> jax.Array:
    """[N / C, B, C, ...] -> [B, N, ...]."""
    moved = jnp.moveaxis(chunked, 0, 1)
    return moved.reshape(moved.shape[0], -1, *moved.shape[3:])


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
