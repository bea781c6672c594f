"""From a program's figures to an answer: does it fit the device's memory, and how long must a step take at least.

Pure arithmetic. Bounds are bounds: no figure here says how fast a step runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from zephyr_jax.planning.chips import Chip
from zephyr_jax.planning.collectives import Traffic
from zephyr_jax.records import InputError

DEFAULT_MEMORY_FRACTION = 0.75  # of the card, what JAX's allocator takes where XLA_PYTHON_CLIENT_MEM_FRACTION is unset
CONTEXT_BYTES = 600 << 20  # CUDA context and loaded kernels: beside the allocator's part
NCCL_BYTES = 1 << 30  # NCCL's buffers of a few communicators: beside it too
CUDNN_WORKSPACE_BYTES = 512 << 20  # the compiler's placeholder for it is 0; within the allocator's part
FRAGMENTATION_SHARE = 0.05  # of the peak, lost between blocks of unlike sizes; within it too


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a program fits a device; sizes in bytes.

    Attributes:
      text: fits, tight (it fits, but not with the reserve) or does not fit.
      available: what the allocator may take.
      reserve: what should stay free of that, by what for.
      margin: available minus peak; negative: so much is missing.
    """

    text: str
    available: int
    reserve: dict[str, int]
    margin: int


def memory_verdict(peak: int, *, chip: Chip, attention: str, memory_fraction: float) -> Verdict:
    """Judges a program's peak.

    Args:
      peak: the compiler's peak, bytes of a device.
      chip: the device.
      attention: the implementation; cuDNN's needs a workspace that the compiler does not plan.
      memory_fraction: share of the card that JAX's allocator takes.
    """
    beside = CONTEXT_BYTES + NCCL_BYTES
    available = min(int(memory_fraction * chip.memory_bytes), chip.memory_bytes - beside)
    reserve = {"fragmentation": int(FRAGMENTATION_SHARE * peak)}
    if attention == "cudnn":
        reserve["cuDNN workspace"] = CUDNN_WORKSPACE_BYTES
    margin = available - peak
    text = "does not fit" if margin < 0 else "tight" if margin < sum(reserve.values()) else "fits"
    return Verdict(text, available, reserve, margin)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Lower bounds of a step's time in seconds, and what follows from them; None where nothing is known.

    Attributes:
      compute_seconds: a device's matmul FLOPs at the data sheet's peak.
      network_seconds: what a device sends, at the bandwidth given.
      step_seconds: the larger of the two, as if they overlapped wholly.
      tokens_per_second: positions of all devices, padding included, per second of that: an upper bound.
      mfu: model FLOPs (without recomputation) over what the peak would do in that time: an upper bound.
    """

    compute_seconds: float | None
    network_seconds: float | None
    step_seconds: float | None
    tokens_per_second: float | None
    mfu: float | None


def step_bounds(
    *,
    flops_per_device: float,
    model_flops_per_device: float,
    num_positions: int,
    peak_flops: float | None,
    traffic: Traffic | None,
    bandwidth: float | None,
    link_bandwidth: float | None,
) -> Bounds:
    """The bounds of a step.

    A ring over several hosts goes at `bandwidth`, and rings that leave a host side by side share it. Rings within a
    host go at it too where no ring leaves its host, else at the data sheet's NVLink.

    Args:
      flops_per_device: matmul FLOPs of a device and step.
      model_flops_per_device: the same without recomputation.
      num_positions: positions of a step over all devices.
      peak_flops: FLOP/s of a device; None: unknown.
      traffic: what the program sends; None: unknown.
      bandwidth: bytes per second of a ring of all devices; None: not given, and nothing is said that hangs on it.
      link_bandwidth: bytes per second of NVLink in each direction; None: there is none.
    """
    compute = None if peak_flops is None else flops_per_device / peak_flops
    network = None
    if traffic is not None and (bandwidth is not None or not traffic.collectives):
        inside_bandwidth = bandwidth or 1.0
        if traffic.crossing_bytes:
            inside_bandwidth = max(inside_bandwidth, link_bandwidth or 0.0)
        network = sum(
            found.wire_bytes * found.num_rings / (bandwidth or 1.0)
            if found.crosses_hosts
            else found.wire_bytes / inside_bandwidth
            for found in traffic.collectives
        )
    if compute is None or network is None:
        return Bounds(compute, network, None, None, None)
    step = max(compute, network)
    assert peak_flops is not None
    return Bounds(compute, network, step, num_positions / step, model_flops_per_device / (step * peak_flops))


def memory_fraction(environment: Mapping[str, str]) -> float:
    """The share of a card that JAX's allocator takes, by the environment that the run is planned for.

    Raises:
      InputError: it is no share.
    """
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    text = environment.get(name, str(DEFAULT_MEMORY_FRACTION))
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise InputError(f"{name}: got {text!r}, wanted a number above 0 and at most 1, or nothing")
    return fraction
