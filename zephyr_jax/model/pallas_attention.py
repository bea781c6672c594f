"""Flash attention for GPUs as Pallas (Triton) kernels, forward and backward, over the blocks that somebody sees.

For packed rows, which cuDNN can only mask: dialogues apart from each other, pairs that share their prompt, sliding
windows, grouped heads. The softmax goes on from block to block as in arXiv:2307.08691, algorithm 1; the backward pass
recomputes the scores (algorithm 2), by query block for dq and by key block for dk and dv, so that sums need no
atomics and come out the same every time. Which blocks hold a visible pair is found once a forward pass, outside the
layers. For rows whose order in memory is causal, T == S. No GPU has run these: they are compared with dense attention
through Pallas' interpreter, and compiled for A100 and H100 (tests/model).

Dimensions: B batch, T query, S key, N heads, K key/value heads, G heads per key/value head, H head size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import PartitionSpec

from zephyr_jax.model.blockwise_attention import LEAST_MAXIMUM, MASKED_SCORE, SAVED_NAMES
from zephyr_jax.model.linear import keepable
from zephyr_jax.model.visibility import MAX_BRANCHES, Coordinates, visible
from zephyr_jax.sharding import ROW_AXES

CODES = MAX_BRANCHES + 1  # a power of two: codes of a segment's tokens differ in their last bits
INTERPRET = False  # tests set it: the kernels then run anywhere, slowly
LOG2_E = math.log2(math.e)  # GPUs have exp2


class Tile(NamedTuple):
    """How a kernel is cut: tokens of a query block and of a key block, warps, stages of the pipeline of loads."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """The three kernels' tiles: forward, dq, and dk with dv."""

    forward: Tile
    dq: Tile
    dkv: Tile


class Visits(NamedTuple):
    """Which blocks each program visits, and what it needs to mask them.

    Attributes:
      forward: by query block, the key blocks in which it has a visible key: int32 [B, T / queries, 1 + S / keys], first
        how many there are, behind them filler.
      dq: the same for the tiles of dq.
      dkv: by key block, the query blocks that see it.
      codes: CODES segment + branch of each token, 0 for padding, int32 [B, T].
      places: positions, int32 [B, T].
    """

    forward: jax.Array
    dq: jax.Array
    dkv: jax.Array
    codes: jax.Array
    places: jax.Array


def tiles_for(head_dim: int, dtype: Any) -> Tiles:
    """The tiles for heads of one size and dtype.

    The largest that fit both GPUs, by what the compilers say (benchmarks/LOG.md): no register is spilled (of 255 a
    thread), and two programs share an SM's 65 536 registers and 164 kB (A100, H100: 228 kB), so that one computes while
    the other waits; the forward pass for heads of 128 has one of 8 warps instead. Not measured on a GPU.
    """
    if jnp.dtype(dtype) == jnp.float32:
        return Tiles(*(Tile(32, 32, num_warps=4, num_stages=2),) * 3)
    if head_dim <= 64:
        return Tiles(Tile(128, 64, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 3))
    return Tiles(Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), Tile(32, 64, 4, 2))


def row_multiple(tiles: Tiles) -> int:
    """Rows are padded to a multiple of this many tokens."""
    return math.lcm(*(size for tile in tiles for size in (tile.queries, tile.keys)))


