"""Says what a recipe's files lack before any model is asked: answers take hours, and judges cost money.

Everything that the steps will read is read, and the judge's prompts are filled in with empty answers. Not here: what
the files have to be (fastchat_files.py, alpaca_judging.py ...), and opening the models (asked.py).
"""

from __future__ import annotations

import collections
from pathlib import Path

from zephyr_jax.evaluation.agreement import read_judge
from zephyr_jax.evaluation.alpaca_answering import read_instructions
from zephyr_jax.evaluation.alpaca_eval import by_contest, check_instructions, parse_annotation, read_annotations
from zephyr_jax.evaluation.alpaca_judging import Output
from zephyr_jax.evaluation.alpaca_run import check_outputs
from zephyr_jax.evaluation.bench_answering import chosen_questions
from zephyr_jax.evaluation.bench_run import check_bench
from zephyr_jax.evaluation.fastchat_files import NO_TIME, ModelAnswer, read_judgments, read_questions
from zephyr_jax.evaluation.length_control import MIN_JUDGMENTS, read_length_data, require_scikit_learn
from zephyr_jax.evaluation.stored_rows import under
from zephyr_jax.evaluation.trust import read_measured
from zephyr_jax.evaluation_recipe import (
    BENCH_TEMPERATURES,
    AgreementOptions,
    AlpacaEvalOptions,
    EvaluationRecipe,
    MtBenchOptions,
)
from zephyr_jax.records import InputError


def check_files(recipe: EvaluationRecipe, *, folder: Path) -> None:
    """Reads all files that MT-Bench, AlpacaEval and the agreement of judges need.

    Args:
      recipe: the evaluation.
      folder: of its results; judgments that are to be written there need not be there yet.

    Raises:
      InputError: one cannot be used; the text begins with its key.
    """
    if recipe.alpaca_eval:
        _check_alpaca_eval(recipe.alpaca_eval)
    if recipe.mt_bench:
        _check_mt_bench(recipe.mt_bench)
    for place, options in enumerate(recipe.agreement):
        _check_agreement(options, f"agreement.{place}", folder=folder)


def _check_alpaca_eval(options: AlpacaEvalOptions) -> None:
    with under("alpaca_eval.annotations"):
        annotations = read_annotations(options.annotations or ())
    if options.length_control:
        with under("alpaca_eval.length_control.file"):
            read_length_data(options.length_control.file, options.length_control.glm)
        require_scikit_learn()
    answered: list[list[Output]] = []
    if options.answering:
        with under("alpaca_eval.answering.instructions"):
            instructions = read_instructions(options.answering.instructions, limit=options.answering.limit)
        answered = [
            [Output(row.instruction, "", name, row.dataset) for row in instructions]
            for name in options.answering.models
        ]
    if options.judging:
        judge, pairs = check_outputs(options.judging, answered)
        rows = [pair.annotation(judge, None, None) for pair in pairs]
        judged = [parse_annotation(row, 0, f"alpaca_eval.judging, {row['generator_2']}") for row in rows]
        with under("alpaca_eval.annotations"):
            check_instructions([*judged, *annotations])
        stored = by_contest(annotations)
        contests = collections.Counter((pair.model.generator, pair.baseline.generator) for pair in pairs)
        for (model, baseline), num_pairs in contests.items():
            if options.length_control and num_pairs < MIN_JUDGMENTS:
                raise InputError(
                    f"alpaca_eval.length_control: {model} has {num_pairs} outputs to be judged; wanted at least "
                    f"{MIN_JUDGMENTS} for a length-controlled win rate, or leave out the block"
                )
            if (model, baseline, judge) in stored:
                raise InputError(
                    f"alpaca_eval.annotations: has {model} against {baseline} by {judge}, which is to be judged too; "
                    "wanted each contest once by a judge, so leave out the files or judging"
                )


def _check_mt_bench(options: MtBenchOptions) -> None:
    with under("mt_bench.questions"):
        questions = read_questions(options.questions)
    with under("mt_bench.judgments"):
        read_judgments(options.judgments or ())
    if options.answering:
        known = dict.fromkeys([*BENCH_TEMPERATURES, *(question.category for question in questions)])
        unknown = [name for name in options.answering.temperatures if name not in known]
        if unknown:
            raise InputError(
                f"mt_bench.answering.temperatures: no question is of {', '.join(unknown)}; wanted some of "
                f"{', '.join(known)}"
            )
    questions = chosen_questions(questions, limit=options.limit, question_ids=options.question_ids)
    answered = [
        ModelAnswer(question.question_id, "", name, (("",) * len(question.turns),), NO_TIME)
        for name in (options.answering.models if options.answering else ())
        for question in questions
    ]
    if options.judging:
        check_bench(options.judging, questions, answered)


def _check_agreement(options: AgreementOptions, key: str, *, folder: Path) -> None:
    with under(key):
        if options.measured is not None:
            read_measured(options.measured)
        read_judge(options.reference or ())
        read_judge(file for file in options.judge or () if not Path(file).absolute().is_relative_to(folder.absolute()))
