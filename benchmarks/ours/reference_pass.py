"""Our reference pass, as `train` and `score` run it, over a benchmark's pairs: seconds, log-probs; one JSON line.

Run by the programs beside this folder with our Python. The pairs are given to one pass twice over: the first half
compiles and warms up, the second is timed, batch by batch of the same shapes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import time
from pathlib import Path

import jax
import numpy as np

from zephyr_jax import recipe
from zephyr_jax.data.encoded import EncodedPairs
from zephyr_jax.data.loader import PairBatches
from zephyr_jax.host_memory import keep_freed_memory
from zephyr_jax.model.mistral import PARTITION_RULES, ModelSettings, abstract_params
from zephyr_jax.model.sources import open_weights
from zephyr_jax.sharding import make_mesh, tree_shardings
from zephyr_jax.stages.reference import score_all_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", required=True, type=Path, help="the folder that write_inputs.py wrote")
    parser.add_argument("--batch-size", required=True, type=int, help="divides the number of pairs")
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    pairs = read_twice(arguments.inputs / "pairs.jsonl")
    if len(pairs) // 2 % arguments.batch_size:
        parser.error(f"--batch-size: got {arguments.batch_size}, wanted a divisor of {len(pairs) // 2} pairs")
    keep_freed_memory()  # before the first question for a device, as `train` and `score` do
    mesh = make_mesh(recipe.Mesh())
    weights = open_weights(str(arguments.inputs / "model"))
    batches = PairBatches(pairs, layout="packed", row_length=2048, batch_size=arguments.batch_size, shuffle=False)
    with jax.set_mesh(mesh):
        params = weights.load_params(tree_shardings(abstract_params(weights.shape), PARTITION_RULES, mesh))
        settings = ModelSettings(compute_dtype=arguments.dtype, attention="auto")
        ends, log_probs = [], np.zeros((len(pairs), 2))
        for rows, values in score_all_pairs(params, batches, shape=weights.shape, settings=settings, mesh=mesh):
            log_probs[rows] = np.stack([values["chosen"], values["rejected"]], axis=1)
            ends.append(time.perf_counter())
    half = len(pairs) // 2
    result = {"seconds": ends[-1] - ends[len(ends) // 2 - 1], "log_probs": log_probs[half:].reshape(-1).tolist()}
    versions = {"jax": importlib.metadata.version("jax"), "python": platform.python_version()}
    print(json.dumps(result | {"versions": versions}))


def read_twice(path: Path) -> EncodedPairs:
    """The pairs of a file of ids, and the same again."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ids = [tuple(np.array(line[part], np.int32) for part in ("prompt", "chosen", "rejected")) for line in lines]
    return EncodedPairs.collect((row, *parts) for row, parts in enumerate([*ids, *ids]))


if __name__ == "__main__":
    main()
