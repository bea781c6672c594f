"""The part of an evaluation that asks models, in one session: one purse, each model and each journal opened once."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from zephyr_jax.evaluation.alpaca_run import JudgedOutputs, judge_outputs
from zephyr_jax.evaluation.bench_run import JudgedBench, judge_bench
from zephyr_jax.evaluation.fastchat_files import read_questions
from zephyr_jax.evaluation_recipe import EvaluationRecipe
from zephyr_jax.judging.session import Session


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was judged; None where the recipe has nothing judged."""

    bench: JudgedBench | None
    outputs: JudgedOutputs | None


def folder_of(recipe: EvaluationRecipe) -> Path:
    """Where the results of the recipe lie."""
    return Path(recipe.output_dir) / recipe.name / "evaluation"


def ask_models(recipe: EvaluationRecipe) -> Asked:
    """Has everything judged that the recipe has judged.

    Raises:
      InputError: a file cannot be used, or a model cannot be opened.
      Unfinished: the budget is spent; the same command goes on.
      KeyboardInterrupt: it was interrupted, after the calls in flight had ended.
    """
    return asyncio.run(_ask_models(recipe))


async def _ask_models(recipe: EvaluationRecipe) -> Asked:
    async with Session(
        recipe.models,
        command="evaluate",
        run=recipe.name,
        folder=recipe.calls.folder(recipe.output_dir),
        budget=recipe.budget,
        log=folder_of(recipe) / "sessions.jsonl",
    ) as session:
        session.open_if_limited(recipe.asked_models())
        outputs = bench = None
        if recipe.alpaca_eval and recipe.alpaca_eval.judging:
            outputs = await judge_outputs(recipe.alpaca_eval.judging, session, seed=recipe.seed)
        if recipe.mt_bench and recipe.mt_bench.judging:
            questions = read_questions(recipe.mt_bench.questions)
            bench = await judge_bench(recipe.mt_bench.judging, questions, session, seed=recipe.seed)
        return Asked(bench, outputs)
