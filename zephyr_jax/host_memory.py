"""Keeps freed memory in the process, so that a CPU step does not pay for the same pages anew; and the most in use.

XLA's CPU backend takes a step's buffers from malloc and gives them back after it. glibc takes and returns such large
pieces by mmap and munmap, and the kernel clears each page again at its first touch: with half a gigabyte of gradients
a sixth of a training step's time (benchmarks/LOG.md). No GPU or TPU needs this: their runtimes keep memory themselves.
"""

from __future__ import annotations

import ctypes
import platform
import resource
import sys
from pathlib import Path

import jax

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_KEEPING = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_ARENA_MAX: 1}
# For other devices: glibc's own values, and where its thresholds end when they adapt. Once set, they no longer do.
_GIVING_BACK = {_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20, _M_ARENA_MAX: 0}


def keep_freed_memory() -> bool:
    """Where steps run on the CPU, tells glibc to serve large pieces from one heap that does not shrink.

    Must be called before anything else asks JAX for its devices: the threads that XLA starts then stay with the heaps
    that they get, and a thread with a heap of its own maps each large piece anew whatever it is told later.

    Returns:
      Whether it was told; False on other devices and with other C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    is_told = min(mallopt(*setting) for setting in _KEEPING.items()) == 1  # all of them are told
    if jax.default_backend() == "cpu":
        return is_told
    for setting in _GIVING_BACK.items():
        mallopt(*setting)
    return False


def peak_memory() -> tuple[int, str]:
    """The most memory in use at any time since the process began, in bytes, and what that is.

    Where the device keeps count, that of its allocator (the most of this process's devices); else the resident memory
    of the process.
    """
    counts = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    if counts:
        return max(counts), "of the device's allocator"
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count in the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024, "resident memory of the process"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "resident memory of the process"
