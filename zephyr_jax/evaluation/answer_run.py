"""Has the models of a recipe answer MT-Bench's questions or AlpacaEval's instructions, in the run's session.

Models behind servers answer side by side; those in this process one after another, since they share its devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.evaluation.alpaca_answering import Answering, read_instructions, write_outputs
from zephyr_jax.evaluation.alpaca_judging import Output
from zephyr_jax.evaluation.answering import AnswerCounts
from zephyr_jax.evaluation.bench_answering import Sitting
from zephyr_jax.evaluation.fastchat_files import ModelAnswer, Question, check_file_names, file_name, write_rows
from zephyr_jax.evaluation.judges import Ask
from zephyr_jax.evaluation_recipe import AlpacaAnsweringOptions, BenchAnsweringOptions
from zephyr_jax.judging.calls import Caller
from zephyr_jax.judging.protocol import ChatRequest, Reply
from zephyr_jax.judging.session import Session
from zephyr_jax.records import InputError, Unfinished

# Key -> job, in the order in which they are to begin; made for whoever answers.
JobsOf = Callable[[str, Ask, AnswerCounts], Sequence[tuple[Any, Callable[[], Awaitable[str | None]]]]]


@dataclasses.dataclass(frozen=True)
class AnsweredBench:
    """All models' answers to MT-Bench, and what was amiss with each model's."""

    answers: tuple[ModelAnswer, ...]
    counts: tuple[AnswerCounts, ...]

    def write(self, folder: Path) -> None:
        """Writes model_answer/MODEL.jsonl as FastChat's scripts and viewers read it."""
        for count in self.counts:
            rows = [answer for answer in self.answers if answer.model == count.model]
            write_rows(folder / "model_answer" / f"{file_name(count.model)}.jsonl", rows)


@dataclasses.dataclass(frozen=True)
class AnsweredInstructions:
    """All models' outputs for AlpacaEval, rows of its format by model, and what was amiss with each model's."""

    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    counts: tuple[AnswerCounts, ...]

    def outputs(self) -> list[list[Output]]:
        """As the judging takes them, model by model."""
        return [
            [Output(row["instruction"], row["output"], row["generator"], row["dataset"]) for row in rows]
            for rows in self.rows.values()
        ]

    def write(self, folder: Path) -> None:
        """Writes MODEL/model_outputs.json, as alpaca_eval's folder of results has it."""
        for model, rows in self.rows.items():
            write_outputs(folder / file_name(model) / "model_outputs.json", rows)


async def answer_bench(
    options: BenchAnsweringOptions, questions: Sequence[Question], session: Session, *, seed: int
) -> AnsweredBench:
    """Has all models answer the questions.

    Raises:
      InputError: a model cannot be opened, or cannot be asked any of them.
      Unfinished: an answer did not come, or the budget is spent; the same command goes on.
    """
    sittings = {
        name: Sitting(name, options.temperatures, options.max_new_tokens, options.choices, seed)
        for name in options.models
    }

    def jobs_of(name: str, ask: Ask, counts: AnswerCounts) -> Sequence[Any]:
        return sittings[name].jobs(questions, ask, counts)

    texts, counts = await _answered("mt_bench", options.models, jobs_of, session)
    answers = [row for name in options.models for row in sittings[name].rows(questions, texts[name])]
    return AnsweredBench(tuple(answers), tuple(counts))


async def answer_instructions(options: AlpacaAnsweringOptions, session: Session, *, seed: int) -> AnsweredInstructions:
    """Has all models answer the instructions.

    Raises:
      InputError: the instructions cannot be read, a model cannot be opened, or cannot be asked any of them.
      Unfinished: an answer did not come, or the budget is spent; the same command goes on.
    """
    instructions = read_instructions(options.instructions, limit=options.limit)
    answering = {
        name: Answering(name, options.max_new_tokens, options.temperature, options.top_p, seed)
        for name in options.models
    }

    def jobs_of(name: str, ask: Ask, counts: AnswerCounts) -> Sequence[Any]:
        return answering[name].jobs(instructions, ask, counts)

    texts, counts = await _answered("alpaca_eval", options.models, jobs_of, session)
    rows = {name: answering[name].rows(instructions, texts[name]) for name in options.models}
    return AnsweredInstructions(rows, tuple(counts))


async def _answered(
    block: str, names: Sequence[str], jobs_of: JobsOf, session: Session
) -> tuple[dict[str, dict[Any, str]], list[AnswerCounts]]:
    """Model -> key -> text, and each model's counts."""
    check_file_names(names, f"{block}.answering.models")
    all_counts = {name: AnswerCounts(name) for name in names}
    texts: dict[str, dict[Any, str]] = {name: {} for name in names}
    served = [name for name in names if session.respondents.models[name].base_url is not None]
    for group in [served, *([name] for name in names if name not in served)]:
        jobs: dict[Any, Sequence[tuple[Any, Callable[[], Awaitable[str | None]]]]] = {}
        for name in group:
            caller = session.caller(name)
            jobs[caller] = [((name, key), job) for key, job in jobs_of(name, _ask_of(caller), all_counts[name])]
        found = await session.run_jobs(f"{block} answers of {', '.join(group)}", jobs) if group else {}
        for (name, key), text in found.items():
            texts[name][key] = text
        for name in group:
            _check(block, all_counts[name])
            session.say(f"{block}: {all_counts[name].sentence()}")
    return texts, list(all_counts.values())


def _ask_of(caller: Caller) -> Ask:
    async def ask(request: ChatRequest, call: str) -> Reply:
        return await caller.ask(request, call=call)

    return ask


def _check(block: str, counts: AnswerCounts) -> None:
    if counts.num_failed:
        raise Unfinished(
            f"{block}.answering: {counts.model} gave no answer to {counts.num_failed} questions "
            f"({counts.why_failed}); all others are kept: start again to ask once more where none came"
        )
    if counts.num_unanswerable and not counts.num_answers:
        raise InputError(
            f"{block}.answering: {counts.model} cannot be asked any of the questions ({counts.why}); wanted a model "
            "with room for them, fewer max_new_tokens, or another setting of its server"
        )
