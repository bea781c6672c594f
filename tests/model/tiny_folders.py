"""Tiny Hugging Face folders, made with numpy and the public safetensors package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from zephyr_jax.model import tensor_names
from zephyr_jax.recipe import ModelShape

# All sizes differ, so that swapped axes cannot pass; 16 divides what the devices of the tests split.
UNTIED = ModelShape(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    intermediate_size=48,
    vocab_size=64,
    rope_theta=12345.0,
    rms_norm_eps=1e-5,
    sliding_window=7,
    max_position_embeddings=100,
)
TIED = UNTIED.model_copy(update={"tie_word_embeddings": True, "sliding_window": None})


def make_tensors(shape: ModelShape, *, dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of a checkpoint by Hugging Face name."""
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(size, dtype=np.float32).astype(dtype)
        for name, size in tensor_names.expected_shapes(shape).items()
    }


def make_config(shape: ModelShape, **changes: Any) -> dict[str, Any]:
    """A config.json in the manner of transformers 4; a change to None in `changes` is written as null."""
    return {"model_type": "mistral", "hidden_act": "silu", "eos_token_id": 2, **shape.model_dump(), **changes}


def write_folder(
    folder: Path, shape: ModelShape, tensors: Mapping[str, np.ndarray], *, num_files: int = 1, **changes: Any
) -> Path:
    """Writes config.json and the tensors, dealt out to `num_files` files with an index when there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(make_config(shape, **changes)))
    if num_files == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    weight_map = {}
    for number in range(num_files):
        file_name = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        own = names[number::num_files]
        save_file({name: tensors[name] for name in own}, folder / file_name)
        weight_map |= dict.fromkeys(own, file_name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def expected_leaf(path: str, shape: ModelShape, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """A leaf of our tree, built by hand from a checkpoint's tensors: reshape and transpose, no table."""
    layers, hidden, size = shape.num_hidden_layers, shape.hidden_size, shape.head_dim
    heads, groups = shape.num_attention_heads, shape.num_key_value_heads

    def stack(name: str) -> np.ndarray:
        return np.stack([tensors[f"model.layers.{i}.{name}.weight"].astype(np.float32) for i in range(layers)])

    def projection(name: str, num_heads: int) -> np.ndarray:
        return stack(name).reshape(layers, num_heads, size, hidden).transpose(0, 3, 1, 2)

    by_hand = {
        "embedding": lambda: tensors["model.embed_tokens.weight"].astype(np.float32),
        "final_norm/scale": lambda: tensors["model.norm.weight"].astype(np.float32),
        "head": lambda: tensors["lm_head.weight"].astype(np.float32),
        "layers/attention_norm/scale": lambda: stack("input_layernorm"),
        "layers/mlp_norm/scale": lambda: stack("post_attention_layernorm"),
        "layers/attention/query": lambda: projection("self_attn.q_proj", heads),
        "layers/attention/key": lambda: projection("self_attn.k_proj", groups),
        "layers/attention/value": lambda: projection("self_attn.v_proj", groups),
        "layers/attention/output": lambda: (
            stack("self_attn.o_proj").transpose(0, 2, 1).reshape(layers, heads, size, hidden)
        ),
        "layers/mlp/gate": lambda: stack("mlp.gate_proj").transpose(0, 2, 1),
        "layers/mlp/up": lambda: stack("mlp.up_proj").transpose(0, 2, 1),
        "layers/mlp/down": lambda: stack("mlp.down_proj").transpose(0, 2, 1),
    }
    return by_hand[path]()


def one_device(shape: ModelShape) -> dict[str, Any]:
    """Shardings that put every parameter on the first device."""
    import jax

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return tensor_names.tree_of((row.path, sharding) for row in tensor_names.rows_of(shape))


class StoredIds:
    """Stands for a ChatTokenizer where only its ids and its `save` matter."""

    bos_id = 1
    pad_id = 2
    stop_ids = (2,)

    def save(self, folder: Path) -> None:
        """Leaves a trace."""
        (Path(folder) / "tokenizer.json").write_text("{}")
