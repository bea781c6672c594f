"""The one table between our parameter tree and the tensors of a Hugging Face checkpoint.

Here stands which tensor a parameter comes from and how its axes are ordered there. No file is opened here and no JAX is
imported: `hf_weights.py` and `builtin.py` read with this table, `hf_folder.py` writes with it.

Dimensions: V vocabulary, D model, F feed-forward, N heads, K key/value heads, H head size; L layers stand in front of
every leaf below `layers/` and in the tensor's name (`{layer}`) in a checkpoint.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import einops
import numpy as np

if TYPE_CHECKING:
    from zephyr_jax.recipe import ModelShape

Index = slice | np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class TensorRow:
    """One line of the table.

    Attributes:
      path: the leaf's path in our tree, `/` between the keys.
      name: the tensor's name in a checkpoint, `{layer}` where the layer's number stands.
      leaf: axes of the leaf, without L.
      source: axes of the checkpoint's tensor; letters in brackets are merged into one axis, the first varies slowest.
    """

    path: str
    name: str
    leaf: str
    source: str

    @property
    def is_stacked(self) -> bool:
        """Whether the leaf holds all layers, L in front, and the checkpoint one tensor for each."""
        return "{layer}" in self.name


# torch.nn.Linear keeps [out, in]; ours is [in, out] with the heads as an axis of their own.
TABLE = (
    TensorRow("embedding", "model.embed_tokens.weight", "V D", "V D"),
    TensorRow("layers/attention_norm/scale", "model.layers.{layer}.input_layernorm.weight", "D", "D"),
    TensorRow("layers/attention/query", "model.layers.{layer}.self_attn.q_proj.weight", "D N H", "(N H) D"),
    TensorRow("layers/attention/key", "model.layers.{layer}.self_attn.k_proj.weight", "D K H", "(K H) D"),
    TensorRow("layers/attention/value", "model.layers.{layer}.self_attn.v_proj.weight", "D K H", "(K H) D"),
    TensorRow("layers/attention/output", "model.layers.{layer}.self_attn.o_proj.weight", "N H D", "D (N H)"),
    TensorRow("layers/mlp_norm/scale", "model.layers.{layer}.post_attention_layernorm.weight", "D", "D"),
    TensorRow("layers/mlp/gate", "model.layers.{layer}.mlp.gate_proj.weight", "D F", "F D"),
    TensorRow("layers/mlp/up", "model.layers.{layer}.mlp.up_proj.weight", "D F", "F D"),
    TensorRow("layers/mlp/down", "model.layers.{layer}.mlp.down_proj.weight", "F D", "D F"),
    TensorRow("final_norm/scale", "model.norm.weight", "D", "D"),
    TensorRow("head", "lm_head.weight", "V D", "V D"),
)
HEAD_NAME = "lm_head.weight"
EMBEDDING_NAME = "model.embed_tokens.weight"

# Older versions of transformers stored RoPE's frequencies, which follow from rope_theta: not weights.
_BUFFERS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def is_buffer(name: str) -> bool:
    """Whether a checkpoint's tensor is a known by-product that holds no weights."""
    return _BUFFERS.fullmatch(name) is not None


def rows_of(shape: ModelShape) -> tuple[TensorRow, ...]:
    """The table's rows that a model of this shape has: a tied one has no head of its own."""
    return tuple(row for row in TABLE if not (shape.tie_word_embeddings and row.name == HEAD_NAME))


def dim_sizes(shape: ModelShape) -> dict[str, int]:
    """Size of every dimension letter."""
    return {
        "V": shape.vocab_size,
        "D": shape.hidden_size,
        "F": shape.intermediate_size,
        "N": shape.num_attention_heads,
        "K": shape.num_key_value_heads,
        "H": shape.head_dim,
    }


def source_axes(row: TensorRow) -> list[tuple[str, ...]]:
    """The letters merged into each axis of the checkpoint's tensor: `(N H) D` is [("N", "H"), ("D",)]."""
    return [tuple(group.strip("()").split()) for group in re.findall(r"\([^)]*\)|\S+", row.source)]


def leaf_shape(row: TensorRow, shape: ModelShape) -> tuple[int, ...]:
    """Shape of the leaf, L included where layers are stacked."""
    sizes = dim_sizes(shape)
    stack = (shape.num_hidden_layers,) if row.is_stacked else ()
    return stack + tuple(sizes[letter] for letter in row.leaf.split())


def source_shape(row: TensorRow, shape: ModelShape) -> tuple[int, ...]:
    """Shape of one tensor of the checkpoint."""
    sizes = dim_sizes(shape)
    return tuple(int(np.prod([sizes[letter] for letter in axis])) for axis in source_axes(row))


def source_names(row: TensorRow, shape: ModelShape) -> list[str]:
    """Names of the checkpoint's tensors that make up the leaf, in the order of the layers."""
    return [row.name.format(layer=layer) for layer in range(shape.num_hidden_layers)] if row.is_stacked else [row.name]


def expected_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this shape must hold, and its shape."""
    return {name: source_shape(row, shape) for row in rows_of(shape) for name in source_names(row, shape)}


def source_index(row: TensorRow, index: Mapping[str, slice], *, sizes: Mapping[str, int]) -> tuple[Index, ...]:
    """Where a slice of a leaf lies in the checkpoint's tensor.

    Args:
      row: the leaf's row.
      index: for each letter of the leaf, a slice with start and stop and without a step.
      sizes: size of every letter, from `dim_sizes`.

    Returns:
      One index per axis of the tensor, to be taken axis by axis (the outer product of them all): a slice, or positions
      where the slice of a merged axis is not contiguous.
    """
    return tuple(_axis_index(axis, index, sizes) for axis in source_axes(row))


def _axis_index(axis: tuple[str, ...], index: Mapping[str, slice], sizes: Mapping[str, int]) -> Index:
    if len(axis) == 1:
        return index[axis[0]]
    outer, inner = axis
    if index[inner] == slice(0, sizes[inner]):
        return slice(index[outer].start * sizes[inner], index[outer].stop * sizes[inner])
    outer_positions = np.arange(index[outer].start, index[outer].stop)
    inner_positions = np.arange(index[inner].start, index[inner].stop)
    return (outer_positions[:, None] * sizes[inner] + inner_positions).ravel()


def to_leaf(row: TensorRow, block: np.ndarray, *, sizes: Mapping[str, int]) -> np.ndarray:
    """Turns (a part of) a checkpoint's tensor into the leaf's axes; `sizes` are those of the part."""
    return einops.rearrange(block, f"{row.source} -> {row.leaf}", **_split_sizes(row, sizes))


def to_source(row: TensorRow, layer_leaf: np.ndarray) -> np.ndarray:
    """The inverse of `to_leaf` for one layer's whole leaf."""
    return einops.rearrange(layer_leaf, f"{row.leaf} -> {row.source}")


def _split_sizes(row: TensorRow, sizes: Mapping[str, int]) -> dict[str, int]:
    return {letter: sizes[letter] for axis in source_axes(row) if len(axis) > 1 for letter in axis}


def leaf_at(tree: Mapping[str, Any], path: str) -> Any:
    """The leaf of a nested dict at `path` (keys joined by `/`)."""
    node: Any = tree
    for key in path.split("/"):
        node = node[key]
    return node


def tree_of(leaves: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The nested dict with these (path, leaf) pairs."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves:
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree
