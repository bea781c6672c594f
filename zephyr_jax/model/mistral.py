"""Mistral, whole: parameters, layers, forward pass, and how each parameter is sharded.

Llama-shaped models (SmolLM2) are the same model with no sliding window. Everything outside this folder sees a
plain nested dict of parameters and the pure functions at the end. Not here: decoding with a cache (decoder.py),
log-probs and losses (training/), reading and writing checkpoints of others (hf_weights.py).

Dimensions: B batch, T query, S key, D model, F feed-forward, N heads, K key/value heads, H head size, V vocabulary,
L layers.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec

from zephyr_jax.model.attention import attention, is_fused_result, visited_blocks
from zephyr_jax.model.attention_rule import choose_attention, platform_here
from zephyr_jax.model.blockwise_attention import SAVED_NAMES, Blocks
from zephyr_jax.model.linear import SAVED_PRODUCTS, linear, rms_norm
from zephyr_jax.model.pallas_attention import Visits
from zephyr_jax.model.placement import COLUMNS, gathered, keeps_all_but_gathered, over_rows, placed
from zephyr_jax.model.visibility import Coordinates
from zephyr_jax.recipe import ModelShape, RowLayout

Params = dict[str, Any]

GATE_AND_UP = "gate_and_up"  # what remat: mlp keeps of a layer, beside what remat: attention does
INITIALIZER_STDDEV = 0.02  # Hugging Face's initializer_range for this family

# Every parameter matches exactly one row; stacked layers carry the layer axis in front.
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"embedding", PartitionSpec("tensor", "fsdp")),
    (r"layers/attention/(query|key|value)", PartitionSpec(None, "fsdp", "tensor", None)),
    (r"layers/attention/output", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"layers/mlp/(gate|up)", PartitionSpec(None, "fsdp", "tensor")),
    (r"layers/mlp/down", PartitionSpec(None, "tensor", "fsdp")),
    (r"layers/(attention_norm|mlp_norm)/scale", PartitionSpec()),
    (r"final_norm/scale", PartitionSpec()),
    (r"head", PartitionSpec("tensor", "fsdp")),
)


class ModelSettings(NamedTuple):
    """How the forward pass is computed, as opposed to what it computes.

    Attributes:
      compute_dtype: float32 or bfloat16, of matmuls and activations; norms, softmax and RoPE are float32.
      attention: auto, or an implementation; attention_rule.choose_attention settles auto.
      remat: none (keep activations), full (keep each layer's input), attention (and what attention gives, xla's apart),
        mlp (and the two products before the feed-forward's nonlinearity), dots (and all products with weights).
      platform: what the program is for; None: what JAX runs on here.
      rows: how rows are laid out; a promise of whoever lays them out, which attention relies on.
    """

    compute_dtype: str = "float32"
    attention: str = "xla"
    remat: str = "none"
    platform: str | None = None
    rows: RowLayout = "pairs"


class Shared(NamedTuple):
    """What all layers of a forward pass share, computed once.

    Attributes:
      where: coordinates of the tokens, [B, T] each.
      cos_BT1H: cosines of the tokens' rotary angles, float32; H is half the head size here.
      sin_BT1H: their sines.
      blocks: what blockwise or pallas attention visits; None for the other implementations.
    """

    where: Coordinates
    cos_BT1H: jax.Array
    sin_BT1H: jax.Array
    blocks: Blocks | Visits | None


def rotary_angles(positions_BT: jax.Array, *, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of position * theta^(-2i / head_dim) for i < head_dim / 2, float32 [B, T, 1, head_dim / 2]."""
    half = head_dim // 2
    frequencies_H = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles_BT1H = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies_H
    return jnp.cos(angles_BT1H), jnp.sin(angles_BT1H)


def rotate(x_BTNH: jax.Array, cos_BT1H: jax.Array, sin_BT1H: jax.Array) -> jax.Array:
    """Rotary position embedding in the half-split layout of Hugging Face (arXiv:2104.09864, eq. 34).

    Dimension i of the first half turns with dimension i of the second, by the angles of `rotary_angles`.
    """
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos_BT1H - second * sin_BT1H, second * cos_BT1H + first * sin_BT1H]
    return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)


def _weight(module: Attention | FeedForward, name: str, sizes: tuple[int, ...]) -> jax.Array:
    """A layer's weight, ready for its products."""
    weight = module.param(name, nn.initializers.normal(INITIALIZER_STDDEV), sizes)
    if module.settings.platform == "cpu":  # where every product casts it: what was gathered would be float32
        return weight
    path = f"layers/{module.name}/{name}"
    spec = next(spec for pattern, spec in PARTITION_RULES if re.fullmatch(pattern, path))
    return gathered(weight, PartitionSpec(*spec[1:]))  # the layers' axis is the scan's


