"""AI feedback: prompts in, preference pairs out (arXiv 2310.16944, section 3; arXiv:2310.01377).

    aif/instructions.jsonl   (a) dialogues that the teacher wrote: columns of ultrachat_200k, what dsft takes
    aif/completions.jsonl    (b) several models' answers to every prompt: UltraFeedback's raw layout
    aif/feedback.jsonl       (c) the same with the teacher's scores and reasons
    aif/preferences.jsonl    (d) columns of ultrafeedback_binarized, what ddpo takes

A step is done when its file is there; each file is written whole, from answers in the journals, in the order of the
prompts. So a run that was killed makes the file that an untouched run makes, and asks again at most what was in flight.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.data.binarisation import BinarisationOptions, BinarisationReport, binarise
from zephyr_jax.data.sources import iterate_rows, read_feedback, read_prompts
from zephyr_jax.feedback_recipe import FeedbackRecipe
from zephyr_jax.judging.annotation import annotated_row, annotation_jobs
from zephyr_jax.judging.calls import NO_ANSWER
from zephyr_jax.judging.completions import completion_jobs, completion_row
from zephyr_jax.judging.estimate import assumed_prompts, estimate, estimates_table
from zephyr_jax.judging.instructions import Writer, read_seeds
from zephyr_jax.judging.seed_tasks import SEED_TASKS, TOPICS
from zephyr_jax.judging.session import Session
from zephyr_jax.recipe import Source
from zephyr_jax.records import BadRow, InputError, Prompt, Unfinished
from zephyr_jax.whole_files import open_whole, write_json

FILES = {
    "instructions": "instructions.jsonl",
    "completions": "completions.jsonl",
    "annotation": "feedback.jsonl",
    "binarisation": "preferences.jsonl",
}


def run_feedback(recipe: FeedbackRecipe) -> dict[str, Any]:
    """Does all steps of a recipe that are not done.

    Returns:
      What is in summary.json: of each step its counts, of each model what happened.

    Raises:
      InputError: something that the user gave is wrong.
      Unfinished: the budget is spent, or too many calls came to nothing; the same command goes on.
      KeyboardInterrupt: it was interrupted, after the calls in flight had ended.
    """
    return asyncio.run(_Feedback(recipe).run())


def describe_feedback(recipe: FeedbackRecipe) -> str:
    """What a run would do: calls, tokens and cost of each step and model, as a table. Nothing is asked or written.

    Raises:
      InputError: the prompts cannot be read.
    """
    prompts: list[Prompt] = []
    if recipe.completions is not None:
        is_written = (folder_of(recipe) / FILES["instructions"]).exists()
        if recipe.prompts or is_written:
            prompts, _ = _read_prompts(recipe)
        elif recipe.instructions is not None:
            prompts = assumed_prompts(recipe.instructions.num_drafts)
    return estimates_table(recipe, estimate(recipe, prompts))


def folder_of(recipe: FeedbackRecipe) -> Path:
    """Where the run's files lie."""
    return Path(recipe.output_dir) / recipe.name / "aif"


@dataclasses.dataclass
class _Step:
    """Counts of one step, as they go into the summary."""

    name: str
    counts: dict[str, Any] = dataclasses.field(default_factory=dict)
    unusable: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


