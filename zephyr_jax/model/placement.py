"""Where activations and weights lie within the forward pass, on a mesh with the axes data, fsdp, tensor.

What is left open the compiler settles. Not here: where parameters and batches lie (sharding.py and the table in
mistral.py).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec

ROWS = PartitionSpec(("data", "fsdp"), None, None)
COLUMNS = PartitionSpec("data", None, "fsdp")


def over_rows(x_BTD: jax.Array) -> jax.Array:
    """Keeps activations split by rows, so that the compiler gathers parameters and never activations."""
    return placed(x_BTD, ROWS)


def placed(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """x, lying as the spec says; as it lies where there is no mesh."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)


def keeps_all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """A remat policy: keeps all that a layer computes. Gathered weights are the whole model on every device."""
    return primitive.name != "sharding_constraint"


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(weight: jax.Array, spec: PartitionSpec) -> jax.Array:
    """The weight whole over `fsdp`, for all products of one pass over a layer; its gradient split by `spec` again.

    Left to itself, the compiler gathers some weights twice in the backward pass: for what is recomputed, and for the
    product with the gradient.

    Args:
      weight: a parameter of a layer, in the compute dtype.
      spec: how it lies.
    """
    return placed(weight, _whole(spec))


def _whole(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))


def _gathered_forward(weight: jax.Array, spec: PartitionSpec) -> tuple[jax.Array, None]:
    return placed(weight, _whole(spec)), None  # not by its own name, under which a remat policy would not see it


def _gathered_backward(spec: PartitionSpec, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (placed(gradient, spec),)


gathered.defvjp(_gathered_forward, _gathered_backward)