class Attention(nn.Module):
    """Projections, RoPE, attention over the row, output projection."""

    shape: ModelShape
    settings: ModelSettings

    @nn.compact
    def __call__(self, x_BTD, shared: Shared):
        s = self.shape
        D, N, K, H = s.hidden_size, s.num_attention_heads, s.num_key_value_heads, s.head_dim
        query_DNH = _weight(self, "query", (D, N, H))
        key_DKH = _weight(self, "key", (D, K, H))
        value_DKH = _weight(self, "value", (D, K, H))
        output_NHD = _weight(self, "output", (N, H, D))
        q_BTNH = rotate(_heads(x_BTD, query_DNH), shared.cos_BT1H, shared.sin_BT1H)
        k_BSKH = rotate(_heads(x_BTD, key_DKH), shared.cos_BT1H, shared.sin_BT1H)
        v_BSKH = _heads(x_BTD, value_DKH)
        out_BTNH = attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            query=shared.where,
            key=shared.where,
            window=s.sliding_window,
            implementation=self.settings.attention,
            rows=self.settings.rows,
            blocks=shared.blocks,
        )
        return linear(rearrange(out_BTNH, "B T N H -> B T (N H)"), output_NHD)


def _heads(x_BTD: jax.Array, weight_DNH: jax.Array) -> jax.Array:
    """A projection to heads, [B, T, N, H]."""
    return rearrange(linear(x_BTD, weight_DNH), "B T (N H) -> B T N H", H=weight_DNH.shape[-1])


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv:2002.05202, eq. 6)."""

    shape: ModelShape
    settings: ModelSettings

    @nn.compact
    def __call__(self, x_BTD):
        D, F = self.shape.hidden_size, self.shape.intermediate_size
        gate_DF = _weight(self, "gate", (D, F))
        up_DF = _weight(self, "up", (D, F))
        down_FD = _weight(self, "down", (F, D))
        gate_BTF = linear(x_BTD, gate_DF, GATE_AND_UP)
        up_BTF = linear(x_BTD, up_DF, GATE_AND_UP)
        return linear(nn.silu(gate_BTF) * up_BTF, down_FD)


class Scale(nn.Module):
    """RMSNorm with its learned scale."""

    shape: ModelShape

    @nn.compact
    def __call__(self, x_BTD):
        scale_D = self.param("scale", nn.initializers.ones, (self.shape.hidden_size,))
        return rms_norm(x_BTD, scale_D, self.shape.rms_norm_eps)


class Block(nn.Module):
    """One pre-norm layer; the scan's body."""

    shape: ModelShape
    settings: ModelSettings

    @nn.compact
    def __call__(self, x_BTD, shared: Shared):
        x_BTD = over_rows(x_BTD)
        normed_BTD = Scale(self.shape, name="attention_norm")(x_BTD)
        mixed_BTD = Attention(self.shape, self.settings, name="attention")(normed_BTD, shared)
        x_BTD = x_BTD + mixed_BTD
        normed_BTD = Scale(self.shape, name="mlp_norm")(x_BTD)
        return x_BTD + FeedForward(self.shape, self.settings, name="mlp")(normed_BTD), None


class Mistral(nn.Module):
    """Embedding, layers under one scan, final norm; the head is applied by whoever needs it, where it needs it."""

    shape: ModelShape
    settings: ModelSettings

    @nn.compact
    def __call__(self, tokens_BT, where: Coordinates):
        s, init = self.shape, nn.initializers.normal(INITIALIZER_STDDEV)
        embedding_VD = self.param("embedding", init, (s.vocab_size, s.hidden_size))
        x_BTD, head_VD = _embed(embedding_VD, tokens_BT)
        if not s.tie_word_embeddings:
            head_VD = self.param("head", init, (s.vocab_size, s.hidden_size))
        x_BTD = over_rows(x_BTD.astype(self.settings.compute_dtype))
        layers = nn.scan(
            _with_remat(Block, self.settings),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=s.num_hidden_layers,
        )(s, self.settings, name="layers")
        angles = rotary_angles(where.positions, head_dim=s.head_dim, theta=s.rope_theta)
        blocks = visited_blocks(
            where,
            window=s.sliding_window,
            implementation=self.settings.attention,
            head_dim=s.head_dim,
            dtype=x_BTD.dtype,
            platform=self.settings.platform,
        )
        x_BTD, _ = layers(x_BTD, Shared(where, *angles, blocks))
        return Scale(s, name="final_norm")(x_BTD), head_VD


def _with_remat(block: type[nn.Module], settings: ModelSettings) -> type[nn.Module]:
    policies, policy = jax.checkpoint_policies, settings.remat
    names = {"attention": (), "mlp": (GATE_AND_UP,), "dots": (GATE_AND_UP, SAVED_PRODUCTS)}
    if policy == "none":
        if settings.platform == "cpu":
            return block
        saved = keeps_all_but_gathered
    elif policy == "full":
        saved = None
    else:
        named = policies.save_only_these_names(*SAVED_NAMES, *names[policy])
        saved = policies.save_from_both_policies(named, is_fused_result)
    return nn.remat(block, policy=saved, prevent_cse=False)  # the scan already keeps XLA from undoing it


