"""What is kept for the backward pass, against a count by hand; each remat policy keeps more than the one before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tests.training.small_stages import SHAPE
from zephyr_jax.model.mistral import ModelSettings, abstract_params
from zephyr_jax.training.activations import activation_bytes
from zephyr_jax.training.objectives import sft_objective

B, T, N = 3, 40, 24
D, F, H, L = SHAPE.hidden_size, SHAPE.intermediate_size, SHAPE.head_dim, SHAPE.num_hidden_layers


def _kept(*, dtype: str = "float32", **settings: str) -> int:
    """Bytes kept for 3 rows of 40 tokens with 24 targets each."""
    arrays = {name: jax.ShapeDtypeStruct((B, T), jnp.int32) for name in ("tokens", "positions", "segments", "branches")}
    arrays |= {name: jax.ShapeDtypeStruct((B, N), jnp.int32) for name in ("target_sources", "target_ids")}
    arrays["target_weights"] = jax.ShapeDtypeStruct((B, N), jnp.float32)
    objective = sft_objective(shape=SHAPE, settings=ModelSettings(compute_dtype=dtype, **settings))
    return activation_bytes(objective, abstract_params(SHAPE), arrays)


def test_with_full_remat_the_layers_inputs_are_kept():
    """One input a layer, the last layer's output, the targets' hidden states; cosines and sines; two numbers a target.

    The two numbers are the sum that the softmax divides by, in the log, and the row that a target's state came from.
    """
    counted = L * B * T * D + B * T * D + B * N * D + 2 * B * T * (H // 2) + 2 * B * N
    assert _kept(remat="full") == pytest.approx(4 * counted, rel=0.01)


def test_bfloat16_keeps_half_of_the_hidden_states():
    """All but the angles and the two numbers a target, which are of 4 bytes in both."""
    saved = 2 * (L * B * T * D + B * T * D + B * N * D)
    assert _kept(remat="full") - _kept(remat="full", dtype="bfloat16") == saved


def test_each_policy_keeps_more_than_the_one_before():
    kept = [_kept(remat=remat, attention="blockwise") for remat in ("full", "attention", "mlp", "dots", "none")]
    assert kept == sorted(set(kept))
    gate_and_up = 4 * L * B * T * 2 * F
    assert kept[2] - kept[1] == gate_and_up


def test_the_copies_of_the_weights_in_the_compute_dtype_are_not_activations():
    """For GPUs the weights are cast once, before the layers, and the copies live as long as the activations."""
    assert _kept(remat="full", dtype="bfloat16", platform="gpu") <= _kept(remat="full", dtype="bfloat16")
