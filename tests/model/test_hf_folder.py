"""Writing Hugging Face folders: what is written reads back, files have their size, and nothing is left half done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.model.tiny_folders import TIED, UNTIED, StoredIds, make_tensors, one_device, write_folder
from zephyr_jax.model import mistral, tensor_names
from zephyr_jax.model.hf_folder import save_model, split_files
from zephyr_jax.model.hf_weights import open_folder
from zephyr_jax.recipe import Mesh
from zephyr_jax.records import InputError
from zephyr_jax.sharding import make_mesh, tree_shardings


def make_params(folder: Path, shape: Any, shardings: Any = None) -> Any:
    source = open_folder(write_folder(folder, shape, make_tensors(shape)))
    return source.load_params(shardings or one_device(shape))


def assert_same(left: Any, right: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


def save(params: Any, folder: Path, shape: Any, **options: Any) -> None:
    options = {"dtype": "float32", "tokenizer": StoredIds()} | options
    save_model(params, folder, shape=shape, **options)


@pytest.mark.parametrize("shape", [UNTIED, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000], ids=["one_file", "many_files"])
def test_what_is_written_reads_back(tmp_path: Path, shape: Any, max_shard_bytes: int) -> None:
    params = make_params(tmp_path / "in", shape)
    save(params, tmp_path / "out", shape, max_shard_bytes=max_shard_bytes)
    source = open_folder(tmp_path / "out")
    assert source.shape == shape and source.stop_ids == (2,)
    assert_same(source.load_params(one_device(shape)), params)
    assert source.fingerprint() == open_folder(tmp_path / "in").fingerprint()


def test_parameters_spread_over_eight_devices_are_written_whole(tmp_path: Path) -> None:
    devices = jax.devices()
    assert len(devices) >= 8
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2), devices[:8])
    shardings = tree_shardings(mistral.abstract_params(UNTIED), mistral.PARTITION_RULES, mesh)
    save(make_params(tmp_path / "in", UNTIED, shardings), tmp_path / "out", UNTIED)
    assert open_folder(tmp_path / "out").fingerprint() == open_folder(tmp_path / "in").fingerprint()


def test_numpy_parameters_are_written_too(tmp_path: Path) -> None:
    params = jax.tree.map(np.asarray, make_params(tmp_path / "in", UNTIED))
    save(params, tmp_path / "out", UNTIED)
    assert open_folder(tmp_path / "out").fingerprint() == open_folder(tmp_path / "in").fingerprint()


def test_bfloat16_weights_are_rounded_to_nearest(tmp_path: Path) -> None:
    params = make_params(tmp_path / "in", UNTIED)
    save(params, tmp_path / "out", UNTIED, dtype="bfloat16")
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16).astype(np.float32), params)
    assert_same(open_folder(tmp_path / "out").load_params(one_device(UNTIED)), rounded)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_files_keep_to_their_size_and_the_index_counts_all_bytes(tmp_path: Path) -> None:
    save(make_params(tmp_path / "in", UNTIED), tmp_path / "out", UNTIED, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensor_names.expected_shapes(UNTIED))
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 3
    num_values = sum(int(np.prod(size)) for size in tensor_names.expected_shapes(UNTIED).values())
    assert index["metadata"]["total_size"] == 4 * num_values


def test_tensors_are_dealt_out_in_order_and_large_ones_stand_alone() -> None:
    """4 bytes per value: a and b make 24 bytes, c with its 40 is over the limit of 24 alone, d starts anew."""
    layout = {"a": (4,), "b": (2,), "c": (10,), "d": (1,)}
    assert list(split_files(layout, dtype=np.dtype(np.float32), max_shard_bytes=24).values()) == [
        ["a", "b"],
        ["c"],
        ["d"],
    ]
    assert split_files(layout, dtype=np.dtype(np.float32), max_shard_bytes=68) == {
        "model.safetensors": ["a", "b", "c", "d"]
    }


def test_the_folder_holds_the_stop_ids_and_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = StoredIds()
    tokenizer.stop_ids = (2, 5)  # type: ignore[assignment]
    save(make_params(tmp_path / "in", TIED), tmp_path / "out", TIED, tokenizer=tokenizer)
    wanted = {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 2}
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == wanted
    assert json.loads((tmp_path / "out" / "config.json").read_text()).items() >= wanted.items()
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_a_folder_with_something_in_it_is_replaced_only_when_asked(tmp_path: Path) -> None:
    params, out = make_params(tmp_path / "in", TIED), tmp_path / "out"
    out.mkdir()
    save(params, out, TIED)  # empty: fine
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        save(params, out, TIED)
    assert (out / "notes.txt").exists()
    save(params, out, TIED, overwrite=True)
    assert not (out / "notes.txt").exists() and (out / "config.json").exists()
    with pytest.raises(InputError, match="is a file"):
        save(params, out / "config.json", TIED)


def test_a_write_that_fails_leaves_the_former_folder_and_nothing_else(tmp_path: Path) -> None:
    class Failing(StoredIds):
        def save(self, folder: Path) -> None:
            raise OSError("disk full")

    params = make_params(tmp_path / "in", TIED)
    save(params, tmp_path / "out", TIED)
    with pytest.raises(OSError, match="disk full"):
        save(params, tmp_path / "out", TIED, tokenizer=Failing(), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert open_folder(tmp_path / "out").fingerprint() == open_folder(tmp_path / "in").fingerprint()


def test_a_run_killed_between_the_two_renamings_loses_nothing(tmp_path: Path) -> None:
    params = make_params(tmp_path / "in", TIED)
    save(params, tmp_path / "out", TIED)
    (tmp_path / "out").rename(tmp_path / ".out.former")
    with pytest.raises(InputError, match="float8"):
        save(params, tmp_path / "out", TIED, dtype="float8")
    save(params, tmp_path / "out", TIED, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
