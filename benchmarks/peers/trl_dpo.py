"""TRL's DPOTrainer on the benchmark's pairs: one JSON line with the seconds and the loss of every step.

Run by ../dpo_vs_peers.py with the Python of an environment that has `pip install -e '.[parity]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
import transformers
import trl


class StepClock(transformers.TrainerCallback):
    """Seconds from a step's begin, its batch at hand, to its end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self._began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self._began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, float32, with a chat template")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--limit", required=True, type=int)
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--epochs", required=True, type=int)
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with arguments.data.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(arguments.limit), lines, strict=False)]
    columns = [{"prompt": r["chosen"][:-1], "chosen": r["chosen"][-1:], "rejected": r["rejected"][-1:]} for r in rows]
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        config = trl.DPOConfig(
            output_dir=folder,
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=arguments.batch_size,
            beta=0.1,
            max_length=1024,
            learning_rate=1e-6,
            lr_scheduler_type="linear",
            warmup_steps=0.1,  # a share of the steps where below 1
            weight_decay=0.0,
            bf16=arguments.dtype == "bfloat16",  # autocast over float32 weights, as ours
            gradient_checkpointing=False,  # faster here than with it
            train_sampling_strategy="sequential",
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = trl.DPOTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32),
            args=config,
            train_dataset=datasets.Dataset.from_list(columns),
            processing_class=transformers.AutoTokenizer.from_pretrained(arguments.model),
            callbacks=[clock],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    print(json.dumps({"seconds": clock.seconds, "losses": losses, "versions": versions}))


if __name__ == "__main__":
    main()
