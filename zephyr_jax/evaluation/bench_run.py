"""One run of judging MT-Bench answers as a recipe asks for it; here the judge says again what is stored of it."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from zephyr_jax.evaluation.bench_judging import Bench, answers_by_question, grading_jobs, pair_jobs
from zephyr_jax.evaluation.bench_prompts import read_judge_prompts
from zephyr_jax.evaluation.fastchat_files import (
    Grading,
    ModelAnswer,
    PairJudgment,
    Question,
    read_answers,
    read_judgments,
    write_rows,
)
from zephyr_jax.evaluation_recipe import BenchJudgingOptions
from zephyr_jax.judging.calls import Stop, run_jobs
from zephyr_jax.judging.protocol import Reply
from zephyr_jax.judging.replay import ReplayJudge
from zephyr_jax.records import InputError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class JudgedBench:
    """What a judge said of all answers.

    Attributes:
      judge: its name.
      answers: what was judged.
      gradings, pairs: its judgments, by the mode one or the other.
      num_unanswered: judgments that it did not give.
    """

    judge: str
    answers: tuple[ModelAnswer, ...]
    gradings: tuple[Grading, ...]
    pairs: tuple[PairJudgment, ...]
    num_unanswered: int

    def write(self, folder: Path) -> None:
        """Writes model_answer/ and model_judgment/ as FastChat's scripts and viewers read them."""
        for model in dict.fromkeys(answer.model for answer in self.answers):
            rows = [answer for answer in self.answers if answer.model == model]
            write_rows(folder / "model_answer" / f"{_file_name(model)}.jsonl", rows)
        for kind, judgments in (("single", self.gradings), ("pair", self.pairs)):
            if judgments:
                write_rows(folder / "model_judgment" / f"{_file_name(self.judge)}_{kind}.jsonl", judgments)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def judge_bench(options: BenchJudgingOptions, questions: Sequence[Question], *, seed: int) -> JudgedBench:
    """Has all answers judged.

    Raises:
      InputError: a file cannot be used, an answer is missing, or the judge has said nothing of any of them.
    """
    answers = read_answers(options.answers)
    models = list(dict.fromkeys(answer.model for answer in answers))
    if options.mode == "pair" and len(models) < 2:
        raise InputError(
            f"mt_bench.judging.answers: has answers of {', '.join(models)} alone; mode pair wants two models"
        )
    judge, respondent = _replayed(options)
    references = read_answers([options.references]) if options.references else []
    bench = Bench(
        questions=questions,
        prompts=read_judge_prompts(options.prompts),
        references={answer.question_id: answer.choices[0] for answer in references},
        judge=judge,
        max_tries=options.max_tries,
        seed=seed,
    )
    turns = {model: answers_by_question(answers, bench, model=model) for model in models}
    if options.mode == "single":
        gradings, missing = _run(
            [
                job
                for repetition in range(options.repetitions)
                for model in models
                for job in grading_jobs(bench, model, turns[model], respondent.reply, repetition=repetition)
            ],
            window=respondent.window,
        )
        pairs: list[PairJudgment] = []
    else:
        pairs, missing = _run(
            [
                job
                for first, second in itertools.combinations(models, 2)
                for job in pair_jobs(bench, (first, second), (turns[first], turns[second]), respondent.reply)
            ],
            window=respondent.window,
        )
        gradings = []
    if not gradings and not pairs:
        raise InputError(
            f"mt_bench.judging.replay {', '.join(options.replay)}: nothing is stored to any of the {missing} questions "
            f"that {judge} was asked; wanted judgments of these answers, made with these prompts in mode {options.mode}"
        )
    return JudgedBench(judge, tuple(answers), tuple(gradings), tuple(pairs), missing)


def _replayed(options: BenchJudgingOptions) -> tuple[str, ReplayJudge]:
    gradings, pairs = read_judgments(options.replay)
    judges = list(dict.fromkeys([*(row.judge for row in gradings), *(row.judge for row in pairs)]))
    if len(judges) > 1:
        raise InputError(f"mt_bench.judging.replay: has judgments by {', '.join(judges)}; wanted those of one judge")
    stored = [(row.user_prompt, row.judgment) for row in gradings]
    stored += [game for row in pairs for game in zip(row.user_prompts, row.judgments, strict=True)]
    return judges[0], ReplayJudge(judges[0], [(text, Reply(judgment, "stop", 0, 0)) for text, judgment in stored])


def _run(jobs: Sequence[Callable[[], Awaitable[T | None]]], *, window: int) -> tuple[list[T], int]:
    """The results that there are, in the order of the jobs, and how many jobs had none."""
    untyped: Sequence[Callable[[], Awaitable[Any]]] = jobs
    results: list[T | None] = asyncio.run(run_jobs(untyped, window=window, stop=Stop()))
    found = [result for result in results if result is not None]
    return found, len(results) - len(found)
