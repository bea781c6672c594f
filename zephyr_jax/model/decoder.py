"""The model for decoding: the same layers as mistral.py, written for one new token a row and weights read once a step.

A step of decoding is bound by reading the weights. They are laid out once, a list of layers with few, wide matrices:
slicing them from their stack in every step copies them, and on a CPU bfloat16 matrices inside a scan are even turned
into float32 ones. The cache is a ring that all rows write at the same slot, in place. A row's tokens end at that slot
whatever the row's length is, so that a slot's age tells its token's position, and nothing else has to be stored.

Not here: the loop over steps, the choice of tokens (generation/), training's forward pass (mistral.py).

Dimensions: B batch, P prompt, D model, F feed-forward, N heads, K key/value heads, G heads per key/value head, H head
size, S ring slots, V vocabulary; C columns of joined matrices.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.model.attention import attention
from zephyr_jax.model.blockwise_attention import MASKED_SCORE
from zephyr_jax.model.linear import product, rms_norm
from zephyr_jax.model.mistral import Params, cast_params, head_matrix, over_rows, rotary_angles, rotate
from zephyr_jax.model.visibility import Coordinates
from zephyr_jax.recipe import ModelShape

# Longer prompts are prefilled piece by piece: attention scores are then [piece, P] and never [P, P].
PREFILL_PIECE_TOKENS = 512


class Layer(NamedTuple):
    """One layer's weights.

    Attributes:
      attention_norm: [D].
      qkv: query, key and value side by side as one [D, C] matrix, or as three where heads are split between devices.
      output: [N H, D].
      mlp_norm: [D].
      gate_up: gate and up side by side, [D, 2 F], or as two.
      down: [F, D].
    """

    attention_norm: jax.Array
    qkv: tuple[jax.Array, ...]
    output: jax.Array
    mlp_norm: jax.Array
    gate_up: tuple[jax.Array, ...]
    down: jax.Array


class DecoderParams(NamedTuple):
    """All weights in the compute dtype, norm scales in float32: embedding [V, D], layers, final norm, head [D, V]."""

    embedding: jax.Array
    layers: tuple[Layer, ...]
    final_norm: jax.Array
    head: jax.Array


class Ring(NamedTuple):
    """The last S tokens of each row, by layer: keys [B, K, H, S], values [B, K, S, H]; `slot` is written next."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    slot: jax.Array


def prepare_params(
    params: Params, *, shape: ModelShape, dtype: str, mesh: jax.sharding.Mesh | None = None
) -> DecoderParams:
    """Casts the weights and lays them out, once for any number of steps; takes their memory a second time.

    Args:
      params: the parameter tree, float32 or cast, on one device or sharded on `mesh`.
      shape: the model's shape.
      dtype: compute dtype.
      mesh: the mesh; None: one device.

    Returns:
      The weights for prefill and decode_step.
    """
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return _laying_out(shape, dtype, mesh)(params)


@functools.lru_cache(maxsize=8)
def _laying_out(shape: ModelShape, dtype: str, mesh: jax.sharding.Mesh | None) -> Callable[[Params], DecoderParams]:
    """The compiled form of `_lay_out`, one for all evaluations of a run."""
    join = mesh is None or mesh.shape["tensor"] == 1
    lay_out = functools.partial(_lay_out, shape=shape, dtype=dtype, join=join)
    if mesh is None:
        return jax.jit(lay_out)
    columns: Any = PartitionSpec("fsdp", "tensor")
    rows: Any = PartitionSpec("tensor", "fsdp")
    whole: Any = PartitionSpec()
    num = (1, 1) if join else (3, 2)
    layer = Layer(whole, (columns,) * num[0], rows, whole, (columns,) * num[1], rows)
    specs = DecoderParams(rows, (layer,) * shape.num_hidden_layers, whole, columns)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(lay_out, out_shardings=shardings)


def _lay_out(params: Params, *, shape: ModelShape, dtype: str, join: bool) -> DecoderParams:
    params = cast_params(params, dtype)
    stacked, D = params["layers"], shape.hidden_size

    def side_by_side(group: str, *names: str, layer: int) -> tuple[jax.Array, ...]:
        matrices = [stacked[group][name][layer].reshape(D, -1) for name in names]
        return (jnp.concatenate(matrices, axis=1),) if join else tuple(matrices)

    layers = tuple(
        Layer(
            stacked["attention_norm"]["scale"][layer],
            side_by_side("attention", "query", "key", "value", layer=layer),
            stacked["attention"]["output"][layer].reshape(-1, D),
            stacked["mlp_norm"]["scale"][layer],
            side_by_side("mlp", "gate", "up", layer=layer),
            stacked["mlp"]["down"][layer],
        )
        for layer in range(shape.num_hidden_layers)
    )
    return DecoderParams(params["embedding"], layers, params["final_norm"]["scale"], head_matrix(params, shape).T)


