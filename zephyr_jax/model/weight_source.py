"""Weights somewhere on disk, and how they become a sharded parameter tree without ever lying whole in host memory.

What the files look like is not known here: `hf_weights.py` and `builtin.py` hand over one `TensorReader` per tensor,
and this file takes from it, for one device's shard after the other, the parts which that shard needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from zephyr_jax.model import tensor_names
from zephyr_jax.peers import ALONE, Peers
from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import InputError

_NUM_NAMES_SHOWN = 10
_ROWS_COMPARED_AT_ONCE = 1024


class TensorReader(Protocol):
    """One stored tensor, from which a part can be read without the rest."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        ...

    def read(self, index: tuple[tensor_names.Index, ...]) -> np.ndarray:
        """Reads the outer product of one index per axis; any float type that numpy casts to float32."""
        ...


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """A model's weights and what belongs to them.

    Attributes:
      name: what the user called it, for messages.
      shape: the model's configuration.
      folder: the Hugging Face folder, or None for a model that comes in a package.
      tokenizer: what `load_chat_tokenizer` takes to get the model's own tokenizer.
      stop_ids: token ids that end a generation, from the model's own files; empty where they name none.
      open_tensors: gives the readers, checked against `shape` (called when the weights are first needed).
      hash_content: computes the fingerprint, shared out between the processes given.
    """

    name: str
    shape: ModelShape
    folder: Path | None
    tokenizer: str
    stop_ids: tuple[int, ...]
    open_tensors: Callable[[], Mapping[str, TensorReader]]
    hash_content: Callable[[Peers], str]

    def fingerprint(self, peers: Peers = ALONE) -> str:
        """A sha256 (hex) of the weights' names, types, shapes and bytes, whichever files they are spread over.

        The configuration (RoPE theta, window ...) is not part of it: `shape` is.

        Args:
          peers: the processes that share the reading, each of which asks.
        """
        return self.hash_content(peers)

    def load_params(self, shardings: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the parameter tree (see `mistral.py` for its layout), float32, straight to its devices.

        Host memory holds one shard of one leaf at a time (on CPU devices the arrays themselves lie in host memory).

        Args:
          shardings: a tree of `jax.sharding.Sharding` with one leaf per parameter of this shape.

        Returns:
          The tree of float32 `jax.Array`.
        """
        rows = tensor_names.rows_of(self.shape)
        wanted = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in _leaves(shardings)}
        assert wanted == {row.path for row in rows}, f"shardings for {sorted(wanted)}, parameters {rows}"
        tensors = self.open_tensors()
        return tensor_names.tree_of(
            (row.path, _load_leaf(row, tensor_names.leaf_at(shardings, row.path), shape=self.shape, tensors=tensors))
            for row in rows
        )


def _leaves(shardings: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(shardings, is_leaf=lambda node: isinstance(node, jax.sharding.Sharding))


def _load_leaf(
    row: tensor_names.TensorRow,
    sharding: jax.sharding.Sharding,
    *,
    shape: ModelShape,
    tensors: Mapping[str, TensorReader],
) -> jax.Array:
    # Not jax.make_array_from_callback: it calls back for all local devices before it moves the first shard, so that on
    # a host with all the devices a whole leaf (7.5 GB of a 7B model) would lie in host memory, replicas several times.
    leaf_shape = tensor_names.leaf_shape(row, shape)
    devices_of: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf_shape).items():
        assert index is not None
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, leaf_shape, strict=True))
        devices_of.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in devices_of.items():
        parts = [slice(*bound) for bound in bounds]
        shards += _placed(read_leaf_part(row, parts, shape=shape, tensors=tensors), devices)
    return jax.make_array_from_single_device_arrays(leaf_shape, sharding, shards)


def _placed(part: np.ndarray, devices: Sequence[jax.Device]) -> list[jax.Array]:
    """A copy on each device; it waits for them, so that the host's copy is free before the next shard is read."""
    return jax.block_until_ready([jax.device_put(part, device) for device in devices])


def read_leaf_part(
    row: tensor_names.TensorRow,
    index: Sequence[slice],
    *,
    shape: ModelShape,
    tensors: Mapping[str, TensorReader],
) -> np.ndarray:
    """Reads a slice of one leaf, and nothing beyond it.

    Args:
      row: the leaf's row in the table.
      index: one slice per axis of the leaf (L first where layers are stacked), with start and stop, no step.
      shape: the model's configuration.
      tensors: the checkpoint's tensors by name.

    Returns:
      The slice, float32.
    """
    letters = row.leaf.split()
    inner = dict(zip(letters, index[-len(letters) :], strict=True))
    part_sizes = {letter: part.stop - part.start for letter, part in inner.items()}
    source = tensor_names.source_index(row, inner, sizes=tensor_names.dim_sizes(shape))
    names = tensor_names.source_names(row, shape)
    stack = (index[0].stop - index[0].start,) if row.is_stacked else ()
    part = np.empty(stack + tuple(part_sizes.values()), np.float32)
    for name, out in zip(names[index[0]], part, strict=True) if row.is_stacked else [(names[0], part)]:
        # The assignment casts to float32 and transposes in one pass, without a copy between.
        out[...] = tensor_names.to_leaf(row, tensors[name].read(source), sizes=part_sizes)
    return part


def check_tensors(tensors: Mapping[str, TensorReader], shape: ModelShape, *, where: str) -> dict[str, TensorReader]:
    """Holds a checkpoint's tensors against the table: each must be there, have its shape, and be used exactly once.

    A tied model's `lm_head.weight` is left out when it is the embedding once more, as some exporters write it.

    Args:
      tensors: the checkpoint's tensors by name.
      shape: the model's configuration.
      where: the checkpoint's name, for messages.

    Returns:
      The tensors to read, one per name of the table.

    Raises:
      InputError: listing the missing, the unexpected and the mis-shaped.
    """
    expected = tensor_names.expected_shapes(shape)
    missing = sorted(name for name in expected if name not in tensors)
    unexpected = sorted(name for name in tensors if name not in expected and not tensor_names.is_buffer(name))
    misshaped = [
        f"{name} is {list(tensors[name].shape)}, wanted {list(wanted)}"
        for name, wanted in expected.items()
        if name in tensors and tuple(tensors[name].shape) != wanted
    ]
    if shape.tie_word_embeddings and tensor_names.HEAD_NAME in unexpected and not missing and not misshaped:
        head, embedding = tensors[tensor_names.HEAD_NAME], tensors[tensor_names.EMBEDDING_NAME]
        if not _is_equal(head, embedding):
            raise InputError(
                f"{where}: tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight; "
                "set tie_word_embeddings to false in config.json to use both, or remove lm_head.weight"
            )
        unexpected.remove(tensor_names.HEAD_NAME)
    if missing or unexpected or misshaped:
        lines = [f"{where}: the tensors do not fit the model that config.json describes"]
        lines += _listed("missing", missing) + _listed("unexpected", unexpected) + _listed("wrong shape", misshaped)
        raise InputError("\n".join(lines))
    return {name: tensors[name] for name in expected}


def _listed(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    rest = [f"    ... and {len(entries) - _NUM_NAMES_SHOWN} more"] if len(entries) > _NUM_NAMES_SHOWN else []
    return [f"  {title} ({len(entries)}):", *(f"    {entry}" for entry in entries[:_NUM_NAMES_SHOWN]), *rest]


def _is_equal(left: TensorReader, right: TensorReader) -> bool:
    if tuple(left.shape) != tuple(right.shape):
        return False
    for start in range(0, left.shape[0], _ROWS_COMPARED_AT_ONCE):
        part = (slice(start, min(start + _ROWS_COMPARED_AT_ONCE, left.shape[0])), slice(0, left.shape[1]))
        if not np.array_equal(left.read(part).astype(np.float32), right.read(part).astype(np.float32)):
            return False
    return True


def check_shape(recipe_shape: ModelShape, own_shape: ModelShape, *, weights: str) -> None:
    """Holds the recipe's `model.shape` against the one that the weights bring.

    Args:
      recipe_shape: what the recipe says.
      own_shape: what the weights say.
      weights: the recipe's `model.weights`, for messages.

    Raises:
      InputError: naming every field that differs.
    """
    differing = []
    for field in type(own_shape).model_fields:
        stated, own = getattr(recipe_shape, field), getattr(own_shape, field)
        # The context length has no part in the computation: it counts only where the recipe states it.
        if stated != own and (field != "max_position_embeddings" or field in recipe_shape.model_fields_set):
            differing.append(f"  model.shape.{field}: the recipe says {stated}, the weights {own}")
    if differing:
        raise InputError(
            "\n".join([f"model.shape does not fit model.weights ({weights}); correct or remove these:", *differing])
        )
