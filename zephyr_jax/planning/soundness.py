"""Whether a compiled train step sends what its parameters' sizes say and no more, and keeps nothing whole.

FSDP needs each weight gathered for the forward pass and for the backward pass, in the compute dtype, and its gradient
reduced and scattered once, a micro-batch. Anything else that is large is a fault of the program: float32 weights on the
wires, gradients reduced whole, state that is not split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from zephyr_jax.planning.programs import Compiled
from zephyr_jax.sharding import path_text

MOST_REDUCED_BYTES = 4_000_000  # of one all-reduce over fsdp: norm scales, metrics and sums
LEAST_LARGE_BYTES = 4_000_000  # of an array of the state that must not lie whole on every device
TOLERANCE = 0.01
PASSES = 2  # forward and backward: what is recomputed and the gradients' products share one gathering


class NeededTraffic(NamedTuple):
    """Full-buffer bytes of a step that the parameters' sizes ask for, over the axis fsdp."""

    gathered: int
    scattered: int


def needed_traffic(
    params: Any, *, mesh_shape: Mapping[str, int], compute_dtype: str, num_micro_batches: int
) -> NeededTraffic:
    """What gathering and scattering the weights takes.

    The embedding is not among them unless it is the head too: looking up rows sends rows.

    Args:
      params: the parameter tree, or its shapes.
      mesh_shape: sizes of the mesh's axes.
      compute_dtype: what the weights are sent in.
      num_micro_batches: of a step.
    """
    leaves = {path_text(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    lookup_only = "embedding" if "head" in leaves else ""
    weights = [leaf for name, leaf in leaves.items() if not name.endswith("scale") and name != lookup_only]
    itemsize = 2 if compute_dtype == "bfloat16" else 4
    whole = sum(math.prod(leaf.shape) for leaf in weights) * itemsize // mesh_shape["tensor"] * num_micro_batches
    return NeededTraffic(PASSES * whole, whole) if mesh_shape["fsdp"] > 1 else NeededTraffic(0, 0)


def find_faults(
    compiled: Compiled, state: Any, needed: NeededTraffic, *, mesh_shape: Mapping[str, int], compute_dtype: str
) -> list[str]:
    """What is wrong with a compiled train step, a sentence each; [] where nothing is.

    Args:
      compiled: the step, (state, batch) -> (state, metrics), for a GPU.
      state: the state's shapes.
      needed: what its parameters ask for.
      mesh_shape: sizes of the mesh's axes.
      compute_dtype: float32 or bfloat16.
    """
    faults = []
    hlo_dtype = {"bfloat16": "bf16", "float32": "f32"}[compute_dtype]
    sent = {"all-gather": 0, "reduce-scatter": 0}
    for found in compiled.traffic.collectives:
        if found.kind in sent and found.axes == "fsdp" and found.dtype == "f32" != hlo_dtype:
            what = "gathered" if found.kind == "all-gather" else "reduced and scattered"
            faults.append(f"{found.num_bytes / 1e9:.2f} GB of float32 are {what} over fsdp")
        if found.kind == "all-reduce" and found.axes == "fsdp" and found.largest_bytes > MOST_REDUCED_BYTES:
            faults.append(f"an array of {found.largest_bytes / 1e6:.1f} MB {found.dtype} is reduced whole over fsdp")
        if found.kind in sent and found.axes == "fsdp" and found.dtype == hlo_dtype:
            sent[found.kind] += found.num_bytes
    # In a loop of unknown length (which flags that pipeline collectives make) traffic was counted once: no sum to hold.
    totals = () if compiled.traffic.unknown_loops else zip(sent.items(), needed, strict=True)
    for (kind, num_bytes), wanted in totals:
        if abs(num_bytes - wanted) > TOLERANCE * wanted:
            faults.append(f"{kind}s of {num_bytes / 1e9:.2f} GB, where the weights' sizes say {wanted / 1e9:.2f} GB")
    if mesh_shape["fsdp"] * mesh_shape["tensor"] > 1:
        faults += _whole_leaves(compiled, state)
    return faults


def _whole_leaves(compiled: Compiled, state: Any) -> list[str]:
    """Large arrays of the state that every device holds whole, going in or coming out."""
    leaves = jax.tree.leaves_with_path(state)
    faults = []
    for side, shardings in (("given", compiled.input_shardings), ("returned", compiled.output_shardings)):
        for (path, leaf), sharding in zip(leaves, shardings, strict=False):  # the state's leaves stand first
            num_bytes = math.prod(leaf.shape) * leaf.dtype.itemsize
            if num_bytes > LEAST_LARGE_BYTES and sharding.shard_shape(leaf.shape) == leaf.shape:
                faults.append(f"{path_text(path)} is {side} whole on every device, {num_bytes / 1e6:.0f} MB")
    return faults
