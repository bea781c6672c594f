"""Compiles a recipe's real train step for GPUs that are not here, and says what it needs.

python -m zephyr_jax.plan --config configs/zephyr_7b/paper.yaml --stage dsft --target a100-80gb --devices 16 --hosts 2
python -m zephyr_jax.plan --config configs/zephyr_7b/paper.yaml --bandwidth 180 mesh.data=2 --json
python -m zephyr_jax.plan --config FILE --stage dsft --sweep model.remat=full,attention dsft.micro_batch_size=64,128
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_jax.cli import add_recipe_arguments, run_command
from zephyr_jax.recipe import STAGE_ORDER, Recipe, load_recipe
from zephyr_jax.records import InputError

if TYPE_CHECKING:
    from zephyr_jax.planning.machine import Machine

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
    parser.add_argument(
        "--sweep", nargs="+", metavar="KEY=V1,V2", help="plan every combination, and name the best; a table of them"
    )
    parser.add_argument("--page", metavar="FILE", help="of a sweep: the table and a picture as an HTML page")
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
    bandwidth = arguments.bandwidth and arguments.bandwidth * 1e9
    if arguments.sweep:
        _sweep(arguments, stage, machine, bandwidth)
        return
    plan = plan_stage(recipe, stage, machine, bandwidth=bandwidth, rows_per_step=arguments.rows_per_step)
    print(json.dumps(plan.to_json(arguments.config), indent=2) if arguments.json else plan_text(plan))


def _sweep(arguments: argparse.Namespace, stage: str, machine: Machine, bandwidth: float | None) -> None:
    from zephyr_jax.planning.sweep import parse_sweep, sweep_json, sweep_text
    from zephyr_jax.planning.sweep_page import sweep_page
    from zephyr_jax.reporting.plots import require_matplotlib
    from zephyr_jax.stages.planned import plan_point

    combinations = parse_sweep(arguments.sweep)
    check_points(arguments, combinations)
    if arguments.page:
        require_matplotlib()
    points = []
    for number, overrides in enumerate(combinations, start=1):
        print(f"{number} of {len(combinations)}: {' '.join(overrides)}", file=sys.stderr, flush=True)
        load = functools.partial(load_recipe, arguments.config, [*arguments.overrides, *overrides])
        options = {"bandwidth": bandwidth, "rows_per_step": arguments.rows_per_step}
        points.append(plan_point(load, overrides, stage, machine, **options))
    print(json.dumps(sweep_json(points, arguments.config), indent=2) if arguments.json else sweep_text(points))
    if arguments.page:
        subtitle = f"{arguments.devices} x {arguments.target} in {machine.num_hosts} hosts"
        title = f"{arguments.config}, {stage}: {len(points)} points"
        Path(arguments.page).write_text(sweep_page(points, title=title, subtitle=subtitle), encoding="utf-8")


def check_points(arguments: argparse.Namespace, combinations: Sequence[tuple[str, ...]]) -> None:
    """Checks that at least one point of a sweep is a recipe: a mistyped key would make none of them one.

    Raises:
      InputError: none is; the first one's reason.
    """
    first: InputError | None = None
    for overrides in combinations:
        try:
            load_recipe(arguments.config, [*arguments.overrides, *overrides])
            return
        except InputError as error:
            first = first or error
    assert first is not None
    raise InputError(f"--sweep: none of the {len(combinations)} points is a recipe: {first}")


def check_arguments(arguments: argparse.Namespace, recipe: Recipe, stage: str) -> None:
    """Checks what argparse does not.

    Raises:
      InputError: a number that makes no sense, or a stage that the recipe does not have.
    """
    for name in ("devices", "hosts", "bandwidth", "rows_per_step"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')}: got {value}, wanted more than 0")
    if arguments.page and not arguments.sweep:
        raise InputError("--page: is the page of a sweep; give --sweep KEY=V1,V2 too")
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