def ring_length(shape: ModelShape, num_tokens: int) -> int:
    """Slots for rows of so many tokens: no more than the window, which is all that a token sees."""
    return num_tokens if shape.sliding_window is None else min(num_tokens, shape.sliding_window)


def ring_dtype(compute_dtype: str) -> str:
    """What keys and values are kept in: on a CPU always float32, since small bfloat16 products are slow there.

    The values are those of the compute dtype all the same.
    """
    return "float32" if jax.default_backend() == "cpu" else compute_dtype


def init_ring(shape: ModelShape, batch_size: int, *, length: int, compute_dtype: str) -> Ring:
    """An empty ring of `length` slots a row."""
    K, H, dtype = shape.num_key_value_heads, shape.head_dim, ring_dtype(compute_dtype)
    layers = range(shape.num_hidden_layers)
    keys = tuple(jnp.zeros((batch_size, K, H, length), dtype) for _ in layers)
    values = tuple(jnp.zeros((batch_size, K, length, H), dtype) for _ in layers)
    return Ring(keys, values, jnp.zeros((), jnp.int32))


def resize_ring(ring: Ring, length: int) -> Ring:
    """The same tokens in a ring of another length, 1 or more; the oldest are lost where it is shorter."""
    keys = tuple(_fit(_unrolled(keys, ring.slot, axis=3), length, axis=3) for keys in ring.keys)
    values = tuple(_fit(_unrolled(values, ring.slot, axis=2), length, axis=2) for values in ring.values)
    return Ring(keys, values, jnp.zeros((), jnp.int32))


def _unrolled(slots: jax.Array, slot: jax.Array, *, axis: int) -> jax.Array:
    """Oldest first."""
    return jnp.roll(slots, -slot, axis=axis)


def _fit(slots: jax.Array, length: int, *, axis: int) -> jax.Array:
    """The newest `length`, oldest first; where there are fewer, empty ones before them."""
    missing = length - slots.shape[axis]
    if missing <= 0:
        return jax.lax.slice_in_dim(slots, -missing, None, axis=axis)
    widths = [(missing if dim == axis else 0, 0) for dim in range(slots.ndim)]
    return jnp.pad(slots, widths)


def put_rows(ring: Ring, filled: Ring, rows_N: jax.Array) -> Ring:
    """Replaces rows of the ring by those of another one.

    Args:
      ring: the ring.
      filled: N rows, whose slot is 0: oldest first.
      rows_N: the rows of `ring` that they become; one that is not there is left out.

    Returns:
      The ring.
    """

    def put(old: jax.Array, new: jax.Array, *, axis: int) -> jax.Array:
        return old.at[rows_N].set(jnp.roll(new, ring.slot, axis=axis), mode="drop")

    keys = tuple(put(old, new, axis=3) for old, new in zip(ring.keys, filled.keys, strict=True))
    values = tuple(put(old, new, axis=2) for old, new in zip(ring.values, filled.values, strict=True))
    return Ring(keys, values, ring.slot)


