"""Runs of `zephyr_jax.train` on the small models and rows; compared with TRL live here and with tests/golden.

Not a test; needs no torch.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax

from tests.parity import runs, small_data
from tests.parity.small_models import SmallModel, write_folder
from zephyr_jax.recipe import Recipe, recipe_to_yaml
from zephyr_jax.sharding import make_mesh
from zephyr_jax.stages.ddpo import load_ddpo_data, run_ddpo
from zephyr_jax.stages.dsft import load_dsft_data, run_dsft
from zephyr_jax.stages.start import open_run
from zephyr_jax.train import main as train_main

# Longer than every row, a multiple of nothing in particular; far below the defaults, which would be mostly padding.
LENGTHS = {
    "dsft": {"max_length": 256, "packing": False},
    "ddpo": {"max_length": 256, "max_prompt_length": 192, "row_length": 512},
}


def train(
    model: SmallModel,
    rows: list[small_data.Row],
    run: runs.TrainingRun,
    *,
    folder: pathlib.Path,
    all_devices: bool = False,
    **overrides: Any,
) -> list[dict[str, float]]:
    """Trains one stage from the small model's weights, in float32 and in file order.

    Args:
      model: where policy and reference start.
      rows: preference pairs for a DpoRun, dialogues for an SftRun.
      run: the hyper-parameters.
      folder: for the model, the data and the run; runs that share it share their reference log-probs.
      all_devices: run the command `train` itself, with remat, sharded over every device; else the stage alone on one
        device without remat, which compiles faster.
      **overrides: keys of the stage's block, `layout` for one.

    Returns:
      The steps' lines of metrics.jsonl.
    """
    remat = "full" if all_devices else "none"
    recipe = make_recipe(model, rows, run, folder=folder, remat=remat, **overrides)
    if all_devices:
        config = folder / f"{recipe.name}.yaml"
        config.write_text(recipe_to_yaml(recipe), encoding="utf-8")
        status = train_main(["--config", str(config)])
        assert status == 0, f"train ended with {status}"
    else:
        _train_on_one_device(recipe)
    (stage,) = recipe.stages
    metrics = pathlib.Path(recipe.output_dir) / recipe.name / stage / "metrics.jsonl"
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "loss" in line]


def make_recipe(
    model: SmallModel,
    rows: list[small_data.Row],
    run: runs.TrainingRun,
    *,
    folder: pathlib.Path,
    remat: str,
    **overrides: Any,
) -> Recipe:
    """The recipe of a run; writes the model's folder and the rows."""
    stage = "ddpo" if isinstance(run, runs.DpoRun) else "dsft"
    folder.mkdir(parents=True, exist_ok=True)
    data = small_data.write_rows(rows, folder / f"{stage}.jsonl")
    return Recipe.model_validate(
        {
            "name": "-".join([stage, run.name, *map(str, overrides.values())]),
            "output_dir": str(folder / "runs"),
            "stages": (stage,),
            "model": {
                "weights": str(write_folder(model, folder / model.name)),
                "compute_dtype": "float32",
                "remat": remat,
            },
            "tokenizer": "builtin:bytes",
            "bos": "never",
            "samples": {"num_prompts": 0},
            stage: {"data": {"train": (str(data),)}} | LENGTHS[stage] | run.recipe_keys() | overrides,
        }
    )


def _train_on_one_device(recipe: Recipe) -> None:
    run = dataclasses.replace(open_run(recipe), mesh=make_mesh(recipe.mesh, devices=jax.devices()[:1]))
    with jax.set_mesh(run.mesh):
        if recipe.ddpo is not None:
            run_ddpo(run, load_ddpo_data(run), on_evaluation=lambda *_: None)
        else:
            run_dsft(run, load_dsft_data(run), on_evaluation=lambda *_: None)
