"""Grouped-query attention: the one function that the model calls, its implementations and the rule that picks one.

Not here: who sees whom (visibility.py), the blockwise kernel (blockwise_attention.py), projections and RoPE
(mistral.py).

Dimensions: B batch, T query, S key, N heads, K key/value heads, G heads per key/value head, H head size, R = G T.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from zephyr_jax.model.blockwise_attention import (
    MASKED_SCORE,
    MAX_BLOCK_TOKENS,
    Blocks,
    blockwise_attention,
    causal_blocks,
    live_blocks,
)
from zephyr_jax.model.visibility import Coordinates, visible
from zephyr_jax.records import InputError


def choose_attention(implementation: str, num_tokens: int, *, platform: str) -> str:
    """The implementation that rows of `num_tokens` get; the caller logs it.

    Args:
      implementation: auto, or one by name: xla, blockwise, cudnn.
      num_tokens: row length T.
      platform: jax.default_backend().

    Returns:
      xla, blockwise or cudnn.

    Raises:
      InputError: a named implementation cannot run here.
    """
    if implementation == "auto":
        return "blockwise" if num_tokens > MAX_BLOCK_TOKENS else "xla"
    if implementation == "cudnn" and platform not in ("gpu", "cuda"):
        raise InputError(f"model.attention: cudnn needs an NVIDIA GPU, this is {platform}; use auto, xla or blockwise")
    return implementation


def visited_blocks(
    where: Coordinates, *, window: int | None, implementation: str, platform: str | None = None
) -> Blocks | None:
    """What every layer's blockwise attention visits, found once a forward pass; None for the other implementations."""
    if implementation != "blockwise":
        return None
    if (platform or jax.default_backend()) == "cpu":
        return live_blocks(where, window=window)
    return causal_blocks(where.positions.shape[1])


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    query: Coordinates,
    key: Coordinates,
    window: int | None,
    implementation: str,
    blocks: Blocks | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over the visible keys, softmax in float32.

    Args:
      q_BTNH: queries.
      k_BSKH: keys; head n of the queries uses head n // (N / K).
      v_BSKH: values.
      query: coordinates of the queries, [B, T] each.
      key: coordinates of the keys, [B, S] each.
      window: sliding window in tokens, the current one included; None for no window.
      implementation: xla, blockwise (rows whose order in memory is causal, query and key are the same tokens) or cudnn.
      blocks: `visited_blocks` of these coordinates where they are at hand already.

    Returns:
      [B, T, N, H] in the dtype of the queries.
    """
    if implementation == "xla":
        return _dense(q_BTNH, k_BSKH, v_BSKH, visible(query, key, window=window))
    if implementation == "blockwise":
        if blocks is None:
            blocks = visited_blocks(query, window=window, implementation=implementation)
        assert blocks is not None
        return blockwise_attention(q_BTNH, k_BSKH, v_BSKH, where=query, blocks=blocks, window=window)
    assert implementation == "cudnn", implementation
    mask_B1TS = visible(query, key, window=window)[:, None]
    return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask_B1TS, implementation="cudnn")


def _dense(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    num_tokens, (num_kv_heads, head_dim) = q_BTNH.shape[1], k_BSKH.shape[-2:]
    # Heads in front and the G query heads of a key head joined to one long matrix: XLA's CPU backend runs these
    # products several times faster than with the heads in the middle.
    q_BKRH = rearrange(q_BTNH * head_dim**-0.5, "B T (K G) H -> B K (G T) H", K=num_kv_heads)
    k_BKHS = rearrange(k_BSKH, "B S K H -> B K H S")
    v_BKSH = rearrange(v_BSKH, "B S K H -> B K S H")
    scores_BKRS = jnp.einsum("BKRH,BKHS->BKRS", q_BKRH, k_BKHS, preferred_element_type=jnp.float32)
    scores_BKGTS = rearrange(scores_BKRS, "B K (G T) S -> B K G T S", T=num_tokens)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, MASKED_SCORE)
    # softmax, divided by its total after the product with v, where there is less to divide
    largest_BKGT1 = jax.lax.stop_gradient(jnp.max(scores_BKGTS, axis=-1, keepdims=True))
    weights_BKGTS = jnp.exp(scores_BKGTS - largest_BKGT1)
    totals_BKR1 = rearrange(jnp.sum(weights_BKGTS, axis=-1), "B K G T -> B K (G T) 1")
    weights_BKRS = rearrange(weights_BKGTS.astype(v_BSKH.dtype), "B K G T S -> B K (G T) S")
    out_BKRH = jnp.einsum("BKRS,BKSH->BKRH", weights_BKRS, v_BKSH) / totals_BKR1
    return rearrange(out_BKRH.astype(v_BSKH.dtype), "B K (G T) H -> B T (K G) H", T=num_tokens)