class _Feedback:
    """One session of a run."""

    def __init__(self, recipe: FeedbackRecipe):
        self.recipe, self.folder = recipe, folder_of(recipe)
        self.session = Session(
            recipe.models,
            command="feedback",
            run=recipe.name,
            folder=recipe.calls.folder(recipe.output_dir),
            budget=recipe.budget,
            log=self.folder / "sessions.jsonl",
        )
        self.said_estimate = False

    async def run(self) -> dict[str, Any]:
        """All steps in order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        steps: list[tuple[str, Callable[[_Step], Awaitable[list[dict[str, Any]]]]]] = [
            ("instructions", self._instruct),
            ("completions", self._complete),
            ("annotation", self._annotate),
            ("binarisation", self._binarise),
        ]
        completions = self.recipe.completions
        async with self.session:
            self.session.open_if_limited({self.recipe.teacher, *(completions.students if completions else ())})
            for name, work in steps:
                if getattr(self.recipe, name) is not None:
                    await self._do(name, work)
        summary = {
            name: json.loads(self._counts_file(name).read_text(encoding="utf-8"))
            for name, _ in steps
            if getattr(self.recipe, name) is not None
        }
        write_json(self.folder / "summary.json", summary)
        return summary

    def _say_estimate(self) -> None:
        """Says once what the whole run takes."""
        if not self.said_estimate:
            self.said_estimate = True
            self.session.say(f"what the run takes in all:\n{describe_feedback(self.recipe)}")

    async def _do(self, name: str, work: Callable[[_Step], Awaitable[list[dict[str, Any]]]]) -> None:
        """One step, if its file is not there."""
        file = self.folder / FILES[name]
        if file.exists():
            self.session.say(f"{name}: done before -> {file}")
            return
        step = _Step(name)
        rows = await work(step)
        if step.unusable:
            step.counts["unusable"] = dict(sorted(step.unusable.items()))
        # The counts first: the step is done with its file.
        write_json(self._counts_file(name), step.counts)
        with open_whole(file) as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        shown = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in step.counts.items() if value)
        self.session.say(f"{name}: {shown} -> {file}")

    def _counts_file(self, name: str) -> Path:
        return self.folder / f"{name}.counts.json"

    async def _instruct(self, step: _Step) -> list[dict[str, Any]]:
        options = self.recipe.instructions
        assert options is not None
        topics, tasks = _read_seeds(options.seeds)
        teacher = self.session.caller(self.recipe.teacher)
        writer = Writer(teacher, options, self.recipe.seed, topics, tasks, unusable=step.unusable)
        self._say_estimate()
        drafts = await self.session.run_jobs(step.name, {teacher: writer.draft_jobs()})
        kept = writer.keep_good([drafts[number] for number in sorted(drafts)])
        rows = await self.session.run_jobs(step.name, {teacher: writer.dialogue_jobs(kept)})
        dialogues = [rows[number] for number in sorted(rows) if rows[number] is not None]
        num_failed = sum(count for kind, count in step.unusable.items() if kind.endswith(NO_ANSWER))
        self._check_failed(step, num_failed, len(drafts) + len(rows))
        step.counts |= {"drafts": options.num_drafts, "tasks": len(kept), "dialogues": len(dialogues)}
        step.counts["turns"] = sum(len(row["messages"]) // 2 for row in dialogues)
        step.counts["left_out"] = dict(sorted(writer.left_out.items()))
        if not dialogues:
            raise Unfinished(f"instructions: the filters left nothing of {options.num_drafts} drafts: {step.counts}")
        return dialogues

    async def _complete(self, step: _Step) -> list[dict[str, Any]]:
        options = self.recipe.completions
        assert options is not None
        prompts, counts = _read_prompts(self.recipe)
        step.counts |= {"prompts": len(prompts), **counts}
        self._say_estimate()
        callers = {name: self.session.caller(name) for name in options.students}
        jobs = completion_jobs(prompts, options, callers, seed=self.recipe.seed, unusable=step.unusable)
        found = await self.session.run_jobs(step.name, {callers[name]: part for name, part in jobs.items()})
        rows: list[list[dict[str, Any]]] = [[] for _ in prompts]
        for (index, _), completion in sorted(found.items()):
            rows[index].append(completion)
        self._check_failed(step, sum(not completion["response"] for completion in found.values()), len(found))
        return [completion_row(prompt, completions) for prompt, completions in zip(prompts, rows, strict=True)]

    async def _annotate(self, step: _Step) -> list[dict[str, Any]]:
        options = self.recipe.annotation
        assert options is not None
        rows = list(_read_lines(self.folder / FILES["completions"]))
        teacher = self.session.caller(self.recipe.teacher)
        jobs = annotation_jobs(rows, options, teacher, seed=self.recipe.seed, unusable=step.unusable)
        found = await self.session.run_jobs(
            step.name, {teacher: [((*key, number), job) for number, (key, job) in enumerate(jobs)]}
        )
        ratings: list[dict[str, list[Any]]] = [{aspect: [] for aspect in options.aspects} for _ in rows]
        for (index, aspect, _), rating in sorted(found.items(), key=lambda item: item[0][-1]):
            ratings[index][aspect].append(rating)
        self._check_failed(step, sum(rating is None for rating in found.values()), len(found))
        return [annotated_row(row, rating) for row, rating in zip(rows, ratings, strict=True)]

    async def _binarise(self, step: _Step) -> list[dict[str, Any]]:
        options = self.recipe.binarisation
        assert options is not None
        source = Source(source=str(self.folder / FILES["annotation"]))
        records, read = read_feedback([source], seed=self.recipe.seed, max_bad_rows=0.0)
        report = BinarisationReport(num_rows=read.num_rows)
        how = BinarisationOptions(
            seed=self.recipe.seed, rule=options.rule, margin=options.margin, keep_ties=options.keep_ties
        )
        pairs = [binarise(record, how, report) for record in records]
        step.counts.update(report.as_dict())
        if not report.num_pairs:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in report.dropped.items())
            raise Unfinished(
                f"{step.name}: no pair of {report.num_rows} prompts by rule {options.rule}: {reasons}. The answers and "
                "their scores are kept: another rule, margin or keep_ties with --new-run asks nobody again"
            )
        return [pair for pair in pairs if pair is not None]

    def _check_failed(self, step: _Step, num_failed: int, num_calls: int) -> None:
        step.counts |= {"calls": num_calls, "without_usable_answer": num_failed}
        if num_failed > self.recipe.max_failed * num_calls:
            reasons = ", ".join(f"{kind} {count}" for kind, count in sorted(step.unusable.items()))
            raise Unfinished(
                f"{step.name}: {num_failed} of {num_calls} questions have no usable answer ({reasons}), more than "
                f"max_failed allows ({self.recipe.max_failed:.0%}). All answers are kept, also what cannot be used: "
                "start again to ask once more where none came; raise max_failed to go on without these; or take more "
                "max_tries with --new-run"
            )


def _read_seeds(source: str) -> tuple[Sequence[str], Sequence[str]]:
    """Topics and tasks."""
    if source == "builtin":
        return TOPICS, SEED_TASKS
    topics, tasks = read_seeds([row for _, row in iterate_rows(source) if not isinstance(row, BadRow)])
    if not topics or not tasks:
        raise InputError(f"instructions.seeds: {source} has no {'topic' if tasks else 'task'}; wanted rows with both")
    return topics, tasks


def _read_prompts(recipe: FeedbackRecipe) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts, each once, and their counts."""
    if not recipe.prompts:
        return _written_tasks(folder_of(recipe) / FILES["instructions"]), {}
    prompts, report = read_prompts(recipe.prompts, seed=recipe.seed, max_bad_rows=recipe.max_bad_rows, progress=True)
    first = {prompt.texts: prompt for prompt in reversed(prompts)}
    kept = [prompt for prompt in prompts if first[prompt.texts] is prompt]
    return kept, {"repeated_prompts": len(prompts) - len(kept), "unreadable_prompts": len(report.bad_rows)}


def _written_tasks(path: Path) -> list[Prompt]:
    """The tasks of step (a): the first turns of its dialogues."""
    return [
        Prompt(({"role": "user", "content": row["prompt"]},), row["prompt_id"], f"{path}:{number}", row["source"])
        for number, row in enumerate(_read_lines(path), start=1)
    ]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        return [json.loads(line) for line in file]
