"""What this machine's matmuls reach in JAX, in both dtypes, as one JSON line.

    python -m benchmarks.matmul_ceiling

Products of 1024 tokens with the widest weight of SmolLM2-135M's layers, 576 x 1536.
"""

from __future__ import annotations

import json

from zephyr_jax.planning.matmul_ceiling import matmul_ceiling


def main() -> None:
    size = {"num_tokens": 1024, "width": 576, "num_features": 1536}
    print(json.dumps({dtype: matmul_ceiling(dtype, **size) for dtype in ("float32", "bfloat16")}))


if __name__ == "__main__":
    main()
