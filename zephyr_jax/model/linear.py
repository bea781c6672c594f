"""The two operations that a layer is made of beside attention, with gradients written out: x W and RMSNorm.

Automatic differentiation gives the same numbers to rounding. On CPUs it gives products of transposed arrays, for which
XLA has no fast kernel, and sums over rows that it computes on one core: written as here, a layer's forward and backward
pass take about half the time. benchmarks/LOG.md has the figures.

Dimensions: B batch, T tokens, D input features, F output features.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

SAVED_PRODUCTS = "products"  # what remat: dots keeps, by this name


def product(subscripts: str, left: jax.Array, right: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """An einsum of two arrays of one dtype, summed in float32 and rounded once to `dtype`, by default theirs.

    On a CPU the float32 result is asked for by name: only then do bfloat16 products reach the fast kernel. GPUs sum in
    float32 anyway, and a float32 result there would be sent between devices at twice the bytes.
    """
    if dtype == jnp.float32 or left.dtype == jnp.float32:
        return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)

    def in_float32(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32).astype(left.dtype)

    def as_is(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(subscripts, left, right)

    return jax.lax.platform_dependent(left, right, cpu=in_float32, default=as_is)


def keepable(x: jax.Array, name: str) -> jax.Array:
    """x under a name that a remat policy can keep it by. For forward rules of custom_vjp only: bits have no gradient.

    bfloat16 is kept as its bits, since XLA's CPU backend widens bfloat16 arrays to write them into the layers' stack.
    """
    if x.dtype != jnp.bfloat16:
        return checkpoint_name(x, name)
    bits = checkpoint_name(jax.lax.bitcast_convert_type(x, jnp.uint16), name)
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x_BTD: jax.Array, weight: jax.Array, name: str = SAVED_PRODUCTS) -> jax.Array:
    """x W.

    Args:
      x_BTD: activations.
      weight: weights, [D, F] or with heads apart: [D, N, H], or [N, H, F] with N H = D; in the activations' dtype or
        in float32, which its gradient then is in as well. Cast and flattened in here, so that what is kept for the
        backward pass is the parameter itself and no copy of it.
      name: what a remat policy may keep the result by.

    Returns:
      [B, T, F] in the activations' dtype, F = N H where heads are apart.
    """
    return product("BTD,DF->BTF", x_BTD, _matrix(weight, x_BTD))


def _matrix(weight: jax.Array, x_BTD: jax.Array) -> jax.Array:
    return weight.reshape(x_BTD.shape[-1], -1).astype(x_BTD.dtype)


def _linear_forward(x_BTD, weight, name):
    return keepable(product("BTD,DF->BTF", x_BTD, _matrix(weight, x_BTD)), name), (x_BTD, weight)


def _linear_backward(name, saved, gradient_BTF):
    x_BTD, weight = saved
    dx_BTD = product("BTF,DF->BTD", gradient_BTF, _matrix(weight, x_BTD))
    return dx_BTD, product("BTD,BTF->DF", x_BTD, gradient_BTF, weight.dtype).reshape(weight.shape)


linear.defvjp(_linear_forward, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x_BTD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale, computed in float32 (arXiv:1910.07467, eq. 4).

    Args:
      x_BTD: activations.
      scale_D: learned scale.
      eps: what keeps the root from zero.

    Returns:
      [B, T, D] in the dtype of x.
    """
    x32_BTD = x_BTD.astype(jnp.float32)
    return (x32_BTD * _inverse_rms(x32_BTD, eps) * scale_D).astype(x_BTD.dtype)


def _inverse_rms(x32_BTD: jax.Array, eps: float) -> jax.Array:
    return jax.lax.rsqrt(jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True) + eps)


def _rms_norm_forward(x_BTD, scale_D, eps):
    return rms_norm(x_BTD, scale_D, eps), (x_BTD, scale_D)


def _rms_norm_backward(eps, saved, gradient_BTD):
    x_BTD, scale_D = saved
    x32_BTD, gradient32_BTD = x_BTD.astype(jnp.float32), gradient_BTD.astype(jnp.float32)
    inverse_BT1 = _inverse_rms(x32_BTD, eps)
    scaled_BTD = gradient32_BTD * scale_D
    # d/dx of x r(x) applied to g: r g - x r^3 mean(g x)
    mean_BT1 = jnp.mean(scaled_BTD * x32_BTD, axis=-1, keepdims=True)
    dx_BTD = inverse_BT1 * scaled_BTD - x32_BTD * inverse_BT1**3 * mean_BT1
    dscale_D = jnp.sum(gradient32_BTD * x32_BTD * inverse_BT1, axis=(0, 1))
    return dx_BTD.astype(x_BTD.dtype), dscale_D.astype(scale_D.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)
