"""Keeps freed memory in the process, so that a CPU step does not pay for the same pages anew each time.

XLA's CPU backend takes a step's buffers from malloc and gives them back after it. glibc takes and returns such large
pieces by mmap and munmap, and the kernel clears each page again at its first touch: with half a gigabyte of gradients
a sixth of a training step's time (benchmarks/LOG.md). No GPU or TPU needs this: their runtimes keep memory themselves.
"""

from __future__ import annotations

import ctypes
import platform

import jax

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Where steps run on the CPU, tells glibc to serve large pieces from one heap that does not shrink.

    Returns:
      Whether it was told; False on other devices and with other C libraries.
    """
    if jax.default_backend() != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_ARENA_MAX, 1)])
