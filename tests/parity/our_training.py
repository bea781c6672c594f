"""Runs of `zephyr_jax.train` on the small models and rows; compared with TRL live here and with tests/golden.

Not a test; needs no torch.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from tests.parity import runs, small_data
from tests.parity.small_models import SmallModel, write_folder
from zephyr_jax.train import main as train_main

# Longer than every row, a multiple of nothing in particular; far below the defaults, which would be mostly padding.
LENGTHS = {
    "dsft": {"max_length": 256, "packing": False},
    "ddpo": {"max_length": 256, "max_prompt_length": 192, "row_length": 512},
}


def train(
    model: SmallModel, rows: list[small_data.Row], run: runs.TrainingRun, *, folder: pathlib.Path, **overrides: Any
) -> list[dict[str, float]]:
    """Runs `zephyr_jax.train` on one stage, from the small model's weights, in float32 and in file order.

    Args:
      model: where policy and reference start.
      rows: preference pairs for a DpoRun, dialogues for an SftRun.
      run: the hyper-parameters.
      folder: for the model, the data, the recipe and the run; runs that share it share their reference log-probs.
      **overrides: keys of the stage's block, `layout` for one.

    Returns:
      The steps' lines of metrics.jsonl.
    """
    stage = "ddpo" if isinstance(run, runs.DpoRun) else "dsft"
    folder.mkdir(parents=True, exist_ok=True)
    data = small_data.write_rows(rows, folder / f"{stage}.jsonl")
    name = "-".join([stage, run.name, *map(str, overrides.values())])
    recipe = {
        "name": name,
        "output_dir": str(folder / "runs"),
        "stages": [stage],
        "model": {"weights": str(write_folder(model, folder / model.name)), "compute_dtype": "float32"},
        "tokenizer": "builtin:bytes",
        "bos": "never",
        "samples": {"num_prompts": 0},
        stage: {"data": {"train": [str(data)]}} | LENGTHS[stage] | run.recipe_keys() | overrides,
    }
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(recipe, indent=1), encoding="utf-8")  # JSON is YAML
    status = train_main(["--config", str(config)])
    assert status == 0, f"train ended with {status}"
    lines = (folder / "runs" / name / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]
