"""GPUs that are not here, as JAX devices to compile for; what a test skips without. Not a test."""

from __future__ import annotations

import importlib.util
import os

import jax
import pytest
from jax.experimental import topologies

# What xla.GpuTargetConfigProto needs, from the vendor's data sheets. `optin` is the shared memory that a program may
# ask for: XLA refuses a kernel that needs more.
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {optin} shared_memory_per_core: {shared}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: {cores} fpus_per_core: 64 l2_cache_size: 41943040 clock_rate_ghz: 1.41
  memory_bandwidth: 2039000000000 device_memory_size: 85899345920
  cuda_compute_capability {{ major: {major} minor: 0 }}
}}
platform_name: "CUDA"
device_description_str: "{name}"
"""
GPUS = {
    "a100": _TARGET.format(optin=166912, shared=167936, cores=108, major=8, name="NVIDIA A100-SXM4-80GB"),
    "h100": _TARGET.format(optin=232448, shared=233472, cores=132, major=9, name="NVIDIA H100 80GB HBM3"),
}

needs_plugin = [
    pytest.mark.plan,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda12_plugin") is None or os.environ.get("JAX_PLATFORMS") != "cpu",
        reason="compiling for absent GPUs needs the CUDA plugin's wheels on the path and JAX_PLATFORMS=cpu",
    ),
]
has_cudnn = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.cudnn") is not None


def absent_devices(gpu: str, num_devices: int) -> list[jax.Device]:
    """So many of them on one host; programs compile for them and never run."""
    described = topologies.get_topology_desc(platform="cuda", target_config=GPUS[gpu], topology=f"1x1x{num_devices}")
    return list(described.devices)
