"""FLOPs of products, times the loops around them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zephyr_jax.model.attention import attention
from zephyr_jax.model.visibility import Coordinates
from zephyr_jax.planning.flops import count_flops

A, B = jnp.zeros((3, 5)), jnp.zeros((5, 7))


def _flops(function, *arguments) -> float:
    return count_flops(jax.make_jaxpr(function)(*arguments)).flops


def test_a_product_is_two_flops_a_term():
    assert _flops(jnp.matmul, A, B) == 2 * 3 * 5 * 7
    assert _flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), jnp.zeros((4, 3, 5)), jnp.zeros((4, 5, 7))) == 840


def test_loops_count_their_turns():
    square = jnp.zeros((4, 4))
    assert _flops(lambda x: jax.lax.fori_loop(0, 6, lambda _, y: y @ square, x), square) == 6 * 128
    assert _flops(lambda x: jax.lax.map(lambda row: jax.lax.map(lambda y: y @ square, row), x), jnp.zeros((2, 3, 4, 4)))


def test_a_loop_of_unknown_length_counts_once_and_is_said():
    square = jnp.zeros((4, 4))
    jaxpr = jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ square, x))(square)
    count = count_flops(jaxpr)
    assert (count.flops, count.unknown_loops) == (128, 1)


def test_of_a_choice_the_dearest_branch_counts():
    branches = (lambda x: x, lambda x: x @ B @ B.T)
    assert _flops(lambda i, x: jax.lax.switch(i, branches, x), 0, A) == 4 * 3 * 5 * 7


def test_recomputation_is_counted():
    """d/da of sum(sin(a b)): one product forward, one backward, and with remat the first again."""

    def loss(a, b):
        return jnp.sum(jnp.sin(a @ b))

    assert _flops(jax.grad(loss), A, B) == 2 * 210
    assert _flops(jax.grad(jax.checkpoint(loss)), A, B) == 3 * 210


def test_the_products_that_a_kernel_hides_are_counted_by_formula():
    """2 rows of 1024, 8 heads of 64: 2 x 64 FLOPs for each of 1024 x 1025 / 2 pairs; forward 2 products, backward 7."""
    where = Coordinates(*(jnp.zeros((2, 1024), jnp.int32),) * 3)
    q, k = (jax.ShapeDtypeStruct((2, 1024, heads, 64), jnp.bfloat16) for heads in (8, 2))

    def total(q, k, v):
        out = attention(q, k, v, query=where, key=where, window=None, implementation="pallas")
        return jnp.sum(out.astype(jnp.float32))

    product = 2 * 8 * 2 * 64 * 1024 * 1025 // 2
    assert _flops(total, q, k, k) == 2 * product
    count = count_flops(jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(q, k, k))
    assert (count.flops, count.unknown_kernels) == (9 * product, set())
