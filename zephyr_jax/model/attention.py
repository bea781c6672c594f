"""Grouped-query attention: the one function that the model calls, and its implementations.

Not here: who sees whom (visibility.py), which implementation is taken (attention_rule.py), the kernels that skip blocks
(blockwise_attention.py, pallas_attention.py, splash_attention.py), projections and RoPE (mistral.py).

Dimensions: B batch, T query, S key, N heads, K key/value heads, G heads per key/value head, H head size, R = G T.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange

from zephyr_jax.model.blockwise_attention import (
    MASKED_SCORE,
    Blocks,
    blockwise_attention,
    causal_blocks,
    live_blocks,
)
from zephyr_jax.model.pallas_attention import Visits, find_visits, pallas_attention, tiles_for
from zephyr_jax.model.visibility import Coordinates, visible
from zephyr_jax.recipe import RowLayout


def is_fused_result(primitive: Any, *_: Any, **__: Any) -> bool:
    """A remat policy: keeps what cuDNN's forward pass gives (results, and log-totals), which bears no name."""
    return primitive.name == "dot_product_attention_fwd_wrapper"


def visited_blocks(
    where: Coordinates,
    *,
    window: int | None,
    implementation: str,
    head_dim: int,
    dtype: Any,
    platform: str | None = None,
) -> Blocks | Visits | None:
    """What every layer's attention visits, found once a forward pass; None for implementations that skip nothing.

    Args:
      where: coordinates of the tokens, [B, T] each.
      window: sliding window in tokens; None for no window.
      implementation: as of `attention`.
      head_dim: H.
      dtype: of the heads.
      platform: what the program is for; None: what JAX runs on here.
    """
    if implementation == "pallas":
        return find_visits(where, window=window, tiles=tiles_for(head_dim, dtype))
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
    rows: RowLayout = "pairs",
    blocks: Blocks | Visits | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over the visible keys, softmax in float32.

    Args:
      q_BTNH: queries.
      k_BSKH: keys; head n of the queries uses head n // (N / K).
      v_BSKH: values.
      query: coordinates of the queries, [B, T] each.
      key: coordinates of the keys, [B, S] each.
      window: sliding window in tokens, the current one included; None for no window.
      implementation: xla, or for queries and keys that are the same tokens of rows whose order in memory is causal:
        blockwise, pallas, cudnn, splash (no branches).
      rows: how the rows are laid out; plain spares cudnn its mask.
      blocks: `visited_blocks` of these coordinates where they are at hand already.

    Returns:
      [B, T, N, H] in the dtype of the queries.
    """
    if window is not None and window >= k_BSKH.shape[1]:
        window = None  # positions have no gaps: it hides nothing, and kernels are spared it
    if implementation == "xla":
        return _dense(q_BTNH, k_BSKH, v_BSKH, visible(query, key, window=window))
    if blocks is None:
        heads: dict[str, Any] = {"head_dim": q_BTNH.shape[-1], "dtype": q_BTNH.dtype}
        blocks = visited_blocks(query, window=window, implementation=implementation, **heads)
    if isinstance(blocks, Blocks):
        return blockwise_attention(q_BTNH, k_BSKH, v_BSKH, where=query, blocks=blocks, window=window)
    if isinstance(blocks, Visits):
        tiles = tiles_for(q_BTNH.shape[-1], q_BTNH.dtype)
        return pallas_attention(q_BTNH, k_BSKH, v_BSKH, visits=blocks, window=window, tiles=tiles)
    if implementation == "splash":
        # Imported here: it takes a tenth of a second, and has to do with TPUs alone.
        from zephyr_jax.model.splash_attention import splash_attention

        return splash_attention(q_BTNH, k_BSKH, v_BSKH, segments_BT=query.segments, window=window)
    assert implementation == "cudnn", implementation
    mask_BTS = None if rows == "plain" else visible(query, key, window=window)
    return _cudnn(q_BTNH, k_BSKH, v_BSKH, window=window, mask_BTS=mask_BTS)


def _cudnn(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    window: int | None,
    mask_BTS: jax.Array | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """cuDNN's flash attention.

    Plain rows need no mask: in causal order a text never sees the padding behind it, and what padding gives is finite
    and read by nobody. The window always goes with `is_causal`: cuDNN's window alone lets queries see later keys.

    With a mask, cuDNN takes it as a bias [B, 1, T, S] in the heads' dtype, made anew in every layer (8 MB a row of 2048
    tokens in bfloat16), writes the bias' gradient of the same size in the backward pass, and computes blocks that the
    mask empties, but for those above the diagonal. A query that sees nothing gives a mean of values.

    Args:
      q_BTNH: queries.
      k_BSKH: keys, S == T.
      v_BSKH: values.
      window: sliding window in tokens; None for no window. Where a mask is given it holds the window.
      mask_BTS: who sees whom; None: the rows are plain.
      implementation: what jax.nn.dot_product_attention is to take; xla is the same mathematics where there is no GPU.
    """
    left = None if window is None or mask_BTS is not None else (window - 1, 0)
    mask_B1TS = None if mask_BTS is None else mask_BTS[:, None]
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        mask=mask_B1TS,
        is_causal=True,
        local_window_size=left,
        implementation=implementation,
    )


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
