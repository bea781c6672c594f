"""TRL's dDPO on the day's work, where torch and trl are there: the same pairs and shape, random weights, bfloat16.

As benchmarks/peers/trl_dpo.py, but the model is made on the device and never written, and pairs are computed a few at a
time with accumulation. Its reference log-probs are computed before its steps, which is not timed.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.attention_numbers import Record
from benchmarks.gpu_day.rows import write_rows
from benchmarks.gpu_day.sizes import Sizes
from zephyr_jax.data.chat import load_chat_tokenizer
from zephyr_jax.model.hf_config import make_config, make_generation_config
from zephyr_jax.recipe import Recipe

NUM_STEPS = 4  # the first is not counted


def time_trl(sizes: Sizes, recipe: Recipe, record: Record) -> None:
    """Records the steps' seconds, without gradient checkpointing and, where that takes too much memory, with it."""
    missing = [name for name in ("torch", "trl") if importlib.util.find_spec(name) is None]
    if missing:
        record({"skipped": f"not installed: {', '.join(missing)}"})
        return
    import torch

    for checkpointing in (False, True):
        try:
            record(_steps(sizes, recipe, gradient_checkpointing=checkpointing))
            return
        except torch.OutOfMemoryError as error:
            record({"gradient_checkpointing": checkpointing, "failed": str(error)[:300]})
            torch.cuda.empty_cache()


def _steps(sizes: Sizes, recipe: Recipe, *, gradient_checkpointing: bool) -> dict[str, Any]:
    import datasets
    import torch
    import transformers
    import trl

    from benchmarks.peers import step_clock

    assert recipe.ddpo is not None and recipe.model.shape is not None
    clock = step_clock.StepClock()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), num_dialogues=0, num_pairs=sizes.num_pairs, scale=sizes.text_scale)
        rows = [json.loads(line) for line in (Path(folder) / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
        tokenizer = load_chat_tokenizer("builtin:bytes", chat_template="zephyr", bos="auto")
        tokenizer.save(folder)
        ids = make_generation_config(bos_id=tokenizer.bos_id, pad_id=tokenizer.pad_id, stop_ids=tokenizer.stop_ids)
        config = make_config(recipe.model.shape, dtype="float32", token_ids=ids)
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
        shared = step_clock.trainer_arguments(
            batch_size=sizes.peer_micro_batch,
            epochs=NUM_STEPS,
            dtype="bfloat16",
            gradient_checkpointing=gradient_checkpointing,
        )
        trainer = trl.DPOTrainer(
            model=model,
            args=trl.DPOConfig(
                output_dir=folder,
                beta=recipe.ddpo.beta,
                max_length=recipe.ddpo.max_length,
                gradient_accumulation_steps=max(1, sizes.num_pairs // sizes.peer_micro_batch),
                precompute_ref_log_probs=True,
                precompute_ref_batch_size=sizes.peer_micro_batch,
                **shared,
            ),
            train_dataset=datasets.Dataset.from_list(
                [{"prompt": r["chosen"][:-1], "chosen": r["chosen"][-1:], "rejected": r["rejected"][-1:]} for r in rows]
            ),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder),
            callbacks=[clock],
        )
        trainer.train()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {
        "trl": "dDPO",
        "pairs_per_step": sizes.num_pairs,
        "micro_batch_pairs": sizes.peer_micro_batch,
        "gradient_checkpointing": gradient_checkpointing,
        "attention": model.config._attn_implementation,
        "step_seconds": clock.seconds[1:],
        "losses": step_clock.losses(trainer),
        "peak_bytes": peak,
        "versions": step_clock.versions(),
    }
