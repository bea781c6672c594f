"""Seconds of each optimizer step of a transformers `Trainer`, and what all of TRL's sides share."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        _wait_for_gpu()
        self._began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        _wait_for_gpu()
        self.seconds.append(time.perf_counter() - self._began)


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def dpo_trainer(
    folder: str, model: str, rows: Sequence[dict[str, Any]], *, batch_size: int, shared: dict[str, Any], **more: Any
) -> trl.DPOTrainer:
    """TRL's trainer on these rows, which has computed their reference log-probs when this returns.

    Args:
      folder: what it writes goes there.
      model: a Hugging Face folder, float32, with a chat template.
      rows: `chosen` and `rejected` dialogues, alike but for the last message.
      batch_size: pairs.
      shared: of `trainer_arguments`.
      **more: of trl.DPOTrainer.
    """
    columns = [{"prompt": r["chosen"][:-1], "chosen": r["chosen"][-1:], "rejected": r["rejected"][-1:]} for r in rows]
    precompute = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": batch_size}
    return trl.DPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=trl.DPOConfig(output_dir=folder, beta=0.1, max_length=1024, **precompute, **shared),
        train_dataset=datasets.Dataset.from_list(columns),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
        **more,
    )


def first_rows(data: Path, limit: int) -> list[dict[str, Any]]:
    """The first rows of a file of JSON lines."""
    with data.open(encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(limit), lines, strict=False)]


def losses(trainer: Any) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
