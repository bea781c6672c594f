"""tunix's DPOTrainer on the benchmark's pairs: one JSON line with the seconds and the loss of every step.

Run by ../dpo_vs_peers.py with the Python of an environment of its own (Python 3.12 brings jax 0.12):

    python3.12 -m venv tunix-venv
    tunix-venv/bin/python -m pip install google-tunix==0.1.7

What is tunix's own way: the reference is computed in every step, prompts and answers are padded to one length each (the
smallest that cuts none of these pairs), weights are in the compute dtype (its llama3 has no other, so in bfloat16 there
are no float32 masters). What is set right here: its llama3 reads no RoPE theta and has 1 000 000 built in.

All steps have one shape, so two steps warm up and not a pass (tunix compiles its step in both): steps 1 and 2 of the
run, then the next steps of the same run until every batch has been timed once.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import itertools
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama3
from tunix.models.llama3 import params as llama3_params
from tunix.sft import hooks
from tunix.sft.dpo import dpo_trainer

WARM_UP_STEPS = 2
APPLY_ROPE = llama3.apply_rope


class Losses(hooks.TrainingHooks):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_step_end(self, train_ctx, train_step, train_loss):
        self.values.append(float(train_loss))

    def on_train_start(self, train_ctx):
        pass

    def on_train_end(self, train_ctx):
        pass

    def on_train_step_start(self, train_ctx):
        pass

    def on_eval_step_start(self, train_ctx):
        pass

    def on_eval_step_end(self, train_ctx, eval_loss):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", required=True, type=Path, help="the folder that ours/write_inputs.py wrote")
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--epochs", required=True, type=int, help="of the run whose schedule is followed")
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in (arguments.inputs / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    batches = padded_batches(lines, arguments.batch_size)
    num_steps = len(batches) * arguments.epochs
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(functools.partial(learning_rate, num_steps=num_steps), weight_decay=0.0),
    )
    model, reference = (load(arguments.inputs / "model", arguments.dtype) for _ in range(2))
    config = dpo_trainer.DPOTrainingConfig(beta=0.1, eval_every_n_steps=10**9, max_steps=len(batches) + WARM_UP_STEPS)
    trainer = dpo_trainer.DPOTrainer(model=model, ref_model=reference, optimizer=optimizer, training_config=config)
    losses, times = Losses(), []
    trainer.with_training_hooks(losses)

    def timed_batches() -> Iterator[dpo_trainer.TrainingInput]:
        for batch in itertools.islice(itertools.cycle(batches), len(batches) + WARM_UP_STEPS):
            jax.block_until_ready(nnx.state(model, nnx.Param))
            times.append(time.perf_counter())
            yield batch

    trainer.train(timed_batches())
    jax.block_until_ready(nnx.state(model, nnx.Param))
    times.append(time.perf_counter())
    versions = {name: importlib.metadata.version(name) for name in ("google-tunix", "jax")}
    result = {"seconds": np.diff(times).tolist(), "losses": losses.values}
    print(json.dumps(result | {"versions": versions | {"python": platform.python_version()}}))


def load(folder: Path, dtype: str) -> nnx.Module:
    """The folder's model by tunix's own loader, rotated by the folder's theta."""
    read: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    theta = read["rope_theta"] if "rope_theta" in read else read["rope_parameters"]["rope_theta"]
    llama3.apply_rope = functools.partial(APPLY_ROPE, rope_theta=theta)
    config = llama3.ModelConfig(
        num_layers=read["num_hidden_layers"],
        vocab_size=read["vocab_size"],
        embed_dim=read["hidden_size"],
        hidden_dim=read["intermediate_size"],
        num_heads=read["num_attention_heads"],
        head_dim=read["hidden_size"] // read["num_attention_heads"],
        num_kv_heads=read["num_key_value_heads"],
        rope_theta=theta,
        norm_eps=read["rms_norm_eps"],
        weight_tying=read["tie_word_embeddings"],
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return llama3_params.create_model_from_safe_tensors(str(folder), config, mesh, dtype=jax.numpy.dtype(dtype))


def padded_batches(lines: list[dict[str, list[int]]], batch_size: int) -> list[dpo_trainer.TrainingInput]:
    """The pairs in file order: prompts padded on the left, answers on the right, each to the longest of all pairs."""
    prompt_length = max(len(line["prompt"]) for line in lines)
    answer_length = max(len(line[side]) for line in lines for side in ("chosen", "rejected"))
    batches = []
    for start in range(0, len(lines), batch_size):
        arrays = {}
        for part, length in (("prompt", prompt_length), ("chosen", answer_length), ("rejected", answer_length)):
            ids, mask = np.zeros((2, batch_size, length), np.int32)
            for row, line in enumerate(lines[start : start + batch_size]):
                width = len(line[part])
                place = slice(length - width, None) if part == "prompt" else slice(width)
                ids[row, place], mask[row, place] = line[part], 1
            arrays |= {f"{part}_ids": ids, f"{part}_mask": mask}
        batches.append(dpo_trainer.TrainingInput(**arrays))
    return batches


def learning_rate(step: jax.Array, *, num_steps: int) -> jax.Array:
    """1e-6 after a warm-up of ceil(a tenth) of the steps from 0, then down to 0 at the end; steps from 0."""
    warmup = -(-num_steps // 10)
    return 1e-6 * jax.numpy.where(step < warmup, step / warmup, (num_steps - step) / (num_steps - warmup))


if __name__ == "__main__":
    main()
