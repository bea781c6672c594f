"""Attention over the blocks of a row that somebody sees, forward and backward; the scores never exist as a whole.

A packed row holds dialogues and answers that do not see each other: most of its score matrix is masked. The blocks
that hold a visible pair of tokens are listed once a step, and a loop visits those alone (the softmax goes on from block
to block as in arXiv:2205.14135, algorithm 1; the backward pass recomputes the scores, as there in algorithm 4). For
rows whose order in memory is causal: T == S, and no key that is seen stands after its query.

Dimensions: B batch, T query, S key, K key/value heads, G heads per key/value head, H head size, R = T G.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from zephyr_jax.model.linear import keepable
from zephyr_jax.model.visibility import Coordinates, visible

MASKED_SCORE = -1e30  # finite: -inf minus -inf is NaN
LEAST_MAXIMUM = -1e29  # exp(MASKED_SCORE - LEAST_MAXIMUM) is 0, so a row that sees nothing has weights 0 and result 0

MAX_BLOCK_TOKENS = 256  # of 128, 256 and 384 the fastest by a little for rows of 768 tokens on a CPU

# What remat: attention keeps, by these names.
SAVED_NAMES = ("attention_output", "attention_log_total")


class Blocks(NamedTuple):
    """The pairs of a query block and a key block in which any row of the batch has a visible pair of tokens.

    Attributes:
      queries: index of the query block of each pair, int32 [M]; M is the number of pairs that causal order allows.
      keys: index of the key block of each pair, int32 [M].
      num_visits: how many pairs there are, int32, those behind being filler; None: all M.
    """

    queries: jax.Array
    keys: jax.Array
    num_visits: jax.Array | None


def block_size(num_tokens: int) -> int:
    """Tokens of a block: the row in as few equal blocks of at most MAX_BLOCK_TOKENS as it takes, a multiple of 16.

    The last block reaches over the row's end by less than 16 tokens a block: the row is padded to `size * blocks`.
    """
    num_blocks = -(-num_tokens // MAX_BLOCK_TOKENS)
    return -(-num_tokens // (16 * num_blocks)) * 16


def causal_blocks(num_tokens: int) -> Blocks:
    """All blocks that causal order allows. For GPUs, where a loop of unknown length would wait for the host each time.

    Args:
      num_tokens: T.

    Returns:
      The blocks on and below the diagonal, query blocks ascending.
    """
    num_blocks = -(-num_tokens // block_size(num_tokens))
    queries, keys = jnp.tril_indices(num_blocks)
    return Blocks(queries.astype(jnp.int32), keys.astype(jnp.int32), None)


def live_blocks(where: Coordinates, *, window: int | None) -> Blocks:
    """Finds the blocks that are worth a visit.

    Args:
      where: coordinates of the row's tokens, [B, T] each.
      window: sliding window in tokens; None for no window.

    Returns:
      The live blocks, query blocks ascending.
    """
    size = block_size(where.positions.shape[1])
    where = Coordinates(*(_whole_blocks(field, size) for field in where))
    num_blocks = where.positions.shape[1] // size
    seen_BTS = visible(where, where, window=window)
    live = jnp.any(rearrange(seen_BTS, "B (i T) (j S) -> i j (B T S)", T=size, S=size), axis=-1)
    most = num_blocks * (num_blocks + 1) // 2
    queries, keys = jnp.nonzero(live & jnp.tri(num_blocks, dtype=bool), size=most, fill_value=0)
    return Blocks(queries.astype(jnp.int32), keys.astype(jnp.int32), jnp.sum(live, dtype=jnp.int32))


def blockwise_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    where: Coordinates,
    blocks: Blocks,
    window: int | None,
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over the visible keys, softmax in float32.

    Args:
      q_BTNH: queries.
      k_BSKH: keys, S == T; head n of the queries uses head n // G.
      v_BSKH: values.
      where: coordinates of the tokens, [B, T] each.
      blocks: live_blocks of these coordinates, or causal_blocks.
      window: sliding window in tokens; None for no window.

    Returns:
      [B, T, N, H] in the dtype of the queries; 0 for a query that sees nothing.
    """
    num_tokens = q_BTNH.shape[1]
    size = block_size(num_tokens)
    heads = [_whole_blocks(array, size) for array in (q_BTNH, k_BSKH, v_BSKH)]
    where = Coordinates(*(_whole_blocks(field, size) for field in where))
    return _attend(*heads, where, blocks, window, size)[:, :num_tokens]


