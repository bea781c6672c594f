"""The device mesh, and where arrays lie on it: parameters and optimizer state by a table, batches by rows.

Generic: the table of a model's parameters stands beside the model. Not here: reading or computing anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zephyr_jax import recipe
from zephyr_jax.records import InputError

Rules = Sequence[tuple[str, PartitionSpec]]

ROW_AXES = ("data", "fsdp")  # the axes that share a batch's rows


def make_mesh(
    mesh: recipe.Mesh, devices: Sequence[jax.Device] | None = None, *, hosts: Sequence[str] | None = None
) -> jax.sharding.Mesh:
    """A mesh with the axes data, fsdp, tensor over the devices.

    Devices of one host stand side by side and `tensor` turns fastest, then `fsdp`, then `data`. So an axis leaves a
    host only where those after it have filled one: {data: hosts, fsdp: devices of a host} replicates across hosts and
    shards within. (TPUs are laid out by JAX, after their own wiring.)

    Args:
      mesh: axis sizes of the recipe.
      devices: all of jax.devices() unless given.
      hosts: the host of each process, by its index, where several processes share one; None: each has its own.

    Returns:
      The mesh; its axes are of the Auto type: the compiler splits what the table leaves open.

    Raises:
      InputError: the devices cannot fill the mesh.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = recipe.resolve_mesh(mesh, len(devices))
    axis_types = (AxisType.Auto,) * len(sizes)
    if devices[0].platform == "tpu":
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=axis_types, devices=devices)
    by_host = sorted(devices, key=lambda device: (_host_number(device, hosts), device.process_index, device.id))
    return jax.sharding.Mesh(np.array(by_host).reshape(tuple(sizes.values())), tuple(sizes), axis_types=axis_types)


def _host_number(device: jax.Device, hosts: Sequence[str] | None) -> int:
    """Hosts are counted by their first process: a scheduler may deal processes out to them in turn."""
    index: int = device.process_index
    return index if hosts is None else hosts.index(hosts[index])


def describe_mesh(mesh: jax.sharding.Mesh, *, hosts: Sequence[str] | None = None) -> str:
    """The mesh for people: `data 2 (across hosts) x fsdp 8 (within a host) x tensor 1`.

    Args:
      mesh: the mesh.
      hosts: as of `make_mesh`.
    """
    numbers = np.vectorize(lambda device: _host_number(device, hosts), otypes=[int])(mesh.devices)
    texts = []
    for position, (axis, size) in enumerate(mesh.shape.items()):
        crosses = bool((numbers != numbers.take([0], axis=position)).any())
        place = "" if size == 1 else " (across hosts)" if crosses else " (within a host)"
        texts.append(f"{axis} {size}{place}")
    return " x ".join(texts)


def num_row_shards(mesh: jax.sharding.Mesh) -> int:
    """Parts that a batch's rows are split into."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def path_text(path: tuple[Any, ...]) -> str:
    """A tree path as `layers/attention/query`; fields and indexes of optimizer states included."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def tree_shardings(tree: Any, rules: Rules, mesh: jax.sharding.Mesh) -> Any:
    """The sharding of every leaf, by the one rule that its path matches.

    A rule matches a whole path or the end of one after a slash, so a table of parameters covers optimizer moments
    too. Scalars (step counts) lie everywhere and need no rule.

    Args:
      tree: leaves with a `shape`.
      rules: (regular expression of the path, PartitionSpec).
      mesh: the device mesh.

    Returns:
      The same tree with NamedSharding leaves.

    Raises:
      InputError: a dimension cannot be divided as its rule says.
      ValueError: a leaf matches no rule, or more than one.
    """

    split: dict[str, list[tuple[int, str, tuple[int, ...]]]] = {}  # axis -> size, name and shape of what it splits

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if not leaf.shape:
            return NamedSharding(mesh, PartitionSpec())
        name = path_text(path)
        specs = [(pattern, spec) for pattern, spec in rules if re.fullmatch(rf"(?:.*/)?{pattern}", name)]
        if len(specs) != 1:
            matched = " and ".join(repr(pattern) for pattern, _ in specs) or "no row"
            raise ValueError(f"sharding rules: {name} {tuple(leaf.shape)} matches {matched}, wanted exactly one row")
        for size, axis in zip(leaf.shape, specs[0][1], strict=False):
            if axis is not None:
                split.setdefault(axis, []).append((size, name, leaf.shape))
        return NamedSharding(mesh, specs[0][1])

    shardings = jax.tree.map_with_path(sharding, tree)
    _check_divides(split, mesh)
    return shardings


def _check_divides(split: Mapping[str, Sequence[tuple[int, str, tuple[int, ...]]]], mesh: jax.sharding.Mesh) -> None:
    for axis, dimensions in split.items():
        for size, name, shape in dimensions:
            if size % mesh.shape[axis]:
                common = math.gcd(*(other for other, _, _ in dimensions))
                divisors = [d for d in range(1, common + 1) if common % d == 0]
                raise InputError(
                    f"mesh.{axis}: got {mesh.shape[axis]}, which does not divide a dimension of {size} in parameter "
                    f"{name} {shape}; wanted one of {', '.join(map(str, divisors[:12]))}"
                    + (", ..." if len(divisors) > 12 else "")
                )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of an array that lies whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shardings(batch: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, NamedSharding]:
    """Shardings of a step batch: arrays [A, B, ...] by rows; those over pairs [A, P] and scalars [A] everywhere."""
    rows = NamedSharding(mesh, PartitionSpec(None, ROW_AXES))
    return {name: rows if np.ndim(array) == 3 else replicated(mesh) for name, array in batch.items()}


def local_rows(mesh: jax.sharding.Mesh, num_rows: int) -> slice:
    """Of a batch's rows, those that this process's devices hold, and any between; on one process all of them.

    Args:
      mesh: the device mesh.
      num_rows: B, a multiple of `num_row_shards`.
    """
    places = NamedSharding(mesh, PartitionSpec(ROW_AXES)).addressable_devices_indices_map((num_rows,)).values()
    bounds = [place[0].indices(num_rows) for place in places if place is not None]
    return slice(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))


def place_rows(array: np.ndarray, mesh: jax.sharding.Mesh | None) -> np.ndarray | jax.Array:
    """Sends an array [B, ...] to the devices of the mesh, each its own rows; without a mesh jit places them."""
    if mesh is None:
        return array
    by_rows = NamedSharding(mesh, PartitionSpec(ROW_AXES))
    return jax.make_array_from_callback(array.shape, by_rows, array.__getitem__)


def place_batch(
    batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh, *, num_rows: int | None = None
) -> dict[str, jax.Array]:
    """Sends a step batch to the devices, each its own rows.

    Args:
      batch: host arrays; those by rows, [A, b, ...], hold all rows, or with `num_rows` the `local_rows` of so many.
      mesh: the device mesh.
      num_rows: rows of the whole batch, B.
    """
    first = 0 if num_rows is None else local_rows(mesh, num_rows).start
    shardings = batch_shardings(batch, mesh)

    def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        if array.ndim < 3 or num_rows is None:
            return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # a device of this process
            start, stop, _ = index[1].indices(num_rows)
            return array[index[0], start - first : stop - first, *index[2:]]

        return jax.make_array_from_callback((array.shape[0], num_rows, *array.shape[2:]), sharding, part)

    return {name: place(array, shardings[name]) for name, array in batch.items()}
