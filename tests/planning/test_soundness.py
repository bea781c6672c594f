"""What is called a fault of a compiled step, from traffic and shardings made up by hand; the real ones need wheels."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.planning.collectives import Collective, Traffic
from zephyr_jax.planning.programs import Compiled
from zephyr_jax.planning.soundness import find_faults, needed_traffic
from zephyr_jax.recipe import Mesh
from zephyr_jax.sharding import make_mesh

SPLIT = PartitionSpec("fsdp")
SIZES = {"data": 1, "fsdp": 2, "tensor": 1}
PARAMS = {name: jax.ShapeDtypeStruct((4096, 512), np.float32) for name in ("embedding", "head", "query")}
GATHERED, SCATTERED = 2 * 2 * 2 * 4096 * 512, 2 * 2 * 4096 * 512  # head and query, two passes, two bytes a number


def _collective(kind: str, num_bytes: int, *, dtype: str = "bf16", axes: str = "fsdp") -> Collective:
    return Collective(kind, dtype, axes, 2, False, 1, num_bytes, num_bytes)


def _faults(*collectives: Collective, unknown_loops: int = 0, spec: PartitionSpec = SPLIT) -> list[str]:
    if len(jax.devices()) < 2:
        pytest.skip("needs 2 devices: XLA_FLAGS=--xla_force_host_platform_device_count=16")
    shardings = (NamedSharding(make_mesh(Mesh(fsdp=2), jax.devices()[:2]), spec),) * len(PARAMS)
    compiled = Compiled(0.0, 0, 0, 0, Traffic(collectives, unknown_loops), shardings, shardings)
    needed = needed_traffic(PARAMS, mesh_shape=SIZES, compute_dtype="bfloat16", num_micro_batches=1)
    return find_faults(compiled, PARAMS, needed, mesh_shape=SIZES, compute_dtype="bfloat16")


SOUND = (_collective("all-gather", GATHERED), _collective("reduce-scatter", SCATTERED))


def test_a_step_that_sends_what_its_weights_ask_for_is_sound():
    assert _faults(*SOUND, _collective("all-reduce", 1_000_000, dtype="f32")) == []


def test_weights_gathered_once_more_are_a_fault_that_names_both_figures():
    assert _faults(_collective("all-gather", 3 * GATHERED // 2), SOUND[1]) == [
        "all-gathers of 0.03 GB, where the weights' sizes say 0.02 GB"
    ]


def test_sums_are_not_held_against_traffic_of_loops_that_hide_their_length():
    """A quarter of the traffic is in sight, as one turn of four; what is wrong with single collectives still is."""
    seen = [_collective("all-gather", GATHERED // 4), _collective("reduce-scatter", SCATTERED // 4)]
    assert _faults(*seen, unknown_loops=1) == [] and len(_faults(*seen)) == 2
    float32 = _collective("all-gather", 30_000_000, dtype="f32")
    assert _faults(*seen, float32, unknown_loops=1) == ["0.03 GB of float32 are gathered over fsdp"]


def test_gradients_reduced_whole_are_a_fault():
    large = _collective("all-reduce", 8_400_000, dtype="f32")
    assert _faults(*SOUND, large) == ["an array of 8.4 MB f32 is reduced whole over fsdp"]


def test_a_parameter_that_lies_whole_on_every_device_is_a_fault_going_in_and_coming_out():
    found = _faults(*SOUND, spec=PartitionSpec())
    assert len(found) == 2 * len(PARAMS) and found[0] == "embedding is given whole on every device, 8 MB"
