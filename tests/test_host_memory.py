"""Freed memory stays with the process: the buffers of XLA's threads come from the heap that is kept."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from zephyr_jax.host_memory import peak_memory

PROGRAM = """
import ctypes
import jax, jax.numpy as jnp
from zephyr_jax.host_memory import keep_freed_memory

class Usage(ctypes.Structure):  # struct mallinfo2 of <malloc.h>
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

if not keep_freed_memory():
    raise SystemExit("not glibc")
x = jnp.zeros((1 << 22,))
kept = [jax.jit(lambda x: x + 1)(x).block_until_ready() for _ in range(8)]  # 16 MiB each
usage = ctypes.CDLL(None).mallinfo2
usage.restype = Usage
print(usage().hblkhd >> 20, usage().arena >> 20)
"""


def test_what_xlas_threads_ask_for_comes_from_the_heap_that_is_kept():
    """Eight results of 16 MiB, made of an input, and so by XLA's threads and not by this one.

    Told too late, each thread has a heap of its own that cannot hold so much, and every buffer is mapped by itself.
    """
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    if "not glibc" in result.stderr:
        pytest.skip("the C library is not glibc")
    mapped, in_heap = map(int, result.stdout.split())  # MiB
    assert mapped < 16 and in_heap >= 8 * 16, result.stdout


def test_peak_memory_is_the_process_where_the_device_does_not_count():
    before, what = peak_memory()
    held = np.ones(1 << 25)  # 256 MB, more than this process is likely to have given back
    after, _ = peak_memory()
    assert what == "resident memory of the process" and after >= before > 1e7 and held.nbytes < after
