"""TRL's DPOTrainer on the benchmark's pairs: one JSON line with the seconds and the loss of every step.

Run by ../dpo_vs_peers.py with the Python of an environment that has `pip install -e '.[parity]'`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.peers import step_clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, float32, with a chat template")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--limit", required=True, type=int)
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--epochs", required=True, type=int)
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    parser.add_argument("--gradient-checkpointing", required=True, choices=["True", "False"], help="False is faster")
    arguments = parser.parse_args()
    rows = step_clock.first_rows(arguments.data, arguments.limit)
    clock = step_clock.StepClock()
    shared = step_clock.trainer_arguments(
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        dtype=arguments.dtype,
        gradient_checkpointing=arguments.gradient_checkpointing == "True",
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = step_clock.dpo_trainer(
            folder, arguments.model, rows, batch_size=arguments.batch_size, shared=shared, callbacks=[clock]
        )
        trainer.train()
    result = {"seconds": clock.seconds, "losses": step_clock.losses(trainer), "versions": step_clock.versions()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
