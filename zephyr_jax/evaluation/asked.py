"""The part of an evaluation that asks models, in one session: one purse, each model and each journal opened once.

Answers and judgments are written as soon as all of a kind are there, and in the order of the questions.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zephyr_jax.evaluation.agreement import Judgments, add_judgments
from zephyr_jax.evaluation.alpaca_run import JudgedOutputs, judge_outputs
from zephyr_jax.evaluation.answer_run import AnsweredBench, AnsweredInstructions, answer_bench, answer_instructions
from zephyr_jax.evaluation.bench_answering import chosen_questions
from zephyr_jax.evaluation.bench_run import JudgedBench, judge_bench
from zephyr_jax.evaluation.fastchat_files import read_questions
from zephyr_jax.evaluation_recipe import AlpacaEvalOptions, EvaluationRecipe, MtBenchOptions
from zephyr_jax.judging.session import Session


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was answered and judged; None where the recipe has nothing answered or judged."""

    answered_bench: AnsweredBench | None = None
    bench: JudgedBench | None = None
    answered_instructions: AnsweredInstructions | None = None
    outputs: JudgedOutputs | None = None

    def judgments(self) -> list[Judgments]:
        """What each judge said, as agreement.py takes it."""
        rows: dict[str, list[Mapping[str, Any]]] = {}
        if self.outputs:
            rows.setdefault(self.outputs.rows[0]["annotator"], []).extend(self.outputs.rows)
        if self.bench:
            judged = [row.as_row() for row in self.bench.gradings] + [row.as_row() for row in self.bench.pairs]
            rows.setdefault(self.bench.judge, []).extend(judged)
        found = []
        for judge, given in rows.items():
            judgments = Judgments()
            add_judgments(judgments, ((f"{judge}:{place}", row) for place, row in enumerate(given, start=1)))
            found.append(judgments)
        return found


def folder_of(recipe: EvaluationRecipe) -> Path:
    """Where the results of the recipe lie."""
    return Path(recipe.output_dir) / recipe.name / "evaluation"


def ask_models(recipe: EvaluationRecipe) -> Asked:
    """Has everything answered and judged that the recipe has answered and judged, and writes it down.

    Raises:
      InputError: a file cannot be used, or a model cannot be opened.
      Unfinished: an answer did not come, or the budget is spent; the same command goes on.
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
        # All at once: a model that is not there, or a key that is not set, is said before another one has answered.
        for name in [name for name in recipe.models if name in recipe.asked_models()]:
            session.caller(name)
        folder, asked = folder_of(recipe), Asked()
        if recipe.alpaca_eval:
            asked = await _ask_alpaca_eval(recipe.alpaca_eval, asked, session, seed=recipe.seed, folder=folder)
        if recipe.mt_bench:
            asked = await _ask_mt_bench(recipe.mt_bench, asked, session, seed=recipe.seed, folder=folder)
        return asked


async def _ask_alpaca_eval(
    options: AlpacaEvalOptions, asked: Asked, session: Session, *, seed: int, folder: Path
) -> Asked:
    if options.answering:
        answered = await answer_instructions(options.answering, session, seed=seed)
        answered.write(folder / "alpaca_eval")
        asked = dataclasses.replace(asked, answered_instructions=answered)
    if options.judging:
        given = asked.answered_instructions.outputs() if asked.answered_instructions else ()
        outputs = await judge_outputs(options.judging, session, seed=seed, answered=given)
        outputs.write(folder / "alpaca_eval")
        asked = dataclasses.replace(asked, outputs=outputs)
    return asked


async def _ask_mt_bench(options: MtBenchOptions, asked: Asked, session: Session, *, seed: int, folder: Path) -> Asked:
    if not options.answering and not options.judging:
        return asked
    questions = chosen_questions(
        read_questions(options.questions), limit=options.limit, question_ids=options.question_ids
    )
    if options.answering:
        answered = await answer_bench(options.answering, questions, session, seed=seed)
        answered.write(folder / "mt_bench")
        asked = dataclasses.replace(asked, answered_bench=answered)
    if options.judging:
        given = asked.answered_bench.answers if asked.answered_bench else ()
        bench = await judge_bench(options.judging, questions, session, seed=seed, answered=given)
        bench.write(folder / "mt_bench")
        asked = dataclasses.replace(asked, bench=bench)
    return asked
