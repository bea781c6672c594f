"""TRL's precomputation of reference log-probs over the benchmark's pairs: seconds, log-probs; one JSON line.

Run by ../reference_vs_trl.py with the Python of an environment that has `pip install -e '.[parity]'`. TRL computes them
when its DPOTrainer is made: that one warms up, and its own method is timed on the same pairs again, a copy in other
memory so that its cache file is not found.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import datasets

from benchmarks.peers import step_clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, float32, with a chat template")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--limit", required=True, type=int)
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    rows = step_clock.first_rows(arguments.data, arguments.limit)
    shared = step_clock.trainer_arguments(
        batch_size=arguments.batch_size, epochs=1, dtype=arguments.dtype, gradient_checkpointing=False
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = step_clock.dpo_trainer(folder, arguments.model, rows, batch_size=arguments.batch_size, shared=shared)
        tokenised = trainer.train_dataset.remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
        again = datasets.Dataset.from_list(tokenised.to_list())
        began = time.perf_counter()
        scored = trainer._precompute_ref_logps(again, "timed", arguments.batch_size)
        seconds = time.perf_counter() - began
    log_probs = [row[f"ref_{side}_logps"] for row in scored for side in ("chosen", "rejected")]
    print(json.dumps({"seconds": seconds, "log_probs": log_probs, "versions": step_clock.versions()}))


if __name__ == "__main__":
    main()
