"""Writes a checkpoint of a run as a Hugging Face folder, the last one or any that is still kept; or a built-in model.

The end of a stage is written by training itself, to RUN_DIR/STAGE/model; this is for checkpoints before the end, or for
another type of weights. How a folder is written is model/hf_folder.py's matter.

    python -m zephyr_jax.export --run runs/tiny/ddpo --step 100 --out tiny-step-100
    python -m zephyr_jax.export --model builtin:smollm2-135m-instruct --out smollm2
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from zephyr_jax.cli import run_command
from zephyr_jax.records import InputError

_EXAMPLE = "example: python -m zephyr_jax.export --run runs/tiny/ddpo --out tiny-zephyr"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.export",
        description="Writes a checkpoint of a run as a Hugging Face folder that transformers can load.",
        epilog=_EXAMPLE,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, metavar="RUN_DIR/STAGE", help="the run's stage folder")
    source.add_argument(
        "--model", metavar="MODEL", help="in place of a run: builtin:NAME, for servers that want a folder"
    )
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint's step (default: the last)")
    parser.add_argument("--out", required=True, type=Path, metavar="HF_DIR", help="folder to write; new or empty")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="type of the stored weights (%(default)s)"
    )
    return parser


def find_step(stage_folder: Path, step: int | None) -> int:
    """Which checkpoint of a stage to take.

    Args:
      stage_folder: RUN_DIR/STAGE.
      step: the step asked for, or None for the last.

    Returns:
      The step of a checkpoint that is there.

    Raises:
      InputError: when the folder is no stage of a run, or has no such checkpoint; it lists those that it has.
    """
    _check_stage_folder(stage_folder)
    from zephyr_jax.training import checkpoint

    steps = checkpoint.saved_steps(stage_folder / "checkpoints")
    if not steps:
        way_out = (
            f"its final model is there already, as a Hugging Face folder: {stage_folder / 'model'}"
            if (stage_folder / "model" / "config.json").is_file()
            else "go on with `python -m zephyr_jax.train` until it has saved one (save_every sets how often)"
        )
        raise InputError(f"{stage_folder}: this stage has no checkpoints; {way_out}")
    if step is not None and step not in steps:
        raise InputError(
            f"{stage_folder}: no checkpoint of step {step}; there are those of {', '.join(map(str, steps))}"
        )
    return steps[-1] if step is None else step


def _check_stage_folder(stage_folder: Path) -> None:
    if not stage_folder.is_dir():
        raise InputError(f"{stage_folder}: there is no such folder; wanted RUN_DIR/STAGE, as in runs/tiny/ddpo")
    if (stage_folder / "recipe.yaml").is_file():
        stages = sorted(str(stage_folder / name) for name in ("dsft", "ddpo") if (stage_folder / name).is_dir())
        raise InputError(f"{stage_folder}: is a run; pass one of its stages: {', '.join(stages) or 'it has none yet'}")
    if not (stage_folder.parent / "recipe.yaml").is_file():
        raise InputError(f"{stage_folder}: no recipe.yaml in the folder above it; wanted RUN_DIR/STAGE of a run")


def export(stage_folder: Path, out: Path, *, step: int | None = None, dtype: str = "bfloat16") -> int:
    """Writes one checkpoint of a stage as a Hugging Face folder.

    Args:
      stage_folder: RUN_DIR/STAGE, with recipe.yaml in the folder above it.
      out: the folder to write, new or empty.
      step: the checkpoint's step; None takes the last.
      dtype: type of the stored weights, bfloat16 or float32.

    Returns:
      The step that was written.

    Raises:
      InputError: when the run, the checkpoint or the folder to write is not what it should be.
    """
    stage_folder = stage_folder.absolute()  # so that the folder above it has a name
    step = find_step(stage_folder, step)

    import jax

    from zephyr_jax.model import hf_folder, mistral
    from zephyr_jax.recipe import Mesh, load_recipe
    from zephyr_jax.sharding import make_mesh, tree_shardings
    from zephyr_jax.stages import start
    from zephyr_jax.training import checkpoint

    hf_folder.check_target(out)
    recipe = load_recipe(stage_folder.parent / "recipe.yaml")
    # The run's own mesh may want devices that this machine lacks.
    run = start.open_run(recipe.model_copy(update={"mesh": Mesh()}))
    shape = start.base_model(run).shape
    # Over as many devices as share out the model dimension, the only one that the table splits over fsdp.
    num_devices = math.gcd(jax.device_count(), shape.hidden_size)
    mesh = make_mesh(Mesh(), jax.devices()[:num_devices])
    abstract = mistral.abstract_params(shape)
    wanted = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        tree_shardings(abstract, mistral.PARTITION_RULES, mesh),
    )
    params, step = checkpoint.load_params(stage_folder / "checkpoints", step=step, abstract_params=wanted)
    hf_folder.save_model(params, out, shape=shape, dtype=dtype, tokenizer=run.tokenizer)
    return step


def export_model(spec: str, out: Path, *, dtype: str = "bfloat16") -> None:
    """Writes a model as a Hugging Face folder, with its own tokenizer and chat template.

    Args:
      spec: as open_weights takes it, builtin:NAME for one.
      out: the folder to write, new or empty.
      dtype: type of the stored weights, bfloat16 or float32.

    Raises:
      InputError: there is no such model, or the folder cannot be written.
    """
    import jax

    from zephyr_jax.data.chat import load_chat_tokenizer
    from zephyr_jax.model import hf_folder, mistral
    from zephyr_jax.model.sources import open_weights
    from zephyr_jax.recipe import Mesh
    from zephyr_jax.sharding import make_mesh, tree_shardings

    hf_folder.check_target(out)
    weights = open_weights(spec)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    shardings = tree_shardings(mistral.abstract_params(weights.shape), mistral.PARTITION_RULES, mesh)
    tokenizer = load_chat_tokenizer(weights.tokenizer, chat_template="tokenizer")
    hf_folder.save_model(weights.load_params(shardings), out, shape=weights.shape, dtype=dtype, tokenizer=tokenizer)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.model is not None:
        if arguments.step is not None:
            raise InputError("--step: a model has no steps; wanted --run RUN_DIR/STAGE beside it")
        export_model(arguments.model, arguments.out, dtype=arguments.dtype)
        print(f"wrote {arguments.model} to {arguments.out} ({arguments.dtype})", file=sys.stderr)
        return
    step = export(arguments.run, arguments.out, step=arguments.step, dtype=arguments.dtype)
    print(f"wrote step {step} of {arguments.run} to {arguments.out} ({arguments.dtype})", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
