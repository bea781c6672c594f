"""A run over rows of text on a very small model and one device, ready for a stage. Not a test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from zephyr_jax.recipe import Recipe
from zephyr_jax.sharding import make_mesh
from zephyr_jax.stages.start import Run, open_run

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 259,
    "sliding_window": 32,
}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def pair_rows(num_rows: int) -> list[dict[str, Any]]:
    """Pairs whose chosen answer spells the prompt's number."""
    rows = []
    for i in range(num_rows):
        prompt = [{"role": "user", "content": f"What is {i + 1}?"}]
        right, wrong = NUMBERS[i % 12], NUMBERS[(i + 5) % 12]
        rows.append(
            {
                "prompt": prompt[0]["content"],
                "prompt_id": f"p{i}",
                "chosen": [*prompt, {"role": "assistant", "content": f"It is {right}."}],
                "rejected": [*prompt, {"role": "assistant", "content": f"It is {wrong}, I think."}],
                "score_chosen": 8.0,
                "score_rejected": None,
            }
        )
    return rows


def dialogue_rows(num_rows: int) -> list[dict[str, Any]]:
    """The same questions and right answers as dialogues, every third with a second turn."""
    rows = []
    for i, pair in enumerate(pair_rows(num_rows)):
        more = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}] if i % 3 == 0 else []
        rows.append({"prompt": pair["prompt"], "prompt_id": pair["prompt_id"], "messages": [*pair["chosen"], *more]})
    return rows


def write_rows(path: Path, rows: Iterable[Any]) -> str:
    """Writes rows as JSON lines; a text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def make_recipe(folder: Path, *, ddpo: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """A dDPO recipe over the pairs in folder/pairs.jsonl, from random weights, in float32."""
    options = {
        "data": {"train": [str(folder / "pairs.jsonl")]},
        "max_length": 64,
        "max_prompt_length": 40,
        "row_length": 128,
        "batch_size": 4,
        "learning_rate": 1e-3,
    }
    return Recipe.model_validate(
        {
            "name": "small",
            "output_dir": str(folder / "runs"),
            "stages": ["ddpo"],
            "model": {"weights": None, "shape": SHAPE, "compute_dtype": "float32", "remat": "none"},
            "tokenizer": "builtin:bytes",
            "samples": {"num_prompts": 0},
            "ddpo": options | (ddpo or {}),
        }
        | changes
    )


def on_one_device(recipe: Recipe) -> Run:
    """The run on the first device alone, which compiles several times faster than on sixteen."""
    mesh = make_mesh(recipe.mesh, devices=jax.devices()[:1])
    return dataclasses.replace(open_run(recipe), mesh=mesh)
