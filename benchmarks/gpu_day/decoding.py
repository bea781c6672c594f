"""Decoding speed of the day's model: greedy answers of full length, prefill apart from the tokens after it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.gpu_day.attention_numbers import Record
from benchmarks.gpu_day.sizes import Sizes
from benchmarks.gpu_day.training import day_recipe
from zephyr_jax.generation.responses import generate_responses
from zephyr_jax.model.decoder import prepare_params
from zephyr_jax.stages.start import base_model, model_settings, open_run

NUM_REPEATS = 3


def time_decoding(sizes: Sizes, record: Record) -> None:
    """Records, for every number of rows, seconds of prefill and of the tokens after it; medians of three."""
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(day_recipe(sizes, Path(folder)))
    start, settings = base_model(run), model_settings(run.recipe)
    with jax.set_mesh(run.mesh):
        params = prepare_params(start.load_on(run.mesh), shape=start.shape, dtype=settings.compute_dtype, mesh=run.mesh)
        weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        random = np.random.RandomState(3)
        prompts = [
            random.randint(3, start.shape.vocab_size, sizes.decode_prompt_tokens).astype(np.int32)
            for _ in range(max(sizes.decode_sizes))
        ]
        for num_rows in sizes.decode_sizes:
            seconds = {}
            for part, num_new in (("whole", sizes.decode_new_tokens), ("prefill", 1)):
                times = []
                for _ in range(NUM_REPEATS + 1):  # the first compiles
                    began = time.perf_counter()
                    generate_responses(
                        params,
                        prompts[:num_rows],
                        shape=start.shape,
                        settings=settings,
                        stop_ids=(),
                        max_new_tokens=num_new,
                        batch_size=num_rows,
                        mesh=run.mesh,
                    )
                    times.append(time.perf_counter() - began)
                seconds[part] = float(np.median(times[1:]))
            decoding = max(seconds["whole"] - seconds["prefill"], 1e-9)  # toy sizes drown in noise
            num_tokens = num_rows * (sizes.decode_new_tokens - 1)
            record(
                {
                    "rows": num_rows,
                    "prompt_tokens": sizes.decode_prompt_tokens,
                    "new_tokens": sizes.decode_new_tokens,
                    "prefill_seconds": seconds["prefill"],
                    "tokens_per_second": num_tokens / decoding,
                    # of the weights alone, read once a token: what bounds few rows
                    "weight_bytes_per_second": weight_bytes * (sizes.decode_new_tokens - 1) / decoding,
                }
            )
