"""Compiles a recipe's real train step for GPUs that are not here, and says what it needs.

python -m zephyr_jax.plan --config configs/zephyr_7b/paper.yaml --stage dsft --target a100-80gb --devices 16 --hosts 2
python -m zephyr_jax.plan --config configs/zephyr_7b/paper.yaml --bandwidth 180 mesh.data=2 --json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from zephyr_jax.cli import add_recipe_arguments, run_command
from zephyr_jax.recipe import STAGE_ORDER, Recipe, load_recipe
from zephyr_jax.records import InputError

TARGETS = ("a100-80gb", "a100-40gb", "h100", "cpu")
DEVICES_PER_HOST = 8


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.plan",
        description="Compiles a recipe's train step for GPUs that are not here: memory, FLOPs, traffic, bounds.",
        epilog="example: python -m zephyr_jax.plan --config configs/zephyr_7b/paper.yaml --stage dsft --devices 16",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--stage", choices=STAGE_ORDER, help="default: the recipe's last stage")
    parser.add_argument("--target", choices=TARGETS, default=TARGETS[0], help="default: %(default)s; cpu: a smoke test")
    parser.add_argument("--devices", type=int, default=16, metavar="N", help="of all hosts; default: %(default)s")
    parser.add_argument("--hosts", type=int, metavar="N", help="default: as many as it takes with 8 devices each")
    parser.add_argument(
        "--bandwidth", type=float, metavar="GBPS", help="GB/s of a ring (nccl-tests' busbw), for the bounds of time"
    )
    parser.add_argument("--rows-per-step", type=int, metavar="N", help="packed pairs: rows, instead of an assumed mean")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(arguments.config, arguments.overrides)
    stage = arguments.stage or recipe.stages[-1]
    check_arguments(arguments, recipe, stage)
    num_hosts = arguments.hosts or default_hosts(arguments.devices)
    from zephyr_jax.planning.environment import prepare_environment, without_driver_lines

    said = prepare_environment(os.environ, target=arguments.target, num_devices=arguments.devices)
    if said:
        print(said, file=sys.stderr)
    with without_driver_lines():  # JAX imports the plugin
        from zephyr_jax.planning.machine import open_machine
        from zephyr_jax.planning.table import plan_text
        from zephyr_jax.stages.planned import plan_stage

        machine = open_machine(arguments.target, num_devices=arguments.devices, num_hosts=num_hosts)
    if machine.missing is not None:
        print(f"nothing is compiled: {machine.missing}", file=sys.stderr)
    plan = plan_stage(
        recipe,
        stage,
        machine,
        bandwidth=arguments.bandwidth and arguments.bandwidth * 1e9,
        rows_per_step=arguments.rows_per_step,
    )
    print(json.dumps(plan.to_json(arguments.config), indent=2) if arguments.json else plan_text(plan))


def check_arguments(arguments: argparse.Namespace, recipe: Recipe, stage: str) -> None:
    """Checks what argparse does not.

    Raises:
      InputError: a number that makes no sense, or a stage that the recipe does not have.
    """
    for name in ("devices", "hosts", "bandwidth", "rows_per_step"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')}: got {value}, wanted more than 0")
    if getattr(recipe, stage) is None:
        raise InputError(
            f"--stage: got {stage}, but the recipe has no block {stage}; it has {', '.join(recipe.stages)}"
        )


def default_hosts(num_devices: int) -> int:
    """The fewest hosts of at most 8 devices that share them evenly."""
    least = -(-num_devices // DEVICES_PER_HOST)
    return next(hosts for hosts in range(least, num_devices + 1) if num_devices % hosts == 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
