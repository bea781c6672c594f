"""Runs a recipe: its stages in order, what is done already skipped, what was interrupted taken up again.

python -m zephyr_jax.train --config configs/tiny.yaml
python -m zephyr_jax.train --config configs/tiny.yaml --dry-run
python -m zephyr_jax.train --config configs/tiny.yaml ddpo.beta=0.2 name=tiny-beta-0.2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zephyr_jax.cli import add_recipe_arguments, run_command
from zephyr_jax.peers import Peers
from zephyr_jax.recipe import STAGE_ORDER, Recipe, load_recipe, recipe_differences, recipe_to_yaml
from zephyr_jax.records import InputError
from zephyr_jax.run_folder import check_same_recipe, free_name, write_recipe


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.train",
        description="Runs a recipe's stages (dsft, ddpo); started again, it goes on where it stopped.",
        epilog="example: python -m zephyr_jax.train --config configs/tiny.yaml ddpo.beta=0.2 name=tiny-beta-0.2",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="show steps, tokens, lost rows, examples")
    parser.add_argument("--new-run", action="store_true", help="if the name is taken, add a number to it")
    return parser


def check_name(recipe: Recipe) -> None:
    """Checks that the recipe's name is free or this recipe's own. A run that never began holds its name for nobody.

    Raises:
      InputError: the name belongs to another recipe; the message has the differences key by key.
    """
    folder = Path(recipe.output_dir) / recipe.name
    if not any((folder / part).exists() for part in (*STAGE_ORDER, "held_out.json")):
        return
    check_same_recipe(folder, recipe_differences(load_recipe(folder / "recipe.yaml"), recipe))


def claim_folder(recipe: Recipe) -> None:
    """Makes the run's folder with recipe.yaml in it, which stays as it is where it is this recipe.

    Raises:
      InputError: the folder cannot be written.
    """
    folder = Path(recipe.output_dir) / recipe.name
    if not ((folder / "recipe.yaml").exists() and load_recipe(folder / "recipe.yaml") == recipe):
        write_recipe(folder, recipe_to_yaml(recipe), output_dir=recipe.output_dir)


def _run(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(arguments.config, arguments.overrides)
    if arguments.new_run:
        recipe = recipe.model_copy(update={"name": free_name(recipe.output_dir, recipe.name)})
    check_name(recipe)
    from zephyr_jax.processes import joined  # imports JAX: after the recipe, whose mistakes show at once

    with joined() as peers:
        _run_stages(recipe, peers, dry_run=arguments.dry_run)
    if peers.is_first and not arguments.dry_run:
        from zephyr_jax.stages.run_report import renewed_report

        print(renewed_report(Path(recipe.output_dir) / recipe.name), file=sys.stderr)


def _run_stages(recipe: Recipe, peers: Peers, *, dry_run: bool) -> None:
    import jax

    from zephyr_jax.stages.dry_run import describe_stage
    from zephyr_jax.stages.pipeline import run_stages
    from zephyr_jax.stages.start import check_run, open_run

    _check_same_recipe(recipe, peers)
    run = open_run(recipe, peers=peers)
    check_run(run)
    with jax.set_mesh(run.mesh):
        if dry_run:
            if peers.is_first:  # nothing in it needs the others
                for stage in recipe.stages:
                    print(describe_stage(run, stage))
            return
        if peers.is_first:
            claim_folder(recipe)
        peers.check_all_see(run.folder / "recipe.yaml")
        table = run_stages(run)
    if table:
        print(table)


def _check_same_recipe(recipe: Recipe, peers: Peers) -> None:
    first, *others = peers.gather("the recipe", recipe.model_dump(mode="json"))
    for index, other in enumerate(others, start=1):
        differences = recipe_differences(first, other)
        if differences:
            raise InputError(
                f"the processes of this job were given different recipes; {peers.name(index)} differs from process 0 "
                "in:\n  " + "\n  ".join(differences)
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    status = run_command(build_parser(), _run, argv, in_several_processes=True)
    if "jax" in sys.modules:
        from zephyr_jax.processes import leave

        return leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
