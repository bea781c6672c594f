"""Fits, tight or not, and bounds of a step's time."""

from __future__ import annotations

import pytest

from zephyr_jax.planning.chips import CHIPS, chip_at_hand
from zephyr_jax.planning.collectives import Collective, Traffic
from zephyr_jax.planning.estimate import memory_fraction, memory_verdict, step_bounds
from zephyr_jax.records import InputError

A100 = CHIPS["a100-80gb"]


def _verdict(peak: float, **changes):
    return memory_verdict(int(peak), **({"chip": A100, "attention": "xla", "memory_fraction": 0.75} | changes))


def test_a_peak_is_held_against_what_the_allocator_may_take():
    """0.75 of 84.93 GB is 63.70: 60 fits with 5 % of itself to spare, 62 does not leave that, 64 is too much."""
    found = [_verdict(peak) for peak in (60e9, 62e9, 64e9)]
    assert [verdict.text for verdict in found] == ["fits", "tight", "does not fit"]
    assert [verdict.margin for verdict in found] == [3_697_500_000, 1_697_500_000, -302_500_000]


def test_the_allocator_cannot_take_what_the_context_and_nccl_have():
    assert _verdict(1e9, memory_fraction=1.0).available == 84_930_000_000 - (600 << 20) - (1 << 30)


def test_cudnn_needs_a_workspace_that_the_compiler_does_not_plan():
    assert "cuDNN workspace" in _verdict(1e9, attention="cudnn").reserve
    assert "cuDNN workspace" not in _verdict(1e9).reserve


def test_the_allocator_share_is_that_of_the_environment():
    assert memory_fraction({}) == 0.75
    assert memory_fraction({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}) == 0.9
    with pytest.raises(InputError, match="XLA_PYTHON_CLIENT_MEM_FRACTION: got 'most', wanted a number above 0"):
        memory_fraction({"XLA_PYTHON_CLIENT_MEM_FRACTION": "most"})


def _gather(num_bytes: int, *, num_rings: int) -> Collective:
    return Collective("all-gather", "bf16", "fsdp", 4, num_rings, 1, num_bytes, num_bytes)


def _bounds(*collectives: Collective, bandwidth: float | None = 10.0):
    return step_bounds(
        flops_per_device=60.0,
        model_flops_per_device=45.0,
        num_positions=90,
        peak_flops=20.0,
        traffic=Traffic(collectives, 0),
        bandwidth=bandwidth,
        link_bandwidth=30.0,
    )


def test_a_step_takes_at_least_the_longer_of_compute_and_network():
    """60 FLOPs at 20 a second take 3 s; a ring of 4 sends 300 of 400 bytes, at 10 a second 30 s."""
    slow = _bounds(_gather(400, num_rings=1))
    assert (slow.compute_seconds, slow.network_seconds, slow.step_seconds) == (3.0, 30.0, 30.0)
    assert (slow.tokens_per_second, slow.mfu) == (3.0, 45 / (30 * 20))
    assert _bounds(_gather(4, num_rings=1)).step_seconds == 3.0


def test_rings_within_a_host_go_over_nvlink_where_others_leave_it():
    both = _bounds(_gather(400, num_rings=1), _gather(400, num_rings=0))
    assert both.network_seconds == 30.0 + 300 / 30
    assert _bounds(_gather(400, num_rings=0)).network_seconds == 30.0


def test_rings_that_leave_a_host_side_by_side_share_its_network():
    assert _bounds(_gather(400, num_rings=8)).network_seconds == 8 * 30.0


def test_nothing_is_said_of_the_network_without_its_bandwidth():
    bounds = _bounds(_gather(400, num_rings=1), bandwidth=None)
    assert (bounds.compute_seconds, bounds.network_seconds, bounds.step_seconds, bounds.mfu) == (3.0, None, None, None)
    assert _bounds(bandwidth=None).step_seconds == 3.0  # one device sends nothing


@pytest.mark.parametrize("name, memory", [("a100-80gb", 84.93e9), ("a100-40gb", 42.3e9), ("h100", 84.93e9)])
def test_every_chip_has_its_target_config(name, memory):
    chip = CHIPS[name]
    assert chip.memory_bytes == memory and 'platform_name: "CUDA"' in chip.target_config


def test_chips_are_known_by_jaxs_names_of_them():
    assert chip_at_hand("NVIDIA A100-SXM4-80GB") is A100
    assert chip_at_hand("NVIDIA H200") is CHIPS["h100"]  # the same peaks
    assert chip_at_hand("cpu") is None and chip_at_hand("NVIDIA H100 PCIe") is None
