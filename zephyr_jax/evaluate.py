"""Scores of models with how sure they are: AlpacaEval 1 and 2, MT-Bench, academic tasks, and how far judges agree.

From stored annotations and judgments, or by models that answer and a judge that is asked now: each answer is kept as it
comes, so that a run that was stopped goes on. Writes OUTPUT_DIR/NAME/evaluation/{recipe.yaml,results.json,report.html},
mt_bench/ and alpaca_eval/ in FastChat's and AlpacaEval's formats where models answer or judge, academic/ and harness/
with a line an item.

    python -m zephyr_jax.evaluate --config configs/evaluation/published.yaml
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from zephyr_jax.cli import add_recipe_arguments, open_output, run_command
from zephyr_jax.evaluation_recipe import (
    EvaluationRecipe,
    evaluation_recipe_to_yaml,
    load_evaluation_recipe,
    result_differences,
)
from zephyr_jax.records import InputError
from zephyr_jax.run_folder import check_same_recipe, free_name


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.evaluate",
        description="MT-Bench, AlpacaEval, academic tasks and the agreement of judges, from stored judgments or by "
        "models that answer and a judge that is asked now (each answer is kept; started again, it goes on): tables on "
        "stdout, results and a report in OUTPUT_DIR/NAME/evaluation.",
        epilog="example: python -m zephyr_jax.evaluate --config configs/evaluation/smollm2.yaml mt_bench.limit=8",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--new-run", action="store_true", help="if the name has results, add a number to it")
    parser.add_argument("--json", action="store_true", help="results.json on stdout in place of the tables")
    return parser


def _check_name(recipe: EvaluationRecipe, folder: Path) -> None:
    """Checks that the results under the recipe's name, if there are any, are this recipe's own.

    Raises:
      InputError: they are another recipe's; the message has the differences key by key.
    """
    if not all((folder / name).exists() for name in ("results.json", "recipe.yaml")):
        return
    kept = "; without its results.json it goes on from the answers that it has"
    check_same_recipe(folder, result_differences(load_evaluation_recipe(folder / "recipe.yaml"), recipe), kept=kept)


def _run(arguments: argparse.Namespace) -> None:
    recipe = load_evaluation_recipe(arguments.config, arguments.overrides)
    if recipe.report:
        from zephyr_jax.reporting.plots import require_matplotlib

        try:
            require_matplotlib()
        except InputError as error:
            raise InputError(f"report: {error}; or do without the page: report=false") from None
    from zephyr_jax.evaluation.asked import folder_of
    from zephyr_jax.evaluation.results import evaluate
    from zephyr_jax.evaluation.tables import blocks_of
    from zephyr_jax.reporting.blocks import LAYOUT, blocks_text

    if arguments.new_run and (folder_of(recipe) / "results.json").exists():
        recipe = recipe.model_copy(update={"name": free_name(recipe.output_dir, recipe.name)})
    folder = folder_of(recipe)
    _check_name(recipe, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir {recipe.output_dir}: cannot be written ({error}); give another one") from error
    results = evaluate(recipe)
    blocks = blocks_of(results)
    content = {"layout": LAYOUT} | results.as_dict() | {"blocks": [block.as_dict() for block in blocks]}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    written = {"recipe.yaml": evaluation_recipe_to_yaml(recipe), "results.json": text + "\n"}
    if recipe.report:
        from zephyr_jax.evaluation.report import results_page

        written["report.html"] = results_page(content)
    for name, written_text in written.items():
        with open_output(folder / name, option="output_dir") as file:
            file.write(written_text)
    print(text if arguments.json else blocks_text(blocks))
    asked = [f"{name}/" for name in ("mt_bench", "alpaca_eval", "academic", "harness") if (folder / name).is_dir()]
    print(f"evaluate: {', '.join([*written, *asked])} in {folder}", file=sys.stderr)
    if recipe.report and (folder.parent / "recipe.yaml").exists():  # the folder of a training run, whose page has all
        from zephyr_jax.stages.run_report import renewed_report

        print(renewed_report(folder.parent), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