def find_visits(where: Coordinates, *, window: int | None, tiles: Tiles) -> Visits:
    """Finds the blocks that are worth a visit.

    Args:
      where: coordinates of the rows' tokens, [B, T] each.
      window: sliding window in tokens; None for no window.
      tiles: how the kernels are cut.
    """
    where = Coordinates(*(_padded(field, tiles) for field in where))
    seen_BTS = visible(where, where, window=window)

    def live(tile: Tile) -> jax.Array:
        num_tokens = seen_BTS.shape[1]
        blocks = seen_BTS.reshape(-1, num_tokens // tile.queries, tile.queries, num_tokens // tile.keys, tile.keys)
        return jnp.any(blocks, axis=(2, 4))

    codes_BT = jnp.where(where.segments > 0, CODES * where.segments + where.branches, 0)
    dkv_Bji = jnp.swapaxes(live(tiles.dkv), 1, 2)
    return Visits(_listed(live(tiles.forward)), _listed(live(tiles.dq)), _listed(dkv_Bji), codes_BT, where.positions)


def _listed(live_Bij: jax.Array) -> jax.Array:
    """[number, indexes of the live ones, the rest], int32 [B, i, 1 + j]."""
    count_Bi1 = jnp.sum(live_Bij, axis=-1, keepdims=True, dtype=jnp.int32)
    return jnp.concatenate([count_Bi1, jnp.argsort(~live_Bij, axis=-1, stable=True).astype(jnp.int32)], axis=-1)


def _padded(array: jax.Array, tiles: Tiles) -> jax.Array:
    """Padded with zeros along the tokens, axis 1; segment 0 is seen by nobody."""
    missing = -array.shape[1] % row_multiple(tiles)
    return jnp.pad(array, [(0, missing if axis == 1 else 0) for axis in range(array.ndim)]) if missing else array


def pallas_attention(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *, visits: Visits, window: int | None, tiles: Tiles
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over the visible keys, softmax in float32.

    Products of float32 heads are full float32, never TF32. Over a mesh each device does its own rows and heads.

    Args:
      q_BTNH: queries.
      k_BSKH: keys, S == T; head n of the queries uses head n // G.
      v_BSKH: values.
      visits: find_visits of these rows with this window and these tiles.
      window: sliding window in tokens; None for no window.
      tiles: how the kernels are cut.

    Returns:
      [B, T, N, H] in the dtype of the queries; 0 for a query that sees nothing.
    """
    heads = (_padded(array, tiles) for array in (q_BTNH, k_BSKH, v_BSKH))
    return _attend(*heads, visits, window, tiles)[:, : q_BTNH.shape[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q_BTNH, k_BSKH, v_BSKH, visits, window, tiles):
    return _forward(q_BTNH, k_BSKH, v_BSKH, visits, window, tiles)[0]


def _forward(q_BTNH, k_BSKH, v_BSKH, visits, window, tiles):
    run = functools.partial(_run_forward, window=window, tile=tiles.forward)
    arguments = (q_BTNH, k_BSKH, v_BSKH, visits.forward, visits.codes, visits.places)
    out_BTNH, log_total_BNT = _on_each_device(run, (HEADS,) * 3 + (LISTS, ROWS, ROWS), (HEADS, SUMS))(*arguments)
    out_BTNH = keepable(out_BTNH, SAVED_NAMES[0])
    log_total_BNT = checkpoint_name(log_total_BNT, SAVED_NAMES[1])
    return out_BTNH, (q_BTNH, k_BSKH, v_BSKH, visits, out_BTNH, log_total_BNT)


def _backward(window, tiles, saved, gradient_BTNH):
    q_BTNH, k_BSKH, v_BSKH, visits, out_BTNH, log_total_BNT = saved
    # sum over the keys of weight * d(weight), arXiv:2205.14135, eq. 4
    products_BTNH = gradient_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32)
    inner_BNT = jnp.swapaxes(jnp.sum(products_BTNH, axis=-1), 1, 2)

    def run(kernel: Callable[..., Any], tile: Tile, lists: jax.Array, out_specs: Any) -> Any:
        specs = (HEADS,) * 4 + (SUMS, SUMS, LISTS, ROWS, ROWS)
        on_devices = _on_each_device(functools.partial(kernel, window=window, tile=tile), specs, out_specs)
        arrays = (q_BTNH, k_BSKH, v_BSKH, gradient_BTNH, log_total_BNT, inner_BNT)
        return on_devices(*arrays, lists, visits.codes, visits.places)

    dq_BTNH = run(_run_dq, tiles.dq, visits.dq, HEADS)
    dk_BSKH, dv_BSKH = run(_run_dkv, tiles.dkv, visits.dkv, (HEADS, HEADS))
    return dq_BTNH, dk_BSKH, dv_BSKH, None


_attend.defvjp(_forward, _backward)

# How each kind of array lies on the mesh: heads [B, T, N, H], sums [B, N, T], lists [B, blocks, ...], rows [B, T].
HEADS = PartitionSpec(ROW_AXES, None, "tensor", None)
SUMS = PartitionSpec(ROW_AXES, "tensor", None)
LISTS = PartitionSpec(ROW_AXES, None, None)
ROWS = PartitionSpec(ROW_AXES, None)


def _on_each_device(run: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """The kernel on each device's own rows and heads: the compiler cannot split it, and would gather all of both."""
    if jax.sharding.get_abstract_mesh().empty:
        return run
    return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _run_forward(*arrays: jax.Array, window: int | None, tile: Tile) -> Any:
    """The forward kernel over (query blocks, heads, rows): out [B, T, N, H], and log2 of the totals [B, N, T]."""
    q_BTNH, k_BSKH, _, lists, *_ = arrays
    (B, T, N, _), own, row, sums = q_BTNH.shape, *_query_specs(q_BTNH, k_BSKH, tile)
    return pl.pallas_call(
        functools.partial(_forward_kernel, window=window, tile=tile),
        grid=(T // tile.queries, N, B),
        in_specs=[own, row, row, *_visit_specs(lists, T)],
        out_specs=[own, sums],
        out_shape=[jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype), jax.ShapeDtypeStruct((B, N, T), jnp.float32)],
        **_how(tile, "attention_forward"),
    )(*arrays)


def _run_dq(*arrays: jax.Array, window: int | None, tile: Tile) -> Any:
    """The kernel of dq over (query blocks, heads, rows)."""
    q_BTNH, k_BSKH, *_, lists, _, _ = arrays
    (B, T, N, _), own, row, sums = q_BTNH.shape, *_query_specs(q_BTNH, k_BSKH, tile)
    return pl.pallas_call(
        functools.partial(_dq_kernel, window=window, tile=tile),
        grid=(T // tile.queries, N, B),
        in_specs=[own, row, row, own, sums, sums, *_visit_specs(lists, T)],
        out_specs=own,
        out_shape=jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
        **_how(tile, "attention_dq"),
    )(*arrays)


def _query_specs(q_BTNH: jax.Array, k_BSKH: jax.Array, tile: Tile) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """For a program of one query block and one head: its queries, its head's whole row of keys, its queries' sums."""
    T, N, H = q_BTNH.shape[1:]
    G = N // k_BSKH.shape[2]
    return (
        pl.BlockSpec((None, tile.queries, None, H), lambda i, n, b: (b, i, n, 0)),
        pl.BlockSpec((None, T, None, H), lambda i, n, b: (b, 0, n // G, 0)),
        pl.BlockSpec((None, None, tile.queries), lambda i, n, b: (b, n, i)),
    )


def _run_dkv(*arrays: jax.Array, window: int | None, tile: Tile) -> Any:
    """The kernel of dk and dv over (key blocks, key/value heads, rows)."""
    q_BTNH, k_BSKH, v_BSKH, *_, lists, _, _ = arrays
    (B, S, K, H), N = k_BSKH.shape, q_BTNH.shape[2]
    own = pl.BlockSpec((None, tile.keys, None, H), lambda j, k, b: (b, j, k, 0))
    row = pl.BlockSpec((None, S, N // K, H), lambda j, k, b: (b, 0, k, 0))
    sums = pl.BlockSpec((None, N // K, S), lambda j, k, b: (b, k, 0))
    return pl.pallas_call(
        functools.partial(_dkv_kernel, window=window, tile=tile, num_groups=N // K),
        grid=(S // tile.keys, K, B),
        in_specs=[row, own, own, row, sums, sums, *_visit_specs(lists, S)],
        out_specs=[own, own],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (k_BSKH, v_BSKH)],
        **_how(tile, "attention_dkv"),
    )(*arrays)


def _visit_specs(lists: jax.Array, num_tokens: int) -> list[pl.BlockSpec]:
    """The list of this program's own block, and the whole row's codes and places."""
    row = pl.BlockSpec((None, num_tokens), lambda block, head, b: (b, 0))
    return [pl.BlockSpec((None, None, lists.shape[-1]), lambda block, head, b: (b, block, 0)), row, row]


def _how(tile: Tile, name: str) -> dict[str, Any]:
    params = plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages)
    return {"name": name, "compiler_params": params, "interpret": INTERPRET}


def _forward_kernel(
    q_ref, k_ref, v_ref, visits_ref, codes_ref, places_ref, out_ref, log_total_ref, *, window: int | None, tile: Tile
):
    """One query block of one head, over the key blocks that it sees."""
    q_TH = q_ref[...]
    scale = q_TH.shape[-1] ** -0.5 * LOG2_E
    queries = _tokens(pl.program_id(0), tile.queries, codes_ref, places_ref)

    def visit(n, carry):
        out_TH, largest_T, total_T = carry
        j = visits_ref[n + 1]
        block = pl.ds(j * tile.keys, tile.keys)
        scores_TS = _dot(q_TH, k_ref[block, :].T) * scale
        seen_TS = _seen(queries, _tokens(j, tile.keys, codes_ref, places_ref), window)
        scores_TS = jnp.where(seen_TS, scores_TS, MASKED_SCORE)
        new_T = jnp.maximum(largest_T, jnp.max(scores_TS, axis=1))
        weights_TS = jnp.exp2(scores_TS - new_T[:, None])
        shrink_T = jnp.exp2(largest_T - new_T)
        v_SH = v_ref[block, :]
        out_TH = out_TH * shrink_T[:, None] + _dot(weights_TS.astype(v_SH.dtype), v_SH)
        return out_TH, new_T, total_T * shrink_T + jnp.sum(weights_TS, axis=1)

    start = (
        jnp.zeros(q_TH.shape, jnp.float32),
        jnp.full((tile.queries,), LEAST_MAXIMUM, jnp.float32),
        jnp.zeros((tile.queries,), jnp.float32),
    )
    out_TH, largest_T, total_T = jax.lax.fori_loop(0, visits_ref[0], visit, start)
    sees_T = total_T > 0
    out_ref[...] = (out_TH / jnp.where(sees_T, total_T, 1.0)[:, None]).astype(out_ref.dtype)
    # +1e30 where nothing is seen: the backward pass finds weights of 0 there as well
    log_total_ref[...] = jnp.where(sees_T, largest_T + jnp.log2(jnp.where(sees_T, total_T, 1.0)), -MASKED_SCORE)


def _dq_kernel(
    q_ref,
    k_ref,
    v_ref,
    gradient_ref,
    log_total_ref,
    inner_ref,
    visits_ref,
    codes_ref,
    places_ref,
    dq_ref,
    *,
    window: int | None,
    tile: Tile,
):
    """dq of one query block of one head, over the key blocks that it sees."""
    q_TH, gradient_TH, log_total_T, inner_T = q_ref[...], gradient_ref[...], log_total_ref[...], inner_ref[...]
    scale = q_TH.shape[-1] ** -0.5
    queries = _tokens(pl.program_id(0), tile.queries, codes_ref, places_ref)

    def visit(n, dq_TH):
        j = visits_ref[n + 1]
        block = pl.ds(j * tile.keys, tile.keys)
        k_SH = k_ref[block, :]
        seen_TS = _seen(queries, _tokens(j, tile.keys, codes_ref, places_ref), window)
        scores_TS = jnp.where(seen_TS, _dot(q_TH, k_SH.T) * (scale * LOG2_E), MASKED_SCORE)
        weights_TS = jnp.exp2(scores_TS - log_total_T[:, None])
        dweights_TS = _dot(gradient_TH, v_ref[block, :].T)
        dscores_TS = weights_TS * (dweights_TS - inner_T[:, None])
        return dq_TH + _dot(dscores_TS.astype(k_SH.dtype), k_SH)

    dq_TH = jax.lax.fori_loop(0, visits_ref[0], visit, jnp.zeros(q_TH.shape, jnp.float32))
    dq_ref[...] = (dq_TH * scale).astype(dq_ref.dtype)


def _dkv_kernel(
    q_ref,
    k_ref,
    v_ref,
    gradient_ref,
    log_total_ref,
    inner_ref,
    visits_ref,
    codes_ref,
    places_ref,
    dk_ref,
    dv_ref,
    *,
    window: int | None,
    tile: Tile,
    num_groups: int,
):
    """dk and dv of one key block of one key/value head, over the query blocks that see it, of all its query heads."""
    k_SH, v_SH = k_ref[...], v_ref[...]
    scale = k_SH.shape[-1] ** -0.5
    keys = _tokens(pl.program_id(0), tile.keys, codes_ref, places_ref)

    def visit(n, carry):
        dk_SH, dv_SH = carry
        i, head = visits_ref[jax.lax.div(n, num_groups) + 1], jax.lax.rem(n, num_groups)
        block = pl.ds(i * tile.queries, tile.queries)
        q_TH, gradient_TH = q_ref[block, head, :], gradient_ref[block, head, :]
        seen_ST = _seen(_tokens(i, tile.queries, codes_ref, places_ref), keys, window, keys_in_front=True)
        scores_ST = jnp.where(seen_ST, _dot(k_SH, q_TH.T) * (scale * LOG2_E), MASKED_SCORE)
        weights_ST = jnp.exp2(scores_ST - log_total_ref[head, block][None, :])
        dweights_ST = _dot(v_SH, gradient_TH.T)
        dscores_ST = weights_ST * (dweights_ST - inner_ref[head, block][None, :])
        dv_SH = dv_SH + _dot(weights_ST.astype(gradient_TH.dtype), gradient_TH)
        return dk_SH + _dot(dscores_ST.astype(q_TH.dtype), q_TH), dv_SH

    zeros = jnp.zeros(k_SH.shape, jnp.float32)
    dk_SH, dv_SH = jax.lax.fori_loop(0, visits_ref[0] * num_groups, visit, (zeros, zeros))
    dk_ref[...] = (dk_SH * scale).astype(dk_ref.dtype)
    dv_ref[...] = dv_SH.astype(dv_ref.dtype)


def _tokens(index: Any, size: int, codes_ref: Any, places_ref: Any) -> tuple[jax.Array, jax.Array]:
    """Codes and places of a block's tokens."""
    block = pl.ds(index * size, size)
    return codes_ref[block], places_ref[block]


def _seen(
    queries: tuple[jax.Array, jax.Array],
    keys: tuple[jax.Array, jax.Array],
    window: int | None,
    *,
    keys_in_front: bool = False,
) -> jax.Array:
    """What visibility.visible says of two blocks, in as few operations on pairs as it takes: [T, S], or [S, T]."""
    (code_T, place_T), (code_S, place_S) = queries, keys
    code_S = jnp.where(code_S == 0, -1, code_S)  # nobody sees padding
    shared_T = code_T & -CODES  # the code of the text before the branches
    if keys_in_front:
        code_T, shared_T, place_T = code_T[None, :], shared_T[None, :], place_T[None, :]
        code_S, place_S = code_S[:, None], place_S[:, None]
    else:
        code_T, shared_T, place_T = code_T[:, None], shared_T[:, None], place_T[:, None]
        code_S, place_S = code_S[None, :], place_S[None, :]
    distance = (place_T - place_S).astype(jnp.uint32)  # of a later key: 2^31 or more
    near = distance < jnp.uint32(2**31 if window is None else window)
    return ((code_S == code_T) | (code_S == shared_T)) & near


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """A product with a float32 result."""
    precision = "highest" if left.dtype == jnp.float32 else None  # GPUs would take TF32
    return jnp.dot(left, right, preferred_element_type=jnp.float32, precision=precision)
