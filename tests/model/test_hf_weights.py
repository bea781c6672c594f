"""Reading Hugging Face folders: every value lands where it belongs, only what is needed is read, mistakes are named."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.model.tiny_folders import TIED, UNTIED, expected_leaf, make_tensors, one_device, write_folder
from tests.small_jobs import in_threads
from zephyr_jax.model import hf_weights, mistral, tensor_names
from zephyr_jax.model.hf_weights import open_folder
from zephyr_jax.model.weight_source import WeightSource, check_shape, read_leaf_part
from zephyr_jax.records import InputError
from zephyr_jax.sharding import tree_shardings


def paths(shape: Any) -> list[str]:
    return [row.path for row in tensor_names.rows_of(shape)]


def assert_tree_equals(params: Mapping[str, Any], shape: Any, tensors: Mapping[str, np.ndarray]) -> None:
    for path in paths(shape):
        leaf = tensor_names.leaf_at(params, path)
        assert leaf.dtype == np.float32, path
        np.testing.assert_array_equal(np.asarray(leaf), expected_leaf(path, shape, tensors), err_msg=path)


def test_the_table_has_the_leaves_that_the_model_has() -> None:
    for shape in (TIED, UNTIED):
        wanted = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(mistral.abstract_params(shape))
        }
        assert {row.path: tensor_names.leaf_shape(row, shape) for row in tensor_names.rows_of(shape)} == wanted


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [UNTIED, TIED], ids=["untied", "tied"])
def test_every_value_lands_where_it_belongs(tmp_path: Path, shape: Any, dtype: Any) -> None:
    tensors = make_tensors(shape, dtype=dtype)
    source = open_folder(write_folder(tmp_path, shape, tensors))
    assert source.shape == shape
    assert_tree_equals(source.load_params(one_device(shape)), shape, tensors)


def test_many_files_hold_the_same_model_as_one(tmp_path: Path) -> None:
    tensors = make_tensors(UNTIED)
    one = open_folder(write_folder(tmp_path / "one", UNTIED, tensors))
    many = open_folder(write_folder(tmp_path / "many", UNTIED, tensors, num_files=4))
    assert_tree_equals(many.load_params(one_device(UNTIED)), UNTIED, tensors)
    assert one.fingerprint() == many.fingerprint()


def test_processes_share_out_the_hashing_and_get_the_hash_of_one(tmp_path: Path, monkeypatch) -> None:
    folder, hashed = write_folder(tmp_path, UNTIED, make_tensors(UNTIED)), []
    alone = open_folder(folder).fingerprint()
    hash_bytes = hf_weights._hash_bytes
    monkeypatch.setattr(hf_weights, "_hash_bytes", lambda tensor: hashed.append(1) or hash_bytes(tensor))
    assert in_threads(3, lambda job: open_folder(folder).fingerprint(job)) == [alone] * 3
    assert len(hashed) == len(make_tensors(UNTIED))


def test_the_fingerprint_changes_with_one_bit_and_with_the_type(tmp_path: Path) -> None:
    tensors = make_tensors(UNTIED)
    before = open_folder(write_folder(tmp_path / "a", UNTIED, tensors)).fingerprint()
    as_bf16 = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    assert open_folder(write_folder(tmp_path / "b", UNTIED, as_bf16)).fingerprint() != before
    tensors["model.norm.weight"].view(np.uint32)[3] ^= 1
    assert open_folder(write_folder(tmp_path / "c", UNTIED, tensors)).fingerprint() != before


def test_any_part_of_a_leaf_is_that_part_of_the_whole(tmp_path: Path) -> None:
    """Random slices of all axes, also of the head size, which no rule splits today."""
    tensors = make_tensors(UNTIED)
    stored = open_folder(write_folder(tmp_path, UNTIED, tensors)).open_tensors()
    random = np.random.default_rng(1)
    for row in tensor_names.rows_of(UNTIED):
        whole = expected_leaf(row.path, UNTIED, tensors)
        for _ in range(8):
            bounds = [sorted(random.choice(size + 1, 2, replace=False)) for size in whole.shape]
            index = tuple(slice(int(start), int(stop)) for start, stop in bounds)
            part = read_leaf_part(row, index, shape=UNTIED, tensors=stored)
            np.testing.assert_array_equal(part, whole[index], err_msg=f"{row.path} {index}")


@dataclasses.dataclass
class CountingReader:
    """Passes a tensor's parts on and adds up their bytes."""

    tensor: Any
    counts: dict[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def read(self, index: Any) -> np.ndarray:
        part = self.tensor.read(index)
        self.counts["bytes"] = self.counts.get("bytes", 0) + part.nbytes
        return part


def load_counted(source: WeightSource, shardings: Any) -> tuple[Any, int]:
    counts: dict[str, int] = {}
    counted = {name: CountingReader(tensor, counts) for name, tensor in source.open_tensors().items()}
    return dataclasses.replace(source, open_tensors=lambda: counted).load_params(shardings), counts["bytes"]


def mesh_of(*sizes: int) -> jax.sharding.Mesh:
    devices = jax.devices()
    assert len(devices) >= 16, "tests need 16 devices: XLA_FLAGS=--xla_force_host_platform_device_count=16"
    return jax.sharding.Mesh(np.array(devices[: math.prod(sizes)]).reshape(sizes), ("data", "fsdp", "tensor"))


@pytest.mark.parametrize("sizes", [(1, 16, 1), (1, 8, 2), (4, 2, 2), (16, 1, 1)], ids=str)
def test_sixteen_devices_get_the_same_values_and_read_each_byte_once(tmp_path: Path, sizes: Any) -> None:
    """A host with all the devices asks for each byte of the checkpoint exactly once, replicas or not."""
    tensors = make_tensors(UNTIED, dtype=ml_dtypes.bfloat16)
    source = open_folder(write_folder(tmp_path, UNTIED, tensors))
    shardings = tree_shardings(mistral.abstract_params(UNTIED), mistral.PARTITION_RULES, mesh_of(*sizes))
    params, num_bytes = load_counted(source, shardings)
    assert num_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert_tree_equals(params, UNTIED, tensors)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings


def test_reading_one_shard_takes_the_memory_of_that_shard(tmp_path: Path) -> None:
    """A leaf of 2 x 512 x 2048 float32 values is 8 MiB; reading a sixteenth, 512 KiB, allocates less than 615 KiB."""
    shape = UNTIED.model_copy(update={"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2})
    tensors = make_tensors(shape, dtype=ml_dtypes.bfloat16)
    stored = open_folder(write_folder(tmp_path, shape, tensors)).open_tensors()
    (row,) = (row for row in tensor_names.TABLE if row.path == "layers/mlp/gate")
    index = (slice(0, 2), slice(32, 64), slice(0, 2048))
    read_leaf_part(row, (slice(0, 1), slice(0, 1), slice(0, 1)), shape=shape, tensors=stored)  # einops fills its cache
    tracemalloc.start()
    part = read_leaf_part(row, index, shape=shape, tensors=stored)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert part.nbytes == 2**19
    assert peak_bytes < 1.2 * part.nbytes


def test_missing_unexpected_and_misshaped_tensors_come_in_one_message(tmp_path: Path) -> None:
    tensors = make_tensors(UNTIED)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(40, np.float32)
    tensors["model.norm.weight"] = np.zeros(31, np.float32)
    with pytest.raises(InputError) as caught:
        open_folder(write_folder(tmp_path, UNTIED, tensors))
    assert str(caught.value).split("\n")[1:] == [
        "  missing (1):",
        "    model.layers.1.mlp.up_proj.weight",
        "  unexpected (1):",
        "    model.layers.0.self_attn.q_proj.bias",
        "  wrong shape (1):",
        "    model.norm.weight is [31], wanted [32]",
    ]


def test_a_long_list_of_tensors_is_cut_and_counted(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in make_tensors(UNTIED).items() if "layers" not in name}
    with pytest.raises(InputError, match=r"missing \(27\):(.|\n)*and 17 more"):
        open_folder(write_folder(tmp_path, UNTIED, tensors))


def test_an_untied_model_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing .1.:\n    lm_head.weight"):
        open_folder(write_folder(tmp_path, UNTIED, make_tensors(TIED)))


def test_a_tied_head_may_repeat_the_embedding_but_not_differ_from_it(tmp_path: Path) -> None:
    tensors = make_tensors(TIED)
    plain = open_folder(write_folder(tmp_path / "plain", TIED, tensors))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    repeated = open_folder(write_folder(tmp_path / "repeated", TIED, tensors))
    assert_tree_equals(repeated.load_params(one_device(TIED)), TIED, tensors)
    assert repeated.fingerprint() == plain.fingerprint()
    tensors["lm_head.weight"][-1, -1] += 1
    with pytest.raises(InputError, match="lm_head.weight differs from model.embed_tokens.weight"):
        open_folder(write_folder(tmp_path / "differing", TIED, tensors))


@pytest.mark.parametrize("name", ["model.layers.2.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_rope_buffers_of_old_checkpoints_are_no_weights(tmp_path: Path, name: str) -> None:
    tensors = make_tensors(UNTIED) | {name: np.ones(5, np.float32)}
    assert_tree_equals(
        open_folder(write_folder(tmp_path, UNTIED, tensors)).load_params(one_device(UNTIED)), UNTIED, tensors
    )


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no config.json"):
        open_folder(tmp_path)


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, UNTIED, make_tensors(UNTIED))
    for content, reason in (("{", "not valid JSON"), ("[1]", "wanted a JSON object")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=f"config.json: .*{reason}"):
            open_folder(tmp_path)


def test_pytorch_weights_come_with_the_way_to_convert_them(tmp_path: Path) -> None:
    write_folder(tmp_path, UNTIED, make_tensors(UNTIED))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="AutoModelForCausalLM.from_pretrained.*save_pretrained"):
        open_folder(tmp_path)


def test_weights_under_another_name_are_listed(tmp_path: Path) -> None:
    write_folder(tmp_path, UNTIED, make_tensors(UNTIED))
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter.safetensors")
    with pytest.raises(InputError, match=r"no model.safetensors or .*only adapter.safetensors"):
        open_folder(tmp_path)


def test_an_index_that_names_absent_files_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, UNTIED, make_tensors(UNTIED), num_files=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"1 of the 3 files .* not there: model-00002-of-00003.safetensors"):
        open_folder(tmp_path)


def test_files_that_disagree_with_the_index_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, UNTIED, make_tensors(UNTIED), num_files=2)
    shutil.copy(tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(InputError, match="disagree on 30 tensors"):
        open_folder(tmp_path)


def test_an_index_without_a_weight_map_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, UNTIED, make_tensors(UNTIED), num_files=2)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(InputError, match="no weight_map"):
        open_folder(tmp_path)


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    tensors = make_tensors(UNTIED)
    write_folder(tmp_path, UNTIED, tensors)
    save_file(tensors | {"model.norm.weight": np.ones(32, np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="model.norm.weight has type I8; wanted one of F32, F16, BF16"):
        open_folder(tmp_path)


def test_stop_ids_come_from_the_generation_config_first(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, UNTIED, make_tensors(UNTIED))
    assert open_folder(folder).stop_ids == (2,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert open_folder(folder).stop_ids == (5, 7)


def test_a_recipe_shape_that_differs_is_shown_field_by_field() -> None:
    other = UNTIED.model_copy(update={"rope_theta": 10000.0, "sliding_window": None})
    with pytest.raises(InputError) as caught:
        check_shape(other, UNTIED, weights="some/folder")
    assert str(caught.value).split("\n")[1:] == [
        "  model.shape.rope_theta: the recipe says 10000.0, the weights 12345.0",
        "  model.shape.sliding_window: the recipe says None, the weights 7",
    ]
    check_shape(UNTIED, UNTIED, weights="some/folder")


def test_a_context_length_counts_only_where_the_recipe_states_it() -> None:
    stated = UNTIED.model_dump() | {"max_position_embeddings": 99}
    unstated = {key: value for key, value in stated.items() if key != "max_position_embeddings"}
    check_shape(type(UNTIED)(**unstated), UNTIED, weights="some/folder")
    with pytest.raises(InputError, match="max_position_embeddings: the recipe says 99, the weights 100"):
        check_shape(type(UNTIED)(**stated), UNTIED, weights="some/folder")
