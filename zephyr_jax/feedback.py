"""AI feedback: prompts x models -> answers -> the teacher's scores -> preference pairs; goes on where it was stopped.

python -m zephyr_jax.feedback --config configs/feedback/smollm2.yaml
python -m zephyr_jax.feedback --config configs/feedback/smollm2.yaml --dry-run
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zephyr_jax.cli import add_recipe_arguments, run_command
from zephyr_jax.feedback_recipe import (
    FeedbackRecipe,
    feedback_recipe_to_yaml,
    load_feedback_recipe,
    result_differences,
)
from zephyr_jax.run_folder import check_same_recipe, free_name, write_recipe


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.feedback",
        description="Makes preference pairs: several models answer prompts, a teacher scores the answers. Every answer "
        "is kept as it comes; started again, it goes on where it stopped and repeats no call.",
        epilog="example: python -m zephyr_jax.feedback --config configs/feedback/smollm2.yaml budget.requests=500",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="show calls, tokens and cost; ask nobody")
    parser.add_argument("--new-run", action="store_true", help="if the name is taken, add a number to it")
    return parser


def _claim_folder(recipe: FeedbackRecipe, folder: Path) -> None:
    """Makes the run's folder with recipe.yaml in it.

    Before a step is done the recipe may change in any way: answers are kept by what was asked.

    Raises:
      InputError: the folder cannot be written, or holds steps that another recipe has done.
    """
    from zephyr_jax.stages.aif import FILES

    file = folder / "recipe.yaml"
    if file.exists() and any((folder / name).exists() for name in FILES.values()):
        kept = "; answers that both recipes ask for are found in either case"
        check_same_recipe(folder, result_differences(load_feedback_recipe(file), recipe), kept=kept)
    write_recipe(folder, feedback_recipe_to_yaml(recipe), output_dir=recipe.output_dir)


def _run(arguments: argparse.Namespace) -> None:
    recipe = load_feedback_recipe(arguments.config, arguments.overrides)
    if arguments.new_run:
        recipe = recipe.model_copy(update={"name": free_name(recipe.output_dir, recipe.name)})
    from zephyr_jax.stages.aif import describe_feedback, folder_of, run_feedback

    if arguments.dry_run:
        print(describe_feedback(recipe))
        return
    _claim_folder(recipe, folder_of(recipe))
    run_feedback(recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
