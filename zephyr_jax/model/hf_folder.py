"""Writes a Hugging Face folder: safetensors, config.json, generation_config.json, tokenizer and chat template.

The folder appears whole or not at all. Not here: reading one (hf_weights.py), the command (export.py).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.model import hf_config, tensor_names
from zephyr_jax.model.hf_weights import INDEX_NAME, SINGLE_NAME
from zephyr_jax.model.safetensors_files import num_bytes, write_safetensors
from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import InputError

if TYPE_CHECKING:
    from zephyr_jax.data.chat import ChatTokenizer

SAVED_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


def save_model(
    params: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    shape: ModelShape,
    dtype: str,
    tokenizer: ChatTokenizer,
    max_shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    writes: bool = True,
) -> None:
    """Writes a model as transformers reads it; tensors come to the host one by one.

    Where the parameters are spread over several processes, all of them call this, since each hands over its part of
    every tensor, and one writes.

    Args:
      params: the parameter tree, `jax.Array` leaves (sharded over any devices) or numpy's.
      folder: where to write; it is written beside under another name and then renamed.
      shape: the model's configuration.
      dtype: type of the stored weights, bfloat16 or float32.
      tokenizer: saved into the folder; its stop ids become the model's eos_token_id.
      max_shard_bytes: the most that one safetensors file holds (a single larger tensor has a file of its own).
      overwrite: replace a folder that is there; without it only an empty one is.
      writes: whether this process is the one that writes.

    Raises:
      InputError: when the folder is there and not empty, or the type is another.
    """
    target = Path(folder)
    if dtype not in SAVED_DTYPES:
        raise InputError(f"weights cannot be saved as {dtype!r}; wanted one of {', '.join(SAVED_DTYPES)}")
    if not writes:
        for place in _ordered(shape).values():
            _fetch(params, *place)
        return
    check_target(target, overwrite=overwrite)
    with _appearing_at_once(target) as unfinished:
        _write_weights(params, unfinished, shape=shape, dtype=SAVED_DTYPES[dtype], max_shard_bytes=max_shard_bytes)
        token_ids = hf_config.make_generation_config(
            bos_id=tokenizer.bos_id, pad_id=tokenizer.pad_id, stop_ids=tokenizer.stop_ids
        )
        _write_json(unfinished / "config.json", hf_config.make_config(shape, dtype=dtype, token_ids=token_ids))
        _write_json(unfinished / "generation_config.json", token_ids)
        tokenizer.save(unfinished)


def check_target(target: Path, *, overwrite: bool = False) -> None:
    """Says early whether `save_model` will write there.

    Raises:
      InputError: when a file is in the way, or a folder with something in it and `overwrite` is false.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file; wanted the name of a folder to write")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise InputError(f"{target}: is there and not empty; give another folder, or remove it first")


