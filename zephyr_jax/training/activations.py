"""What a forward pass keeps for its backward pass, counted without running or compiling anything.

Not here: what the compiled program plans with in all (compilation.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

from zephyr_jax.sharding import num_row_shards
from zephyr_jax.training.objectives import MicroBatch, Objective


def activation_bytes(objective: Objective, params: Any, micro_batch: MicroBatch) -> int:
    """Bytes of the activations that the backward pass of one micro-batch reads, over all devices.

    They are what automatic differentiation hands from the forward to the backward pass, less the parameters, their
    copies in the compute dtype and the batch. A layer's own activations, made again within the backward pass under
    remat, are not among them.

    Args:
      objective: (params, micro-batch) -> Totals.
      params: the parameters, or their shapes.
      micro_batch: arrays of one micro-batch, or their shapes.

    Returns:
      Bytes; divide them by the parts that a batch's rows are split into for one device's share.
    """
    weights = {leaf.shape for leaf in jax.tree.leaves(params)}

    def kept(params: Any, micro_batch: MicroBatch) -> list[jax.Array]:
        _, backward = jax.vjp(lambda params: objective(params, micro_batch).loss, params)
        given = {id(leaf) for leaf in jax.tree.leaves((params, micro_batch))}
        return [leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in given and leaf.shape not in weights]

    leaves = jax.eval_shape(kept, params, micro_batch)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def kept_activations(objective: Objective, params: Any, batch: Mapping[str, jax.Array], mesh: jax.sharding.Mesh) -> int:
    """One device's share of `activation_bytes` in a step; at most so many where the axis `tensor` splits some of them.

    Args:
      objective: (params, micro-batch) -> Totals.
      params: the parameters.
      batch: a step batch, whose micro-batches come one after the other.
      mesh: the devices that share its rows.
    """
    parts = batch.items()
    micro_batch: dict[str, Any] = {name: jax.ShapeDtypeStruct(part.shape[1:], part.dtype) for name, part in parts}
    return activation_bytes(objective, params, micro_batch) // num_row_shards(mesh)
