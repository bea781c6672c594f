"""All that an evaluation found, as one object: computed here, shown by tables.py and report.py."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zephyr_jax.evaluation import alpaca_eval, mt_bench, pairwise
from zephyr_jax.evaluation.academic.asking import Answered, ask_tasks
from zephyr_jax.evaluation.academic.results import AcademicResults, academic_results
from zephyr_jax.evaluation.academic.tasks import Task, read_tasks
from zephyr_jax.evaluation.alpaca_run import JudgedOutputs
from zephyr_jax.evaluation.answering import AnswerCounts
from zephyr_jax.evaluation.asked import Asked, ask_models, folder_of
from zephyr_jax.evaluation.bench_run import JudgedBench
from zephyr_jax.evaluation.checks import check_files
from zephyr_jax.evaluation.fastchat_files import read_judgments, read_questions
from zephyr_jax.evaluation.harness import HarnessResults, HarnessScore, find_tasks, harness_results, run_harness
from zephyr_jax.evaluation.length_control import LengthControlled, length_controlled_win_rate, read_length_data
from zephyr_jax.evaluation.statistics import Comparison, Sampling, compare, with_holm
from zephyr_jax.evaluation.stored_rows import under
from zephyr_jax.evaluation.trust import AgreementResult, Trusts, agreement_results
from zephyr_jax.evaluation_recipe import AlpacaEvalOptions, EvaluationRecipe, MtBenchOptions
from zephyr_jax.records import InputError

if TYPE_CHECKING:
    from zephyr_jax.evaluation.academic.local_model import LocalModel


@dataclasses.dataclass(frozen=True)
class AlpacaEvalResults:
    """Win rates, a length-controlled one for each where asked for, and models compared under one baseline and judge."""

    win_rates: tuple[alpaca_eval.WinRate, ...]
    length_controlled: tuple[LengthControlled | None, ...]
    comparisons: tuple[Comparison, ...]
    judged: JudgedOutputs | None = None
    answering: tuple[AnswerCounts, ...] = ()
    trusts: Trusts = Trusts((), {})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "models": [
                rate.as_dict()
                | {"judge_agreement": self.trusts.of(rate.annotator, "verdicts").as_dict()}
                | (controlled.as_dict() if controlled else {})
                for rate, controlled in zip(self.win_rates, self.length_controlled, strict=True)
            ],
            "comparisons": [comparison.as_dict() for comparison in self.comparisons],
            "num_unanswered": self.judged.num_unanswered if self.judged else 0,
            "answering": [counts.as_dict() for counts in self.answering],
        }


@dataclasses.dataclass(frozen=True)
class MtBenchResults:
    """Scores of graded models, models compared under one judge, and pairs judged against each other."""

    scores: tuple[mt_bench.BenchScore, ...]
    comparisons: tuple[Comparison, ...]
    pairs: tuple[pairwise.PairResult, ...]
    with_published: bool
    judged: JudgedBench | None = None
    answering: tuple[AnswerCounts, ...] = ()
    trusts: Trusts = Trusts((), {})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "models": [
                score.as_dict() | {"judge_agreement": self.trusts.of(score.judge, "gradings").as_dict()}
                for score in self.scores
            ],
            "comparisons": [comparison.as_dict() for comparison in self.comparisons],
            "pairs": [
                pair.as_dict() | {"judge_agreement": self.trusts.of(pair.judge, "verdicts").as_dict()}
                for pair in self.pairs
            ],
            "num_unanswered": self.judged.num_unanswered if self.judged else 0,
            "answering": [counts.as_dict() for counts in self.answering],
        }


@dataclasses.dataclass(frozen=True)
class Results:
    """What one recipe gave."""

    name: str
    level: float
    alpaca_eval: AlpacaEvalResults | None
    mt_bench: MtBenchResults | None
    agreements: tuple[AgreementResult, ...]
    academic: AcademicResults | None = None
    harness: HarnessResults | None = None

    def as_dict(self) -> dict[str, Any]:
        """The content of results.json."""
        found: dict[str, Any] = {"name": self.name, "level": self.level}
        if self.alpaca_eval:
            found["alpaca_eval"] = self.alpaca_eval.as_dict()
        if self.mt_bench:
            found["mt_bench"] = self.mt_bench.as_dict()
        if self.academic:
            found["academic"] = self.academic.as_dict()
        if self.harness:
            found["harness"] = self.harness.as_dict()
        if self.agreements:
            found["agreement"] = [result.as_dict() for result in self.agreements]
        return found


def evaluate(recipe: EvaluationRecipe) -> Results:
    """Has answered and judged what the recipe has, and computes everything from that and from the files that it names.

    Raises:
      InputError: a file cannot be used, or has nothing to score.
      Unfinished, KeyboardInterrupt: as in `ask_models`.
    """
    tasks = read_tasks(recipe.academic.tasks) if recipe.academic else []
    known = find_tasks(recipe)
    models = _academic_models(recipe)
    check_files(recipe, folder=folder_of(recipe))
    sampling = Sampling(recipe.statistics.level, recipe.statistics.resamples, recipe.seed)
    asked = ask_models(recipe)
    academic, harness = _academic(recipe, models, tasks, known, sampling)
    own = asked.judgments()
    agreements = tuple(
        found for options in recipe.agreement for found in agreement_results(options, own=own, sampling=sampling)
    )
    trusts = Trusts(agreements, {name: options.model for name, options in recipe.models.items()})
    return Results(
        name=recipe.name,
        level=sampling.level,
        alpaca_eval=_alpaca_eval(recipe.alpaca_eval, asked, trusts, sampling) if recipe.alpaca_eval else None,
        mt_bench=_mt_bench(recipe.mt_bench, asked, trusts, sampling) if recipe.mt_bench else None,
        agreements=agreements,
        academic=academic,
        harness=harness,
    )


def _academic_models(recipe: EvaluationRecipe) -> list[LocalModel]:
    """Opened before anybody is asked, so that one that is not there is said at once."""
    if recipe.academic is None:
        return []
    from zephyr_jax.evaluation.academic.local_model import open_models  # and with it JAX

    with under("academic.model"):
        return open_models(recipe.academic, recipe.models)


def _academic(
    recipe: EvaluationRecipe, models: Sequence[LocalModel], tasks: Sequence[Task], known: Any, sampling: Sampling
) -> tuple[AcademicResults | None, HarnessResults | None]:
    """Academic tasks and the harness's, all of a model's after each other: its weights are read once, then let go."""
    options = recipe.academic.harness if recipe.academic else None
    folder = folder_of(recipe)
    answered: list[Answered] = []
    scores: list[HarnessScore] = []
    for model in models:
        answered += ask_tasks(model, tasks, folder=folder / "academic")
        if options is not None:
            scores += run_harness(model, options, known, folder=folder / "harness", sampling=sampling)
        model.unload()
    return (
        academic_results(answered, sampling=sampling) if answered else None,
        harness_results(scores, limit=options.limit, sampling=sampling) if options is not None else None,
    )


def _alpaca_eval(options: AlpacaEvalOptions, asked: Asked, trusts: Trusts, sampling: Sampling) -> AlpacaEvalResults:
    judged, answered = asked.outputs, asked.answered_instructions
    control = options.length_control
    data = read_length_data(control.file, control.glm) if control else None
    stored = alpaca_eval.by_contest(alpaca_eval.read_annotations(options.annotations or ()))
    asked_now = alpaca_eval.by_contest(judged.annotations() if judged else ())
    # Where nothing that the judge said could be read there is no rate, which is said; other results stand.
    readable = {key: rows for key, rows in asked_now.items() if alpaca_eval.scores_by_instruction(rows)}
    contests = stored | readable
    rates = tuple(alpaca_eval.win_rate(rows, sampling=sampling) for rows in contests.values())
    controlled = [
        length_controlled_win_rate(rows, data, glm=control.glm, sampling=sampling) if control and data else None
        for rows in contests.values()
    ]
    comparisons = []
    for (first, first_rows), (second, second_rows) in itertools.combinations(contests.items(), 2):
        if first[1:] == second[1:]:  # the same baseline and judge
            scores = [
                {item: 100 * score for item, score in alpaca_eval.scores_by_instruction(rows).items()}
                for rows in (first_rows, second_rows)
            ]
            comparisons.append(
                compare((first[0], scores[0]), (second[0], scores[1]), within=(0.0, 100.0), sampling=sampling)
            )
    return AlpacaEvalResults(
        win_rates=with_holm(rates),
        length_controlled=tuple(controlled),
        comparisons=with_holm([found for found in comparisons if found]),
        judged=judged,
        answering=answered.counts if answered else (),
        trusts=trusts,
    )


def _mt_bench(options: MtBenchOptions, asked: Asked, trusts: Trusts, sampling: Sampling) -> MtBenchResults:
    judged, answered = asked.bench, asked.answered_bench
    questions = read_questions(options.questions)
    category_of = {question.question_id: question.category for question in questions}
    gradings, pairs = read_judgments(options.judgments or ())
    if judged:
        gradings, pairs = [*gradings, *judged.gradings], [*pairs, *judged.pairs]
    graded = {
        key: (rows, score)
        for key, rows in mt_bench.by_model(gradings).items()
        if (score := mt_bench.bench_score(rows, category_of, sampling=sampling))
    }
    compared = [pairwise.pair_result(rows, sampling=sampling) for rows in pairwise.by_contest(pairs).values()]
    results = tuple(result for result in compared if result)
    if not graded and not results and not answered and not judged:
        raise InputError(
            f"mt_bench {', '.join(options.judgments or ())}: none of the {len(gradings)} gradings has a rating, "
            f"and none of the {len(pairs)} pairs two verdicts; wanted some that could be parsed"
        )
    comparisons = [
        compare(
            (first[0], mt_bench.scores_by_answer(first_rows)),
            (second[0], mt_bench.scores_by_answer(second_rows)),
            group_of=lambda answer: answer[0],  # two turns of a question are not independent
            within=mt_bench.RATINGS,
            sampling=sampling,
        )
        for (first, (first_rows, _)), (second, (second_rows, _)) in itertools.combinations(graded.items(), 2)
        if first[1] == second[1]  # the same judge
    ]
    return MtBenchResults(
        scores=tuple(score for _, score in graded.values()),
        comparisons=with_holm([found for found in comparisons if found]),
        pairs=with_holm(results),
        with_published=options.published,
        judged=judged,
        answering=answered.counts if answered else (),
        trusts=trusts,
    )
