"""JAX's splash attention for TPUs, for plain rows and packed dialogues.

It takes a mask that is known when the program is made (causal order, the window) and segments that come with the rows.
Pairs that share their prompt need more: an answer sees its prompt and not the other answer, which no numbering of
segments says; masks of arrays, which it takes too, would be made and sorted anew for every row. No TPU has run this: it
is compared with dense attention through Pallas' interpreter, and was compiled for a v5e.

Dimensions: B batch, T query, S key, N heads, K key/value heads, H head size.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from zephyr_jax.model.blockwise_attention import SAVED_NAMES
from zephyr_jax.sharding import ROW_AXES

INTERPRET = False  # tests set it: the kernels then run anywhere, slowly
LANES = 128  # rows are padded to a multiple of it, blocks are one
MAX_BLOCK_TOKENS = 512


def splash_attention(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *, segments_BT: jax.Array, window: int | None
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over the tokens of a query's segment before it and within the window.

    Over a mesh each device does its own rows and heads.

    Args:
      q_BTNH: queries.
      k_BSKH: keys, S == T.
      v_BSKH: values.
      segments_BT: the dialogue of each token, a run of tokens side by side; padding is a segment like others.
      window: sliding window in tokens; None for no window.

    Returns:
      [B, T, N, H] in the dtype of the queries.
    """
    num_tokens = q_BTNH.shape[1]
    missing = -num_tokens % LANES
    arrays = [
        jnp.pad(array, [(0, missing if axis == 1 else 0) for axis in range(array.ndim)])
        for array in (q_BTNH * q_BTNH.shape[-1] ** -0.5, k_BSKH, v_BSKH, segments_BT)
    ]
    run = functools.partial(_run, window=window)
    if not jax.sharding.get_abstract_mesh().empty:  # the compiler cannot split the kernel
        heads, rows = PartitionSpec(ROW_AXES, None, "tensor", None), PartitionSpec(ROW_AXES, None)
        run = jax.shard_map(run, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return run(*arrays)[:, :num_tokens]


def _run(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array, *, window: int | None
) -> jax.Array:
    _, T, N, _ = q_BTNH.shape
    block = next(size for size in (MAX_BLOCK_TOKENS, 256, LANES) if T % size == 0)
    mask = splash.CausalMask((T, T)) if window is None else splash.LocalMask((T, T), (window - 1, 0), 0)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * N),
        block_sizes=splash.BlockSizes(*(block,) * 3, *(block,) * 5),
        residual_checkpoint_name=SAVED_NAMES[0],
        interpret=INTERPRET,
    )
    q_BNTH, k_BKSH, v_BKSH = (rearrange(x, "B T N H -> B N T H") for x in (q_BTNH, k_BSKH, v_BSKH))
    out_BNTH = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=splash.SegmentIds(ids, ids)))(
        q_BNTH, k_BKSH, v_BKSH, segments_BT
    )
    return rearrange(out_BNTH, "B N T H -> B T N H").astype(q_BTNH.dtype)