@jax.custom_vjp
def _embed(embedding_VD: jax.Array, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The tokens' rows, and the embedding itself for whoever needs it as the head.

    One function of both, so that in the backward pass the rows' gradients are added to the head's in place, and no
    second array of the embedding's size is made. In bf16 the gradient of a frequent token is still summed in float32.

    On a mesh each device looks up its columns of the tokens of all who share them, and the rows are exchanged for
    columns: far less to send than the embedding.
    """
    columns_VD = placed(embedding_VD, PartitionSpec(None, "fsdp"))
    tokens_BT = placed(tokens_BT, PartitionSpec("data", None))
    return over_rows(placed(columns_VD[tokens_BT], COLUMNS)), embedding_VD


def _embed_forward(embedding_VD, tokens_BT):
    return _embed(embedding_VD, tokens_BT), tokens_BT


def _embed_backward(tokens_BT, gradients):
    dx_BTD, dembedding_VD = gradients
    dx_BTD, tokens_BT = placed(dx_BTD, COLUMNS), placed(tokens_BT, PartitionSpec("data", None))
    summed_VD = placed(dembedding_VD.astype(jnp.float32), PartitionSpec(None, "fsdp"))
    summed_VD = placed(summed_VD.at[tokens_BT].add(dx_BTD.astype(jnp.float32)), PartitionSpec("tensor", "fsdp"))
    return summed_VD.astype(dembedding_VD.dtype), None


_embed.defvjp(_embed_forward, _embed_backward)


def cast_params(params: Params, dtype: str) -> Params:
    """Parameters in the compute dtype, norm scales left in float32.

    Done once before the layers' scan and while still sharded: a cast inside the scan would gather float32 weights.
    """
    return jax.tree.map_with_path(
        lambda path, leaf: leaf if path[-1].key == "scale" else leaf.astype(dtype),
        params,
    )


def compute_params(params: Params, settings: ModelSettings) -> Params:
    """Parameters as the forward pass takes them; it does this itself, unless a step has done it for many.

    On a CPU every product casts its weight, and gives a float32 gradient: elsewhere that would send float32 weights
    between the devices, here it saves passes over all parameters.
    """
    platform = settings.platform or platform_here()
    return params if platform == "cpu" else cast_params(params, settings.compute_dtype)


def init_params(rng: jax.Array, shape: ModelShape) -> Params:
    """Random float32 parameters: normal with standard deviation 0.02, norm scales 1.

    Args:
      rng: a JAX random key.
      shape: the model's shape.

    Returns:
      embedding [V, D]; head [V, D] where untied; layers/... with L in front; final_norm/scale [D].
    """
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    where = Coordinates(tokens_BT, tokens_BT, tokens_BT)
    return Mistral(shape, ModelSettings()).init(rng, tokens_BT, where)["params"]


def abstract_params(shape: ModelShape) -> Params:
    """The parameter tree as jax.ShapeDtypeStruct leaves; nothing is allocated."""
    return jax.eval_shape(lambda: init_params(jax.random.key(0), shape))


def hidden_states_and_head(
    params: Params,
    tokens_BT: jax.Array,
    *,
    shape: ModelShape,
    settings: ModelSettings,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    branches_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Forward pass over whole rows.

    Args:
      params: the parameter tree, float32 or compute_params of it.
      tokens_BT: token ids.
      shape: the model's shape.
      settings: dtype, attention and remat.
      positions_BT: RoPE positions.
      segments_BT: 0 for padding, else the dialogue or pair within the row.
      branches_BT: see attention.Coordinates; None: all 0.

    Returns:
      Hidden states after the final norm, [B, T, D] in the compute dtype, and the matrix [V, D] that turns them into
      logits, in the compute dtype or in float32. A tied matrix comes from here, so that its gradient is one array.
    """
    branches_BT = jnp.zeros_like(segments_BT) if branches_BT is None else branches_BT
    where = Coordinates(positions_BT, segments_BT, branches_BT)
    platform = settings.platform or platform_here()
    chosen = choose_attention(
        settings.attention,
        tokens_BT.shape[1],
        platform=platform,
        dtype=settings.compute_dtype,
        head_dim=shape.head_dim,
        rows=settings.rows,
    )
    module = Mistral(shape, settings._replace(attention=chosen, platform=platform))
    return module.apply({"params": compute_params(params, settings)}, tokens_BT, where)


def head_matrix(params: Params, shape: ModelShape) -> jax.Array:
    """The matrix [V, D] that turns hidden states into logits: the embedding where they are tied."""
    return params["embedding"] if shape.tie_word_embeddings else params["head"]
