"""What this machine's matmuls reach in JAX: the fastest of the forms that a train step could use, as one JSON line.

A product of 1024 tokens with the widest weight of SmolLM2-135M's layers, 576 x 1536; the median of 20.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

TOKENS, WIDTH, FEATURES = 1024, 576, 1536


def main() -> None:
    best = {}
    for dtype in ("float32", "bfloat16"):
        x = jax.random.normal(jax.random.key(0), (1, TOKENS, WIDTH)).astype(dtype)
        w = jax.random.normal(jax.random.key(1), (WIDTH, FEATURES)).astype(dtype)
        g = jax.random.normal(jax.random.key(2), (1, TOKENS, FEATURES)).astype(dtype)
        forms = [("btd,df->btf", x, w), ("btf,df->btd", g, w), ("btd,btf->df", x, g)]
        flops = 2 * TOKENS * WIDTH * FEATURES
        best[dtype] = max(flops / _median_seconds(*form, result) for form in forms for result in (dtype, "float32"))
    print(json.dumps(best))


def _median_seconds(subscripts: str, left: jax.Array, right: jax.Array, result: str) -> float:
    run: Callable = jax.jit(lambda a, b: jnp.einsum(subscripts, a, b, preferred_element_type=result))
    run(left, right).block_until_ready()
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        run(left, right).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


if __name__ == "__main__":
    main()
