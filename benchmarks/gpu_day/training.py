"""The day's training steps: SFT, the reference pass and dDPO as `bench` measures them, beside what `plan` predicted.

And the whole model once in float32 on the host, to hold the device's log-probs against.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.gpu_day.attention_numbers import Record
from benchmarks.gpu_day.rows import write_rows
from benchmarks.gpu_day.sizes import Sizes
from zephyr_jax.model.mistral import ModelSettings, abstract_params, init_params
from zephyr_jax.recipe import ModelShape, Recipe, load_recipe
from zephyr_jax.stages.ddpo import ddpo_batches, load_ddpo_data
from zephyr_jax.stages.start import Run, check_run, open_run
from zephyr_jax.stages.timing import time_stages
from zephyr_jax.stages.timing_report import measured_ceiling, timing_report
from zephyr_jax.training.objectives import score_pairs

HERE = Path(__file__).resolve().parent
PLANNED = HERE / "plan_h100.json"
# The host's model is small: as many layers and features as numpy-like speed allows, heads of the real size.
HOST_SHAPE = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
HOST_SHAPE |= {"head_dim": 128, "intermediate_size": 1024, "vocab_size": 1024, "sliding_window": 256}
# Largest difference of an answer's log-prob, relative to it: some 250 tokens a sum.
TOLERANCE = {"bfloat16": 1e-2, "float32": 1e-3}


def day_recipe(sizes: Sizes, folder: Path, *more: str) -> Recipe:
    """recipe.yaml at these sizes, its rows written to `folder`."""
    write_rows(folder, num_dialogues=sizes.num_dialogues, num_pairs=sizes.num_pairs, scale=sizes.text_scale)
    os.environ["GPU_DAY_ROWS"] = str(folder)
    return load_recipe(HERE / "recipe.yaml", [*sizes.overrides, *more])


def measure_stage(sizes: Sizes, record: Record, *, stage: str) -> None:
    """Steps of a stage (of dDPO the reference pass too); the figures of bench, and their ratio to the plan."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = day_recipe(sizes, Path(folder), f"stages=[{stage}]")
        run = open_run(recipe)
        check_run(run)
        with jax.set_mesh(run.mesh):
            ceiling = measured_ceiling(run)
            for timing in time_stages(run, num_steps=sizes.num_steps):
                report = timing_report(run, [timing], config="benchmarks/gpu_day/recipe.yaml", ceiling=ceiling)
                figures = report["stages"][timing.name]
                shared = {name: value for name, value in report.items() if name not in ("stages", "config")}
                record({"stage": timing.name} | figures | shared | beside_plan(timing.name, figures, planned_stages()))


def planned_stages() -> dict[str, Any]:
    """What `plan` said of recipe.yaml for one H100 (predict.py), by stage; {} where there is no such file."""
    if not PLANNED.exists():
        return {}
    planned: dict[str, Any] = json.loads(PLANNED.read_text(encoding="utf-8"))["stages"]
    return planned


def beside_plan(stage: str, figures: Mapping[str, Any], planned: Mapping[str, Any]) -> dict[str, Any]:
    """Measured over planned: peak memory, and step time over its lower bound. {} where nothing was planned."""
    if stage not in planned:
        return {}
    plan = planned[stage]
    found: dict[str, Any] = {"planned": plan}
    peak, seconds = (
        plan["bytes_per_device"]["peak"],
        plan["bounds"]["step_seconds"] or plan["bounds"]["compute_seconds"],
    )
    if peak:
        found["peak_over_plan"] = figures["peak_bytes"] / peak
    if seconds:
        found["step_over_bound"] = figures["step_seconds"]["median"] / seconds
    return found


def check_model(sizes: Sizes, record: Record) -> None:
    """Log-probs of packed pairs by a small model: the device in both dtypes against float32 on the host."""
    with tempfile.TemporaryDirectory() as folder:
        shape = {} if sizes.overrides else HOST_SHAPE
        recipe = day_recipe(sizes, Path(folder), *(f"model.shape.{name}={size}" for name, size in shape.items()))
        run = open_run(recipe)
        pairs = load_ddpo_data(run, keep=False).train
        batch = {name: array[0] for name, array in ddpo_batches(run, pairs).batch(1).items() if np.ndim(array) > 1}
    assert recipe.model.shape is not None
    record_model(recipe.model.shape, batch, run, record)


def record_model(shape: ModelShape, batch: Mapping[str, np.ndarray], run: Run, record: Record) -> None:
    """Records the largest differences of both answers' log-probs from the host's."""
    host = jax.devices("cpu")[0]
    with jax.default_device(host):
        params = jax.device_get(jax.jit(init_params, static_argnums=1)(jax.random.key(1), shape))

    def log_probs(device: jax.Device, settings: ModelSettings) -> np.ndarray:
        def score(params, batch):
            return score_pairs(params, batch, shape=shape, settings=settings)[0]

        with jax.default_device(device):
            sums = jax.device_get(jax.jit(score)(*jax.device_put((params, dict(batch)), device)))
        return np.stack([sums.chosen, sums.rejected])[:, batch["pair_weights"] > 0]

    # its own precision for float32 matmuls on the host, whatever the device's default
    with jax.default_matmul_precision("highest"):
        wanted = log_probs(host, ModelSettings(attention="xla", platform="cpu"))
    device = run.mesh.devices.flat[0]
    for dtype in ("bfloat16", "float32"):
        got = log_probs(device, ModelSettings(compute_dtype=dtype, attention="auto"))
        relative = float(np.max(np.abs(got - wanted) / np.abs(wanted)))
        record(
            {
                "model": "log-probs of pairs",
                "dtype": dtype,
                "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(abstract_params(shape))),
                "largest_relative_difference": relative,
                "largest_difference_nats": float(np.max(np.abs(got - wanted))),
                "ok": relative <= TOLERANCE[dtype],
            }
        )