@contextlib.contextmanager
def _appearing_at_once(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its name when the block ends well, and is removed when it does not."""
    target = target.absolute()
    unfinished, former = (target.with_name(f".{target.name}.{state}") for state in ("unfinished", "former"))
    if former.exists() and not target.exists():  # killed between the two renamings below
        former.rename(target)
    for left_over in (unfinished, former):
        shutil.rmtree(left_over, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if target.exists():
        target.rename(former)
    unfinished.rename(target)
    shutil.rmtree(former, ignore_errors=True)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(
    params: Mapping[str, Any], folder: Path, *, shape: ModelShape, dtype: np.dtype, max_shard_bytes: int
) -> None:
    """Writes the tensors layer by layer, in files of at most `max_shard_bytes`, with an index if there are several."""
    places = _ordered(shape)
    layout = {name: tensor_names.source_shape(row, shape) for name, (row, _) in places.items()}
    files = split_files(layout, dtype=dtype, max_shard_bytes=max_shard_bytes)
    for file_name, names in files.items():
        write_safetensors(
            folder / file_name,
            {name: layout[name] for name in names},
            dtype=dtype,
            arrays=(_fetch(params, *places[name]) for name in names),
        )
    if len(files) > 1:
        total = sum(num_bytes(wanted, dtype) for wanted in layout.values())
        weight_map = {name: file_name for file_name, names in files.items() for name in names}
        _write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _ordered(shape: ModelShape) -> dict[str, tuple[tensor_names.TensorRow, int]]:
    """Row and layer of every tensor by name: the embedding, then layer after layer, then what follows the layers."""
    rows = tensor_names.rows_of(shape)
    stacked = [row for row in rows if row.is_stacked]
    first, *last = [row for row in rows if not row.is_stacked]
    layers = [(row, layer) for layer in range(shape.num_hidden_layers) for row in stacked]
    return {
        row.name.format(layer=layer): (row, layer) for row, layer in [(first, 0), *layers, *((row, 0) for row in last)]
    }


def split_files(
    layout: Mapping[str, tuple[int, ...]], *, dtype: np.dtype, max_shard_bytes: int
) -> dict[str, list[str]]:
    """Deals tensors out to files, in order.

    Args:
      layout: shape of each tensor by name.
      dtype: the stored type.
      max_shard_bytes: the most bytes of tensors in one file; a larger tensor stands alone.

    Returns:
      Names of the tensors by file name: `model.safetensors` alone, or `model-00001-of-0000N.safetensors` and so on.
    """
    groups: list[list[str]] = [[]]
    used_bytes = 0
    for name, wanted in layout.items():
        size = num_bytes(wanted, dtype)
        if groups[-1] and used_bytes + size > max_shard_bytes:
            groups.append([])
            used_bytes = 0
        groups[-1].append(name)
        used_bytes += size
    if len(groups) == 1:
        return {SINGLE_NAME: groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": names for number, names in enumerate(groups, 1)}


def _fetch(params: Mapping[str, Any], row: tensor_names.TensorRow, layer: int) -> np.ndarray:
    """One tensor of the checkpoint, on the host, in the leaf's own type."""
    leaf = tensor_names.leaf_at(params, row.path)
    if not isinstance(leaf, jax.Array):
        return tensor_names.to_source(row, np.asarray(leaf[layer] if row.is_stacked else leaf))
    if not leaf.is_fully_addressable:
        assert isinstance(leaf.sharding, NamedSharding)
        gather = _gathering(leaf.sharding.mesh, row.is_stacked)
        whole = gather(leaf, np.int32(layer)) if row.is_stacked else gather(leaf)
        return tensor_names.to_source(row, np.asarray(whole))
    return tensor_names.to_source(row, _fetch_layer(leaf, layer) if row.is_stacked else _gather(leaf))


def _gather(leaf: jax.Array) -> np.ndarray:
    """The whole leaf on the host."""
    whole = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            whole[shard.index] = np.asarray(shard.data)
    return whole


def _fetch_layer(leaf: jax.Array, layer: int) -> np.ndarray:
    """leaf[layer] on the host.

    Each device hands over its own part of that layer: indexing the sharded array itself would first gather it on a
    device, and fetching whole shards would bring all layers to the host for each of them.
    """
    whole = np.empty(leaf.shape[1:], leaf.dtype)
    for shard in leaf.addressable_shards:
        first, stop, _ = shard.index[0].indices(leaf.shape[0])
        if shard.replica_id == 0 and first <= layer < stop:
            with jax.set_mesh(None):  # a shard lies on one device, whatever mesh the caller works on
                whole[shard.index[1:]] = np.asarray(_take(shard.data, layer - first))
    return whole


@functools.cache
def _gathering(mesh: jax.sharding.Mesh, is_stacked: bool) -> jax.stages.Wrapped:
    """leaf, or (leaf, layer) -> leaf[layer], whole on every device: what several processes fetch a tensor by."""
    return jax.jit(_take if is_stacked else lambda leaf: leaf, out_shardings=NamedSharding(mesh, PartitionSpec()))


@jax.jit
def _take(stack: jax.Array, position: jax.Array) -> jax.Array:
    """stack[position], compiled once for all positions: plain indexing compiles anew for each of them."""
    return jax.lax.dynamic_index_in_dim(stack, position, keepdims=False)