def _whole_blocks(array: jax.Array, size: int) -> jax.Array:
    """Padded with zeros along the tokens, axis 1, to whole blocks; segment 0 is seen by nobody."""
    missing = -array.shape[1] % size
    return jnp.pad(array, [(0, missing if axis == 1 else 0) for axis in range(array.ndim)]) if missing else array


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q_BTNH, k_BSKH, v_BSKH, where, blocks, window, size):
    return _forward(q_BTNH, k_BSKH, v_BSKH, where, blocks, window, size)[0]


def _forward(q_BTNH, k_BSKH, v_BSKH, where, blocks, window, size):
    num_kv_heads, head_dim = k_BSKH.shape[-2:]
    num_groups = q_BTNH.shape[2] // num_kv_heads
    q_BKRH, k_BKSH, v_BKSH = _rows_in_front(q_BTNH, num_kv_heads), _keys_in_front(k_BSKH), _keys_in_front(v_BSKH)
    k_BKHS = rearrange(k_BKSH, "B K S H -> B K H S")

    def visit(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out_BKRH, largest_BKR, total_BKR = carry
        i, j = blocks.queries[index], blocks.keys[index]
        rows = functools.partial(_slice, index=i, size=size * num_groups)
        scores_BKRS = jnp.einsum(
            "BKRH,BKHS->BKRS",
            rows(q_BKRH, axis=2),
            _slice(k_BKHS, index=j, size=size, axis=3),
            preferred_element_type=jnp.float32,
        )
        seen_BTS = visible(_block(where, i, size), _block(where, j, size), window=window)
        seen_B1RS = jnp.repeat(seen_BTS, num_groups, axis=1)[:, None]
        scores_BKRS = jnp.where(seen_B1RS, scores_BKRS * head_dim**-0.5, MASKED_SCORE)
        old_BKR = rows(largest_BKR, axis=2)
        new_BKR = jnp.maximum(old_BKR, jnp.max(scores_BKRS, axis=-1))
        weights_BKRS = jnp.exp(scores_BKRS - new_BKR[..., None])
        shrink_BKR = jnp.exp(old_BKR - new_BKR)
        value_BKRH = jnp.einsum(
            "BKRS,BKSH->BKRH",
            weights_BKRS.astype(v_BKSH.dtype),
            _slice(v_BKSH, index=j, size=size, axis=2),
            preferred_element_type=jnp.float32,
        )
        put = functools.partial(_update, index=i, size=size * num_groups, axis=2)
        return (
            put(out_BKRH, rows(out_BKRH, axis=2) * shrink_BKR[..., None] + value_BKRH),
            put(largest_BKR, new_BKR),
            put(total_BKR, rows(total_BKR, axis=2) * shrink_BKR + jnp.sum(weights_BKRS, axis=-1)),
        )

    shape = q_BKRH.shape[:3]
    start = (
        jnp.zeros(q_BKRH.shape, jnp.float32),
        jnp.full(shape, LEAST_MAXIMUM, jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )
    out_BKRH, largest_BKR, total_BKR = jax.lax.fori_loop(0, _num_visits(blocks), visit, start)
    out_BKRH = (out_BKRH / jnp.where(total_BKR > 0, total_BKR, 1.0)[..., None]).astype(q_BTNH.dtype)
    # +1e30 where nothing is seen: the backward pass finds weights of 0 there as well
    log_total_BKR = jnp.where(total_BKR > 0, largest_BKR + jnp.log(total_BKR), -MASKED_SCORE)
    out_BTNH = keepable(_rows_back(out_BKRH, num_groups), SAVED_NAMES[0])
    log_total_BKR = checkpoint_name(log_total_BKR, SAVED_NAMES[1])
    return out_BTNH, (q_BTNH, k_BSKH, v_BSKH, where, blocks, out_BTNH, log_total_BKR)


def _backward(window, size, saved, gradient_BTNH):
    q_BTNH, k_BSKH, v_BSKH, where, blocks, out_BTNH, log_total_BKR = saved
    num_kv_heads, head_dim = k_BSKH.shape[-2:]
    num_groups = q_BTNH.shape[2] // num_kv_heads
    q_BKRH, k_BKSH, v_BKSH = _rows_in_front(q_BTNH, num_kv_heads), _keys_in_front(k_BSKH), _keys_in_front(v_BSKH)
    gradient_BKRH = _rows_in_front(gradient_BTNH, num_kv_heads)
    out_BKRH = _rows_in_front(out_BTNH, num_kv_heads)
    # sum over the keys of weight * d(weight), arXiv:2205.14135, eq. 4
    inner_BKR = jnp.sum(gradient_BKRH.astype(jnp.float32) * out_BKRH.astype(jnp.float32), axis=-1)
    q_BKHR, gradient_BKHR, k_BKHS = (rearrange(x, "B K S H -> B K H S") for x in (q_BKRH, gradient_BKRH, k_BKSH))

    # Everything is computed transposed, keys in front: each product then is of a form for which XLA's CPU backend has a
    # fast kernel, which products with a transposed left side are not.
    def visit(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        dq_BKHR, dk_BKSH, dv_BKSH = carry
        i, j = blocks.queries[index], blocks.keys[index]
        rows = functools.partial(_slice, index=i, size=size * num_groups)
        keys = functools.partial(_slice, index=j, size=size)
        scores_BKSR = jnp.einsum(
            "BKSH,BKHR->BKSR", keys(k_BKSH, axis=2), rows(q_BKHR, axis=3), preferred_element_type=jnp.float32
        )
        seen_BTS = visible(_block(where, i, size), _block(where, j, size), window=window)
        seen_B1SR = jnp.repeat(rearrange(seen_BTS, "B T S -> B S T"), num_groups, axis=2)[:, None]
        scores_BKSR = jnp.where(seen_B1SR, scores_BKSR * head_dim**-0.5, MASKED_SCORE)
        weights_BKSR = jnp.exp(scores_BKSR - rows(log_total_BKR, axis=2)[:, :, None])
        dweights_BKSR = jnp.einsum(
            "BKSH,BKHR->BKSR", keys(v_BKSH, axis=2), rows(gradient_BKHR, axis=3), preferred_element_type=jnp.float32
        )
        dscores_BKSR = weights_BKSR * (dweights_BKSR - rows(inner_BKR, axis=2)[:, :, None]) * head_dim**-0.5
        weights_BKSR, dscores_BKSR = weights_BKSR.astype(v_BKSH.dtype), dscores_BKSR.astype(k_BKSH.dtype)
        dv_BKSH = _added(
            dv_BKSH, "BKSR,BKRH->BKSH", weights_BKSR, rows(gradient_BKRH, axis=2), index=j, size=size, axis=2
        )
        dk_BKSH = _added(dk_BKSH, "BKSR,BKRH->BKSH", dscores_BKSR, rows(q_BKRH, axis=2), index=j, size=size, axis=2)
        dq_BKHR = _added(
            dq_BKHR, "BKHS,BKSR->BKHR", keys(k_BKHS, axis=3), dscores_BKSR, index=i, size=size * num_groups, axis=3
        )
        return dq_BKHR, dk_BKSH, dv_BKSH

    zeros = tuple(jnp.zeros(array.shape, jnp.float32) for array in (q_BKHR, k_BKSH, v_BKSH))
    dq_BKHR, dk_BKSH, dv_BKSH = jax.lax.fori_loop(0, _num_visits(blocks), visit, zeros)
    dq_BTNH = _rows_back(rearrange(dq_BKHR, "B K H R -> B K R H"), num_groups).astype(q_BTNH.dtype)
    dk_BSKH, dv_BSKH = (rearrange(d, "B K S H -> B S K H").astype(k_BSKH.dtype) for d in (dk_BKSH, dv_BKSH))
    return dq_BTNH, dk_BSKH, dv_BSKH, None, None


_attend.defvjp(_forward, _backward)


def _num_visits(blocks: Blocks) -> jax.Array | int:
    return blocks.queries.shape[0] if blocks.num_visits is None else blocks.num_visits


def _rows_in_front(x_BTNH: jax.Array, num_kv_heads: int) -> jax.Array:
    """The G query heads of a key head joined to one long matrix, a token's heads beside each other."""
    return rearrange(x_BTNH, "B T (K G) H -> B K (T G) H", K=num_kv_heads)


def _rows_back(x_BKRH: jax.Array, num_groups: int) -> jax.Array:
    return rearrange(x_BKRH, "B K (T G) H -> B T (K G) H", G=num_groups)


def _keys_in_front(x_BSKH: jax.Array) -> jax.Array:
    return rearrange(x_BSKH, "B S K H -> B K S H")


def _slice(array: jax.Array, *, index: jax.Array, size: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, index * size, size, axis=axis)


def _update(array: jax.Array, value: jax.Array, *, index: jax.Array, size: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, value, index * size, axis=axis)


def _added(total: jax.Array, subscripts: str, *factors: jax.Array, index: jax.Array, size: int, axis: int) -> jax.Array:
    """`total` with the product of the factors added to its block."""
    place: dict[str, Any] = {"index": index, "size": size, "axis": axis}
    product = jnp.einsum(subscripts, *factors, preferred_element_type=jnp.float32)
    return _update(total, _slice(total, **place) + product, **place)


def _block(where: Coordinates, index: jax.Array, size: int) -> Coordinates:
    cut: Callable[[jax.Array], jax.Array] = functools.partial(_slice, index=index, size=size, axis=1)
    return Coordinates(*map(cut, where))