def prefill(
    params: DecoderParams, prompts_BP: jax.Array, *, lengths_B: jax.Array, shape: ModelShape, length: int
) -> tuple[jax.Array, Ring]:
    """Reads prompts into a new ring.

    Args:
      params: from prepare_params.
      prompts_BP: prompts padded on the left; P is at most PREFILL_PIECE_TOKENS or a multiple of it.
      lengths_B: tokens of each prompt, 1 or more.
      shape: the model's shape.
      length: slots of the ring.

    Returns:
      Hidden states [B, D] of each prompt's last token, after the final norm, and the ring, whose slot is 0.
    """
    B, P = prompts_BP.shape
    K, H, dtype = shape.num_key_value_heads, shape.head_dim, params.embedding.dtype
    piece = min(P, PREFILL_PIECE_TOKENS)
    assert P % piece == 0, f"prompts padded to {P} tokens, not a multiple of {piece}"
    positions_BP = jnp.arange(P, dtype=jnp.int32) - (P - lengths_B)[:, None]
    where = Coordinates(positions_BP, (positions_BP >= 0).astype(jnp.int32), jnp.zeros_like(positions_BP))

    def add_piece(cache: tuple[list[jax.Array], list[jax.Array]], start: jax.Array):
        def part(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, start, piece, axis=1)

        query = Coordinates(*(part(array) for array in where))
        angles = rotary_angles(query.positions, head_dim=H, theta=shape.rope_theta)
        x_BTD = over_rows(params.embedding[part(prompts_BP)])
        keys, values = [], []
        for layer, all_k_BPKH, all_v_BPKH in zip(params.layers, *cache, strict=True):
            q_BTNH, k_BTKH, v_BTKH = _heads(_normed(x_BTD, layer.attention_norm, shape), layer, angles, shape=shape)
            keys.append(jax.lax.dynamic_update_slice_in_dim(all_k_BPKH, k_BTKH, start, axis=1))
            values.append(jax.lax.dynamic_update_slice_in_dim(all_v_BPKH, v_BTKH, start, axis=1))
            mixed_BTNH = attention(
                q_BTNH,
                keys[-1],
                values[-1],
                query=query,
                key=where,
                window=shape.sliding_window,
                implementation="xla",  # the queries are not the keys where a prompt comes in pieces
            )
            x_BTD = _finish_layer(x_BTD, mixed_BTNH, layer, shape=shape)
        return (keys, values), x_BTD[:, -1]

    empty = [jnp.zeros((B, P, K, H), dtype) for _ in params.layers]
    (keys, values), last_nBD = jax.lax.scan(add_piece, (empty, empty), jnp.arange(0, P, piece, dtype=jnp.int32))
    # Padded on the left, every prompt ends with the last piece.
    hidden_BD = rms_norm(last_nBD[-1], params.final_norm, shape.rms_norm_eps)
    kept = ring_dtype(dtype.name)
    ring = Ring(
        tuple(_fit(rearrange(k.astype(kept), "B P K H -> B K H P"), length, axis=3) for k in keys),
        tuple(_fit(rearrange(v.astype(kept), "B P K H -> B K P H"), length, axis=2) for v in values),
        jnp.zeros((), jnp.int32),
    )
    return hidden_BD, ring


def decode_step(
    params: DecoderParams, tokens_B: jax.Array, ring: Ring, *, positions_B: jax.Array, shape: ModelShape
) -> tuple[jax.Array, Ring]:
    """One new token a row.

    Args:
      params: from prepare_params.
      tokens_B: the tokens.
      ring: what came before, S slots; rows have at most S tokens, or S is the window.
      positions_B: the tokens' positions.
      shape: the model's shape.

    Returns:
      Hidden states [B, D] after the final norm, and the ring with the tokens in it.
    """
    S = ring.keys[0].shape[-1]
    ages_S = (ring.slot - jnp.arange(S, dtype=jnp.int32)) % S
    # A slot older than the row's first token holds another row's, or nothing.
    mask_BS = _seen(ages_S, positions_B, window=shape.sliding_window)
    angles = rotary_angles(positions_B[:, None], head_dim=shape.head_dim, theta=shape.rope_theta)
    x_B1D = over_rows(params.embedding[tokens_B][:, None])
    new_keys, new_values = [], []
    for layer, keys_BKHS, values_BKSH in zip(params.layers, ring.keys, ring.values, strict=True):
        q_B1NH, k_B1KH, v_B1KH = _heads(_normed(x_B1D, layer.attention_norm, shape), layer, angles, shape=shape)
        k_BKH1 = rearrange(k_B1KH, "B 1 K H -> B K H 1").astype(keys_BKHS.dtype)
        v_BK1H = rearrange(v_B1KH, "B 1 K H -> B K 1 H").astype(values_BKSH.dtype)
        new_keys.append(jax.lax.dynamic_update_slice_in_dim(keys_BKHS, k_BKH1, ring.slot, axis=3))
        new_values.append(jax.lax.dynamic_update_slice_in_dim(values_BKSH, v_BK1H, ring.slot, axis=2))
        mixed_B1NH = _attend(q_B1NH, new_keys[-1], new_values[-1], mask_BS)
        x_B1D = _finish_layer(x_B1D, mixed_B1NH, layer, shape=shape)
    hidden_BD = rms_norm(x_B1D[:, 0], params.final_norm, shape.rms_norm_eps)
    return hidden_BD, Ring(tuple(new_keys), tuple(new_values), (ring.slot + 1) % S)


def logits(params: DecoderParams, hidden_BD: jax.Array) -> jax.Array:
    """Logits of the next token, float32 [B, V]."""
    return _two_rows(
        lambda rows_BD: jnp.einsum("BD,DV->BV", rows_BD, params.head, preferred_element_type=jnp.float32), hidden_BD
    )


