"""What the day's machine is: devices, versions, settings, rates of matmuls and memory, the kernels that auto takes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import time
from typing import get_args

import jax
import jax.numpy as jnp

from benchmarks.gpu_day.attention_numbers import Record
from benchmarks.gpu_day.sizes import Sizes
from zephyr_jax.model.attention_rule import choose_attention, platform_here
from zephyr_jax.planning.matmul_ceiling import matmul_ceiling
from zephyr_jax.recipe import RowLayout

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "trl", "nvidia-cudnn-cu13")
SETTINGS = ("XLA_FLAGS", "JAX_OPTIMIZATION_LEVEL", "XLA_PYTHON_CLIENT_MEM_FRACTION", "CUDA_DEVICE_MAX_CONNECTIONS")


def describe_machine(sizes: Sizes, record: Record) -> None:
    """Records the machine."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    record(
        {
            "platform": device.platform,
            "device_kind": device.device_kind,
            "num_devices": len(jax.devices()),
            "memory_for_jax_bytes": stats.get("bytes_limit"),
            "nvidia_smi": _nvidia_smi(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
            "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        }
    )
    rule = {"platform": platform_here(), "dtype": "bfloat16", "head_dim": sizes.head_dim}
    layouts = get_args(RowLayout)
    record(
        {
            "chosen_by_auto": {
                layout: {
                    str(length): choose_attention("auto", length, rows=layout, **rule) for length in sizes.timed_lengths
                }
                for layout in layouts
            }
        }
    )
    num_tokens = 8192 if device.platform == "gpu" else 256
    width = sizes.num_heads * sizes.head_dim
    for dtype in ("bfloat16", "float32"):
        ceiling = matmul_ceiling(dtype, num_tokens=num_tokens, width=width, num_features=4 * width)
        record({"matmul": dtype, "flops_per_second": ceiling})
    record({"copy_bytes_per_second": _copy_rate(1 << (30 if device.platform == "gpu" else 22))})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = "--query-gpu=name,memory.total,driver_version,compute_cap,clocks.max.sm"
    result = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or result.stderr.strip()


def _copy_rate(num_bytes: int) -> float:
    """Bytes read and written a second by a pass over a large array."""
    x = jnp.ones(num_bytes // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    add(x).block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        add(x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * num_bytes / statistics.median(seconds)
