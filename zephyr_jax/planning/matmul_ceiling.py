"""What one device's matmuls reach in JAX: the fastest of the forms that a train step has.

A ceiling for machines whose peak nobody states (CPUs), and a check of the stated one elsewhere.

Dimensions: B 1, T tokens, D width, F features.
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp

NUM_RUNS = 20
LONGEST_SECONDS = 2.0  # of the runs of one form: large matmuls need fewer


def matmul_ceiling(dtype: str, *, num_tokens: int, width: int, num_features: int) -> float:
    """FLOP/s of the best form: x W, g W^T or x^T g, its result in `dtype` or in float32; medians of up to 20 runs.

    Args:
      dtype: float32 or bfloat16, of the factors.
      num_tokens: T.
      width: D.
      num_features: F.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    x_BTD = jax.random.normal(keys[0], (1, num_tokens, width)).astype(dtype)
    w_DF = jax.random.normal(keys[1], (width, num_features)).astype(dtype)
    g_BTF = jax.random.normal(keys[2], (1, num_tokens, num_features)).astype(dtype)
    forms = [("BTD,DF->BTF", x_BTD, w_DF), ("BTF,DF->BTD", g_BTF, w_DF), ("BTD,BTF->DF", x_BTD, g_BTF)]
    seconds = min(_median_seconds(*form, result) for form in forms for result in dict.fromkeys((dtype, "float32")))
    return 2 * num_tokens * width * num_features / seconds


def _median_seconds(subscripts: str, left: jax.Array, right: jax.Array, result: str) -> float:
    run = jax.jit(lambda a, b: jnp.einsum(subscripts, a, b, preferred_element_type=result))
    run(left, right).block_until_ready()
    seconds: list[float] = []
    while len(seconds) < NUM_RUNS and (len(seconds) < 3 or sum(seconds) < LONGEST_SECONDS):
        began = time.perf_counter()
        run(left, right).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
