"""Freed memory stays with the process: a large array made again touches no new page."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import jax, jax.numpy as jnp
from zephyr_jax.host_memory import keep_freed_memory

if not keep_freed_memory():
    raise SystemExit("not glibc")
# 64 MiB, 16 384 pages of 4 KiB, made of an array of that size: such work is done by XLA's threads, not by this one.
make = jax.jit(lambda x: x + 1)
x = jnp.zeros((1 << 24,))
for _ in range(8):  # the heap settles
    make(x).block_until_ready().delete()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    make(x).block_until_ready().delete()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_large_buffer_made_again_touches_hardly_any_new_page():
    """Four times 64 MiB: 65 536 faults where each is mapped anew, or 128 where the kernel has huge pages."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    if "not glibc" in result.stderr:
        pytest.skip("the C library is not glibc")
    assert int(result.stdout) < 64, result.stderr
