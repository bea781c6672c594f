"""Products and RMSNorm: the gradients written out are those of automatic differentiation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zephyr_jax.model.linear import linear, rms_norm


def _random(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def _plain_norm(x_BTD, scale_D, eps):
    return x_BTD * jax.lax.rsqrt(jnp.mean(x_BTD**2, axis=-1, keepdims=True) + eps) * scale_D


@pytest.mark.parametrize(
    "ours, plain, arguments",
    [
        (linear, lambda x, w: jnp.einsum("BTD,DF->BTF", x, w), _random((2, 5, 4), (4, 3))),
        (lambda x, s: rms_norm(x, s, 0.1), lambda x, s: _plain_norm(x, s, 0.1), _random((2, 5, 4), (4,))),
    ],
    ids=["linear", "rms_norm"],
)
def test_written_gradients_are_those_of_autodiff(ours, plain, arguments):
    """The large eps of the norm makes an error in how it enters visible."""

    def value_and_gradients(function):
        weights = jnp.cos(jnp.arange(function(*arguments).size, dtype=jnp.float32))
        total = lambda *args: jnp.sum(function(*args).ravel() * weights)  # noqa: E731
        return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*arguments)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        value_and_gradients(ours),
        value_and_gradients(plain),
    )


def test_bfloat16_products_are_summed_in_float32_and_rounded_once():
    """512 products of 1: bf16 sums would stall at 256. The gradient of a weight sums 512 tokens the same way."""
    x_BTD, weight_DF = jnp.ones((1, 512, 512), jnp.bfloat16), jnp.ones((512, 1), jnp.bfloat16)
    out, gradients = jax.jit(jax.vjp, static_argnums=0)(linear, x_BTD, weight_DF)
    dx_BTD, dweight_DF = jax.jit(gradients)(jnp.ones_like(out))
    assert {a.dtype for a in (out, dx_BTD, dweight_DF)} == {jnp.dtype(jnp.bfloat16)}
    assert float(out[0, 0, 0]) == float(dweight_DF[0, 0]) == 512.0


def test_norm_computes_in_float32_for_bfloat16_input():
    """The mean of 1024 squares of 3 is 9; summed in bf16 it would stall at 2048."""
    x_BTD = jnp.full((1, 1, 1024), 3.0, jnp.bfloat16)
    out = rms_norm(x_BTD, jnp.ones(1024), 0.0)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.0)
