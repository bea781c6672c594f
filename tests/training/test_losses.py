"""Log-probs by parts of the vocabulary against the plain formula, preference losses against numbers by hand."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from zephyr_jax.training import losses
from zephyr_jax.training.losses import (
    SequenceLogProbs,
    loss_at_zero_margin,
    preference_loss,
    sum_by_sequence,
    token_scores,
)

B, N, D, V = 2, 30, 6, 11


def _problem(seed: int = 0, *, vocab_size: int = V):
    random = np.random.default_rng(seed)
    return {
        "hidden_BND": random.standard_normal((B, N, D)).astype(np.float32),
        "head_VD": random.standard_normal((vocab_size, D)).astype(np.float32),
        "targets_BN": random.integers(0, vocab_size, (B, N)).astype(np.int32),
        "weights_BN": (random.random((B, N)) < 0.7).astype(np.float32),
    }


def _plain_scores(hidden_BND, head_VD, *, targets_BN, weights_BN):
    """log softmax, entropy and argmax written out in float64."""
    logits_BNV = hidden_BND.astype(np.float64) @ head_VD.T
    log_probs_BNV = logits_BNV - np.log(np.exp(logits_BNV).sum(axis=-1, keepdims=True))
    log_probs_BN = np.take_along_axis(log_probs_BNV, targets_BN[..., None], axis=-1)[..., 0]
    entropies_BN = -(np.exp(log_probs_BNV) * log_probs_BNV).sum(axis=-1)
    is_top_BN = logits_BNV.argmax(axis=-1) == targets_BN
    return [np.where(weights_BN > 0, field, 0) for field in (log_probs_BN, entropies_BN, is_top_BN)]


def _plain_gradients(hidden_BND, head_VD, *, targets_BN, weights_BN, upstream_BN):
    """d/dlogits of sum(upstream * log_prob) is upstream * (one_hot - softmax)."""
    logits_BNV = hidden_BND.astype(np.float64) @ head_VD.T
    probs_BNV = np.exp(logits_BNV) / np.exp(logits_BNV).sum(axis=-1, keepdims=True)
    dlogits_BNV = (upstream_BN * (weights_BN > 0))[..., None] * (np.eye(len(head_VD))[targets_BN] - probs_BNV)
    return dlogits_BNV @ head_VD, np.einsum("BND,BNV->VD", hidden_BND, dlogits_BNV)


# Of 12 ids: one part; 2 of 6; 3 of 4; 4 of 3 (5 do not divide); 12 of 1. Of 11, a prime: 2, 3 and 4 parts with filler.
@pytest.mark.parametrize(
    ("most", "vocab_size"), [(4096, 12), (6, 12), (5, 12), (3, 12), (1, 12), (6, 11), (4, 11), (3, 11)]
)
def test_scores_by_parts_equal_log_softmax_in_values_and_gradients(most, vocab_size, monkeypatch):
    monkeypatch.setattr(losses, "MAX_PART_IDS", most)
    problem = _problem(vocab_size=vocab_size)
    upstream_BN = np.random.default_rng(1).standard_normal((B, N)).astype(np.float32)
    arrays = {name: problem.pop(name) for name in ("hidden_BND", "head_VD")}

    def total(hidden_BND, head_VD):
        scores = token_scores(hidden_BND, head_VD, **problem)
        return (scores.log_probs * upstream_BN).sum(), scores

    value_and_gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (_, scores), gradients = value_and_gradients(*arrays.values())
    for ours, plain in zip(scores, _plain_scores(*arrays.values(), **problem), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5)
    wanted = _plain_gradients(*arrays.values(), **problem, upstream_BN=upstream_BN)
    for ours, plain in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5)


def test_filler_targets_and_their_hidden_states_have_no_influence(monkeypatch):
    """Hidden states of 1e4 give logits of 1e4: were they let in, they would be the largest of all."""
    monkeypatch.setattr(losses, "MAX_PART_IDS", 5)
    problem = _problem()
    problem["weights_BN"] = (np.arange(N) < np.array([[12], [7]])).astype(np.float32)
    filler = problem["weights_BN"] == 0
    other = problem | {
        "hidden_BND": np.where(filler[..., None], 1e4, problem["hidden_BND"]).astype(np.float32),
        "targets_BN": np.where(filler, 0, problem["targets_BN"]),
    }

    @jax.jit
    def run(problem):
        def total(hidden_BND, head_VD):
            scores = token_scores(
                hidden_BND, head_VD, targets_BN=problem["targets_BN"], weights_BN=problem["weights_BN"]
            )
            return scores.log_probs.sum(), scores

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(problem["hidden_BND"], problem["head_VD"])

    ours, changed = run(problem), run(other)
    jax.tree.map(np.testing.assert_array_equal, ours, changed)
    (_, scores), (dhidden_BND, _) = jax.device_get(ours)
    assert all((array[filler] == 0).all() for array in (*scores, dhidden_BND))
    assert (scores.log_probs[~filler] < 0).all() and (dhidden_BND[~filler] != 0).all()


def test_logits_are_float32_where_hidden_states_are_bfloat16():
    """Hidden states and head are rounded before, but nothing is rounded after: float32 of the rounded inputs."""
    problem = _problem()
    half = {name: problem[name].astype(jax.numpy.bfloat16) for name in ("hidden_BND", "head_VD")}
    rounded = {name: array.astype(np.float32) for name, array in half.items()}
    scores = jax.jit(token_scores)(**(problem | half))
    assert scores.log_probs.dtype == np.float32
    np.testing.assert_allclose(scores.log_probs, _plain_scores(**(problem | rounded))[0], atol=1e-5)


@pytest.mark.parametrize("head_dtype", ["bfloat16", "float32"])
def test_the_heads_gradient_is_summed_in_float32(head_dtype):
    """4096 targets add the same -1/2 to the head's gradient: bf16 sums would stall at 128 (of 2048).

    h = 1, W = [0, 0]: both probabilities are 1/2, d log p / d W = h (one_hot - p) = (1/2, -1/2).
    """
    hidden_BND, head_VD = np.ones((1, 4096, 1), jax.numpy.bfloat16), np.zeros((2, 1), head_dtype)
    where = {"targets_BN": np.zeros((1, 4096), np.int32), "weights_BN": np.ones((1, 4096), np.float32)}
    gradient = jax.jit(jax.grad(lambda head_VD: token_scores(hidden_BND, head_VD, **where).log_probs.sum()))(head_VD)
    assert gradient.dtype == head_dtype
    assert gradient.astype(np.float32).tolist() == [[2048.0], [-2048.0]]


def test_hidden_states_gradient_is_summed_in_float32_over_parts(monkeypatch):
    """512 ids in 512 parts with W = 1, all as probable: h's gradient is 1 - 512 (1/512) = 0, and bf16 could not sum it.

    Gradients of the others are each -1/512; a running bf16 sum of them from 1 would not move at all.
    """
    monkeypatch.setattr(losses, "MAX_PART_IDS", 1)
    hidden_BND, head_VD = np.ones((1, 1, 1), jax.numpy.bfloat16), np.ones((512, 1), jax.numpy.bfloat16)
    where = {"targets_BN": np.zeros((1, 1), np.int32), "weights_BN": np.ones((1, 1), np.float32)}
    gradient = jax.jit(jax.grad(lambda hidden: token_scores(hidden, head_VD, **where).log_probs.sum()))(hidden_BND)
    assert abs(float(gradient[0, 0, 0])) < 4e-3  # one_hot - p itself is rounded to bf16: 1 - 1/512 by up to 1/512


def test_no_array_of_all_logits_exists():
    """Neither [targets, vocabulary] nor anything as large, forward or backward: 3 000 targets x 49 152 ids here."""
    hidden_BND, head_VD = jax.ShapeDtypeStruct((1, 3000, 8), np.float32), jax.ShapeDtypeStruct((49152, 8), np.float32)
    where = {
        "targets_BN": jax.ShapeDtypeStruct((1, 3000), np.int32),
        "weights_BN": jax.ShapeDtypeStruct((1, 3000), np.float32),
    }

    def total(hidden_BND, head_VD, where):
        return token_scores(hidden_BND, head_VD, **where).log_probs.sum()

    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(hidden_BND, head_VD, where).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3000 * 49152 * 4 / 2


def test_entropy_and_accuracy_by_hand():
    """Logits (ln 2, 0, 0): p = 1/2, 1/4, 1/4; entropy (1/2) ln 2 + 2 (1/4) ln 4 = 1.5 ln 2; the first is on top."""
    scores = jax.jit(token_scores)(
        np.ones((1, 2, 1), np.float32),
        np.array([[math.log(2)], [0], [0]], np.float32),
        targets_BN=np.array([[0, 1]], np.int32),
        weights_BN=np.ones((1, 2), np.float32),
    )
    np.testing.assert_allclose(scores.log_probs, [[-math.log(2), -2 * math.log(2)]], rtol=1e-6)
    np.testing.assert_allclose(scores.entropies, [[1.5 * math.log(2)] * 2], rtol=1e-6)
    assert scores.is_top.tolist() == [[1, 0]]


def test_sums_by_sequence_by_hand():
    """Pair 1 in the first row, pair 0 in the second; the entries of weight 0 point at slot 0 and count for nothing."""
    sums = sum_by_sequence(
        np.array([[-1, -2, -4, -8], [-16, -32, 0, 0]], np.float32),
        slots_BN=np.array([[2, 2, 3, 0], [1, 1, 0, 0]], np.int32),
        weights_BN=np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.float32),
        num_pairs=3,
    )
    assert [field.tolist() for field in sums] == [[-8, -3, 0], [-48, -4, 0], [1, 2, 0], [2, 1, 0]]


def _two_pairs():
    """Log-ratios of chosen (2, -1) and rejected (-2, 3); chosen answers of 4 and 2 tokens, rejected ones of 1 and 6."""
    policy = SequenceLogProbs(*np.array([[-10.0, -21], [-32, -37], [4, 2], [1, 6]], np.float32))
    reference = policy._replace(chosen=np.array([-12.0, -20], np.float32), rejected=np.array([-30.0, -40], np.float32))
    return policy, reference


# x = 0.5 (2 + 2) = 2 and 0.5 (-1 - 3) = -2. sigmoid: ln(1 + e^-2) and ln(1 + e^2). Smoothed by 0.1: 0.9 of that and 0.1
# of the other. hinge: max(0, 1 - 2) = 0 and 1 + 2 = 3. ipo: (2/4 + 2/1 - 1)^2 = 2.25 and (-1/2 - 3/6 - 1)^2 = 4.
BY_HAND = [
    ("sigmoid", 0.0, [math.log1p(math.exp(-2)), math.log1p(math.exp(2))]),
    ("sigmoid", 0.1, [math.log1p(math.exp(-2)) + 0.2, math.log1p(math.exp(2)) - 0.2]),
    ("hinge", 0.0, [0.0, 3.0]),
    ("ipo", 0.0, [2.25, 4.0]),
]


@pytest.mark.parametrize(("loss", "smoothing", "wanted"), BY_HAND)
def test_preference_losses_by_hand(loss, smoothing, wanted):
    """Smoothing e adds e x: -(1-e) log s(x) - e log s(-x) = -log s(x) + e x, since log s(x) - log s(-x) = x."""
    result = preference_loss(*_two_pairs(), beta=0.5, loss=loss, label_smoothing=smoothing)
    np.testing.assert_allclose(result.losses, wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(result.rewards_chosen, [1.0, -0.5])
    np.testing.assert_allclose(result.rewards_rejected, [-1.0, 1.5])


# Slopes by the chosen log-prob: sigmoid -beta s(-x); smoothed +e beta more; hinge 0 (x > 1) and -beta; ipo
# 2 (mean - 1 / (2 beta)) / n, which is 2 (1.5) / 4 = 0.75 for a margin already beyond its target and 2 (-2) / 2 = -2.
SLOPES = [
    ("sigmoid", 0.0, [-0.5 / (1 + math.exp(2)), -0.5 / (1 + math.exp(-2))]),
    ("sigmoid", 0.1, [-0.5 / (1 + math.exp(2)) + 0.05, -0.5 / (1 + math.exp(-2)) + 0.05]),
    ("hinge", 0.0, [0.0, -0.5]),
    ("ipo", 0.0, [0.75, -2.0]),
]


@pytest.mark.parametrize(("loss", "smoothing", "wanted"), SLOPES)
def test_slopes_of_the_losses_by_hand(loss, smoothing, wanted):
    """A descent step raises the chosen answer and lowers the rejected one, and the reference gets no part of it."""
    policy, reference = _two_pairs()

    def total(policy, reference):
        return preference_loss(policy, reference, beta=0.5, loss=loss, label_smoothing=smoothing).losses.sum()

    by_policy, by_reference = jax.grad(total, argnums=(0, 1))(policy, reference)
    np.testing.assert_allclose(by_policy.chosen, wanted, rtol=1e-5, atol=1e-7)
    lengths = policy.num_chosen_tokens / policy.num_rejected_tokens if loss == "ipo" else 1.0
    np.testing.assert_allclose(by_policy.rejected, -np.asarray(wanted) * lengths, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(by_reference.chosen, -by_policy.chosen, atol=1e-7)


def test_rewards_carry_no_gradient():
    policy, reference = _two_pairs()
    gradient = jax.grad(lambda policy: preference_loss(policy, reference, beta=0.5).rewards_chosen.sum())(policy)
    assert all((leaf == 0).all() for leaf in gradient)


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
@pytest.mark.parametrize(("loss", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.3), ("hinge", 0.0), ("ipo", 0.0)])
def test_a_policy_at_its_reference_has_the_stated_loss(loss, smoothing, beta):
    """ln 2 for sigmoid whatever the smoothing, 1 for hinge, 1 / (4 beta^2) for ipo; no rewards."""
    policy, _ = _two_pairs()
    result = preference_loss(policy, policy, beta=beta, loss=loss, label_smoothing=smoothing)
    wanted = {"sigmoid": math.log(2), "hinge": 1.0, "ipo": 1 / (4 * beta**2)}[loss]
    assert loss_at_zero_margin(beta=beta, loss=loss) == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(result.losses, wanted, rtol=1e-6)
    assert (result.rewards_chosen == 0).all() and (result.rewards_rejected == 0).all()


def test_very_unlike_answers_give_finite_losses_and_slopes():
    """x = -1000 and 1000: the loss is 1000 and 0, not inf or NaN; the slope -beta and 0."""
    far = np.array([-1000.0, 1000.0], np.float32)
    ones = np.ones(2, np.float32)
    policy = SequenceLogProbs(far, 0 * far, ones, ones)
    reference = policy._replace(chosen=0 * far)
    gradient = jax.grad(lambda policy: preference_loss(policy, reference, beta=1.0).losses.sum())(policy)
    assert preference_loss(policy, reference, beta=1.0).losses.tolist() == [1000.0, 0.0]
    assert gradient.chosen.tolist() == [-1.0, 0.0]
