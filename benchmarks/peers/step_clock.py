"""Seconds of each optimizer step of a transformers `Trainer`, and the arguments that all of TRL's sides share."""

from __future__ import annotations

import os
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

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


def trainer_arguments(*, batch_size: int, epochs: int, dtype: str, gradient_checkpointing: bool) -> dict[str, Any]:
    """How both of TRL's trainers run: on all cores, rows in file order, AdamW, a loss for every step."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,  # a share of the steps where below 1
        "weight_decay": 0.0,
        "bf16": dtype == "bfloat16",  # autocast over float32 weights, as ours
        "gradient_checkpointing": gradient_checkpointing,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def losses(trainer: Any) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
