"""Measures steps of a recipe's stages on the devices at hand: compile time, step time, tokens/s, MFU, memory.

python -m zephyr_jax.bench --config configs/tiny.yaml
python -m zephyr_jax.bench --config configs/zephyr_7b/paper.yaml 'stages=[ddpo]' --profile /tmp/trace --json

Runs the programs that `train` runs, on the recipe's own rows, and writes nothing to the run's folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.cli import add_recipe_arguments, run_command
from zephyr_jax.peers import Peers
from zephyr_jax.recipe import Recipe, load_recipe, recipe_to_yaml
from zephyr_jax.records import InputError


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.bench",
        description="Measures steps of a recipe's stages, and of the reference pass, on the devices at hand.",
        epilog="example: python -m zephyr_jax.bench --config configs/tiny.yaml 'stages=[ddpo]' --steps 10",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="measured steps of each stage (%(default)s)")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="also trace steps, for xprof or TensorBoard")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; the table goes to stderr")
    return parser


def without_evaluation(recipe: Recipe) -> Recipe:
    """The recipe without its evaluation rows, which would be read and tokenised for nothing."""
    blocks = {stage: getattr(recipe, stage) for stage in ("dsft", "ddpo") if getattr(recipe, stage) is not None}
    data = {stage: block.data.model_copy(update={"eval": ()}) for stage, block in blocks.items()}
    return recipe.model_copy(
        update={stage: block.model_copy(update={"data": data[stage]}) for stage, block in blocks.items()}
    )


def _run(arguments: argparse.Namespace) -> None:
    if arguments.steps < 1:
        raise InputError(f"--steps: got {arguments.steps}, wanted 1 or more")
    recipe = load_recipe(arguments.config, arguments.overrides)
    from zephyr_jax.processes import joined  # imports JAX: after the recipe, whose mistakes show at once

    with joined() as peers:
        peers.check_same("the recipe", recipe_to_yaml(recipe))
        report = _measure(recipe, peers, arguments)
        if not peers.is_first:
            return
        from zephyr_jax.stages.timing_report import report_json, report_table

        if arguments.json:
            print(report_json(report))
        print(report_table(report), file=sys.stderr if arguments.json else sys.stdout)


def _measure(recipe: Recipe, peers: Peers, arguments: argparse.Namespace) -> dict[str, Any]:
    import jax

    from zephyr_jax.stages.start import check_run, open_run
    from zephyr_jax.stages.timing import time_stages
    from zephyr_jax.stages.timing_report import measured_ceiling, timing_report

    run = open_run(without_evaluation(recipe), peers=peers)
    check_run(run)
    with jax.set_mesh(run.mesh):
        before = measured_ceiling(run)
        timings = list(time_stages(run, num_steps=arguments.steps, profile=arguments.profile))
        # Whatever else the machine had to do for a while must not lower the ceiling.
        return timing_report(run, timings, config=arguments.config, ceiling=max(before, measured_ceiling(run)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    status = run_command(build_parser(), _run, argv, in_several_processes=True)
    if "jax" in sys.modules:
        from zephyr_jax.processes import leave

        return leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
