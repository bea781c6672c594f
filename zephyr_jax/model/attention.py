"""Grouped-query attention: who may see whom, and the implementations that compute it.

Every layout (padded rows, packed dialogues, pairs that share their prompt, cached decoding) is described by
three integers a token, never by a mask that travels with the batch. Not here: projections and RoPE (mistral.py).

Dimensions: B batch, T query, S key, N heads, K key/value heads, G heads per key/value head, H head size, R = G T.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from zephyr_jax.records import InputError

QUERY_BLOCK_TOKENS = 256
MASKED_SCORE = -1e30  # finite: a padding query sees nothing, and -inf everywhere would make its softmax NaN


class Coordinates(NamedTuple):
    """Where each token stands, int32 [B, T] each.

    Attributes:
      positions: RoPE position; starts at 0 in every segment.
      segments: dialogue or pair within the row, from 1; 0 is padding.
      branches: 0 for text that all later tokens of its segment see, 1 and 2 for answers that do not see each other.
    """

    positions: jax.Array
    segments: jax.Array
    branches: jax.Array


def visible(query: Coordinates, key: Coordinates, *, window: int | None) -> jax.Array:
    """Which keys each query may attend to.

    Args:
      query: coordinates of the queries, [B, T] each.
      key: coordinates of the keys, [B, S] each.
      window: sliding window in tokens, the current one included; None for no window.

    Returns:
      bool [B, T, S].
    """
    distance_BTS = query.positions[:, :, None] - key.positions[:, None, :]
    same_segment_BTS = (query.segments[:, :, None] == key.segments[:, None, :]) & (key.segments[:, None, :] > 0)
    branch_BTS = (key.branches[:, None, :] == 0) | (key.branches[:, None, :] == query.branches[:, :, None])
    allowed_BTS = same_segment_BTS & branch_BTS & (distance_BTS >= 0)
    return allowed_BTS if window is None else allowed_BTS & (distance_BTS < window)


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
        return "blockwise" if num_tokens > QUERY_BLOCK_TOKENS else "xla"
    if implementation == "cudnn" and platform not in ("gpu", "cuda"):
        raise InputError(f"model.attention: cudnn needs an NVIDIA GPU, this is {platform}; use auto, xla or blockwise")
    return implementation


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    query: Coordinates,
    key: Coordinates,
    window: int | None,
    implementation: str,
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over the visible keys, softmax in float32.

    Args:
      q_BTNH: queries.
      k_BSKH: keys; head n of the queries uses head n // (N / K).
      v_BSKH: values.
      query: coordinates of the queries, [B, T] each.
      key: coordinates of the keys, [B, S] each.
      window: sliding window in tokens, the current one included; None for no window.
      implementation: xla, blockwise (rows whose order in memory is causal, T == S) or cudnn.

    Returns:
      [B, T, N, H] in the dtype of the queries.
    """
    if implementation == "xla":
        return _dense(q_BTNH, k_BSKH, v_BSKH, visible(query, key, window=window))
    if implementation == "blockwise":
        return _blockwise(q_BTNH, k_BSKH, v_BSKH, query=query, key=key, window=window)
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


def _blockwise(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    query: Coordinates,
    key: Coordinates,
    window: int | None,
) -> jax.Array:
    """Blocks of queries against the keys that do not come after them: half of the dense work."""
    outputs = []
    for start in range(0, q_BTNH.shape[1], QUERY_BLOCK_TOKENS):
        end = min(start + QUERY_BLOCK_TOKENS, q_BTNH.shape[1])
        block_query = Coordinates(*(field[:, start:end] for field in query))
        block_key = Coordinates(*(field[:, :end] for field in key))
        mask_BTS = visible(block_query, block_key, window=window)
        outputs.append(_dense(q_BTNH[:, start:end], k_BSKH[:, :end], v_BSKH[:, :end], mask_BTS))
    return jnp.concatenate(outputs, axis=1)