def _seen(ages_S: jax.Array, positions_B: jax.Array, *, window: int | None) -> jax.Array:
    mask_BS = ages_S <= positions_B[:, None]
    return mask_BS if window is None else mask_BS & (ages_S < window)


def _attend(q_B1NH: jax.Array, keys_BKHS: jax.Array, values_BKSH: jax.Array, mask_BS: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v for one query a row; keys lie transposed, as XLA's CPU backend likes them."""
    K, H, S = keys_BKHS.shape[1:]
    q_BKGH = rearrange(q_B1NH * H**-0.5, "B 1 (K G) H -> B K G H", K=K).astype(keys_BKHS.dtype)
    scores_BKGS = jnp.einsum("BKGH,BKHS->BKGS", q_BKGH, keys_BKHS, preferred_element_type=jnp.float32)
    scores_BKGS = jnp.where(mask_BS[:, None, None], scores_BKGS, MASKED_SCORE)
    weights_BKGS = jnp.exp(scores_BKGS - jnp.max(scores_BKGS, axis=-1, keepdims=True))
    totals_BKG1 = jnp.sum(weights_BKGS, axis=-1, keepdims=True)
    # Rounded to the compute dtype as in attention.py, whatever the ring is kept in.
    weights_BKGS = weights_BKGS.astype(q_B1NH.dtype).astype(values_BKSH.dtype)
    out_BKGH = jnp.einsum("BKGS,BKSH->BKGH", weights_BKGS, values_BKSH, preferred_element_type=jnp.float32)
    return rearrange((out_BKGH / totals_BKG1).astype(q_B1NH.dtype), "B K G H -> B 1 (K G) H")


def _heads(
    x_BTD: jax.Array, layer: Layer, angles: tuple[jax.Array, jax.Array], *, shape: ModelShape
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [B, T, N, H], keys and values [B, T, K, H]; queries and keys turned to their positions."""
    H = shape.head_dim
    num_heads = (shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads)
    parts = _columns(x_BTD, layer.qkv, [num * H for num in num_heads])
    q_BTNH, k_BTKH, v_BTKH = (rearrange(part, "B T (N H) -> B T N H", H=H) for part in parts)
    return rotate(q_BTNH, *angles), rotate(k_BTKH, *angles), v_BTKH


def _finish_layer(x_BTD: jax.Array, mixed_BTNH: jax.Array, layer: Layer, *, shape: ModelShape) -> jax.Array:
    """What comes after attention: output projection, feed-forward, residuals."""
    x_BTD = x_BTD + _linear(rearrange(mixed_BTNH, "B T N H -> B T (N H)"), layer.output)
    F = shape.intermediate_size
    gate_BTF, up_BTF = _columns(_normed(x_BTD, layer.mlp_norm, shape), layer.gate_up, [F, F])
    return over_rows(x_BTD + _linear(jax.nn.silu(gate_BTF) * up_BTF, layer.down))


def _normed(x_BTD: jax.Array, scale_D: jax.Array, shape: ModelShape) -> jax.Array:
    return rms_norm(x_BTD, scale_D, shape.rms_norm_eps)


def _columns(x_BTD: jax.Array, matrices: tuple[jax.Array, ...], widths: list[int]) -> list[jax.Array]:
    """x times matrices that stand side by side, or one by one."""
    if len(matrices) > 1:
        return [_linear(x_BTD, matrix) for matrix in matrices]
    starts = [sum(widths[:index]) for index in range(1, len(widths))]
    return jnp.split(_linear(x_BTD, matrices[0]), starts, axis=-1)


def _linear(x_BTD: jax.Array, weight_DC: jax.Array) -> jax.Array:
    B, T, _ = x_BTD.shape
    flat = rearrange(x_BTD, "B T D -> (B T) D")
    return rearrange(_two_rows(lambda rows: product("BD,DC->BC", rows, weight_DC), flat), "(B T) C -> B T C", B=B, T=T)


def _two_rows(multiply, rows_BD: jax.Array) -> jax.Array:
    """Multiplies; a single bfloat16 row on a CPU gets an empty one beside it.

    XLA's CPU backend turns a matrix into float32 to multiply it by one vector, but not by two: at one row that is a
    third of the speed.
    """
    if rows_BD.shape[0] > 1 or rows_BD.dtype == jnp.float32 or jax.default_backend() != "cpu":
        return multiply(rows_BD)
    return multiply(jnp.concatenate([rows_BD, jnp.zeros_like(rows_BD)]))[:1]
