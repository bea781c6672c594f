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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.data.binarisation import BinarisationOptions, BinarisationReport, binarise
from zephyr_jax.data.sources import iterate_rows, read_feedback, read_prompts
from zephyr_jax.feedback_recipe import FeedbackRecipe
from zephyr_jax.judging.annotation import annotated_row, annotation_jobs
from zephyr_jax.judging.calls import GIVEN_UP, NO_ANSWER, Caller
from zephyr_jax.judging.completions import completion_jobs, completion_row
from zephyr_jax.judging.estimate import assumed_prompts, estimate, estimates_table
from zephyr_jax.judging.instructions import Writer, read_seeds
from zephyr_jax.judging.seed_tasks import SEED_TASKS, TOPICS
from zephyr_jax.judging.session import KeyedJob, Session
from zephyr_jax.recipe import Source
from zephyr_jax.records import BadRow, InputError, Prompt, Unfinished
from zephyr_jax.respondent_options import Budget
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


def describe_feedback(recipe: FeedbackRecipe, prompts: Sequence[Prompt] | None = None) -> str:
    """What a run would do: calls, tokens and cost of each step and model, as a table. Nothing is asked or written.

    Args:
      recipe: of the run.
      prompts: those of its completions, where they have been read.

    Raises:
      InputError: the prompts cannot be read.
    """
    if prompts is None and recipe.completions is not None:
        if recipe.prompts or (folder_of(recipe) / FILES["instructions"]).exists():
            prompts, _ = _read_prompts(recipe)
        elif recipe.instructions is not None:
            prompts = assumed_prompts(recipe.instructions.num_drafts)
    return estimates_table(recipe, estimate(recipe, prompts or ()))


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
        async with self.session:
            self._open_models()
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

    def _open_models(self) -> None:
        """Opens whoever is still to be asked: a key that is not set is said before another model has answered.

        With a budget all are opened, since what each has cost in earlier sittings is part of it.
        """
        recipe = self.recipe
        asked: dict[str, tuple[str, ...]] = {"instructions": (recipe.teacher,), "annotation": (recipe.teacher,)}
        if recipe.completions is not None:
            asked["completions"] = recipe.completions.students
        left = [name for name in asked if getattr(recipe, name) is not None and not self._file(name).exists()]
        for step in asked if left and recipe.budget != Budget() else left:
            for name in asked[step]:
                self.session.caller(name)

    def _say_estimate(self, prompts: Sequence[Prompt] | None = None) -> None:
        """Says once what the whole run takes."""
        if not self.said_estimate:
            self.said_estimate = True
            self.session.say(f"what the run takes in all:\n{describe_feedback(self.recipe, prompts)}")

    async def _do(self, name: str, work: Callable[[_Step], Awaitable[list[dict[str, Any]]]]) -> None:
        """One step, if its file is not there."""
        file = self._file(name)
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
        self.session.say(f"{name}: {_shown(step.counts)} -> {file}")

    def _file(self, name: str) -> Path:
        return self.folder / FILES[name]

    def _counts_file(self, name: str) -> Path:
        return self.folder / f"{name}.counts.json"

    async def _instruct(self, step: _Step) -> list[dict[str, Any]]:
        options = self.recipe.instructions
        assert options is not None
        topics, tasks = _read_seeds(options.seeds)
        teacher = self.session.caller(self.recipe.teacher)
        writer = Writer(teacher, options, self.recipe.seed, topics, tasks, unusable=step.unusable)
        self._say_estimate()
        # A task that was given up is left out, and counted there.
        drafts = await self._run_jobs(step, {teacher: writer.draft_jobs()}, failed=(NO_ANSWER,))
        kept = writer.keep_good([drafts[number] for number in sorted(drafts)])
        rows = await self._run_jobs(step, {teacher: writer.dialogue_jobs(kept)}, failed=(NO_ANSWER,))
        dialogues = [rows[number] for number in sorted(rows) if rows[number] is not None]
        step.counts |= {"drafts": options.num_drafts, "tasks": len(kept), "dialogues": len(dialogues)}
        step.counts["turns"] = sum(len(row["messages"]) // 2 for row in dialogues)
        step.counts["left_out"] = dict(sorted(writer.left_out.items()))
        if not dialogues:
            raise Unfinished(f"instructions: the filters left nothing: {_shown(step.counts)}")
        return dialogues

    async def _complete(self, step: _Step) -> list[dict[str, Any]]:
        options = self.recipe.completions
        assert options is not None
        prompts, counts = _read_prompts(self.recipe)
        step.counts |= {"prompts": len(prompts), **counts}
        self._say_estimate(prompts)
        callers = {name: self.session.caller(name) for name in options.students}
        jobs = completion_jobs(prompts, options, callers, seed=self.recipe.seed, unusable=step.unusable)
        found = await self._run_jobs(step, {callers[name]: part for name, part in jobs.items()})
        rows: list[list[dict[str, Any]]] = [[] for _ in prompts]
        for (index, _), completion in sorted(found.items()):
            rows[index].append(completion)
        return [completion_row(prompt, completions) for prompt, completions in zip(prompts, rows, strict=True)]

    async def _annotate(self, step: _Step) -> list[dict[str, Any]]:
        options = self.recipe.annotation
        assert options is not None
        rows = list(_read_lines(self._file("completions")))
        teacher = self.session.caller(self.recipe.teacher)
        jobs = annotation_jobs(rows, options, teacher, seed=self.recipe.seed, unusable=step.unusable)
        found = await self._run_jobs(step, {teacher: [((*key, number), job) for number, (key, job) in enumerate(jobs)]})
        step.counts["prompts_with_nothing_to_compare"] = len(rows) - len({index for index, *_ in found})
        ratings: list[dict[str, list[Any]]] = [{aspect: [] for aspect in options.aspects} for _ in rows]
        for (index, aspect, _), rating in sorted(found.items(), key=lambda item: item[0][-1]):
            ratings[index][aspect].append(rating)
        return [annotated_row(row, rating) for row, rating in zip(rows, ratings, strict=True)]

    async def _binarise(self, step: _Step) -> list[dict[str, Any]]:
        options = self.recipe.binarisation
        assert options is not None
        source = Source(source=str(self._file("annotation")))
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

    async def _run_jobs(
        self, step: _Step, jobs: Mapping[Caller, Sequence[KeyedJob]], *, failed: Sequence[str] = (NO_ANSWER, GIVEN_UP)
    ) -> dict[Any, Any]:
        """Runs jobs of a step; stops as soon as more of its questions came to nothing than may in all.

        Args:
          step: its counts grow.
          jobs: as session.run_jobs takes them.
          failed: what became of questions that count as such; a draft or a dialogue is one question here.
        """
        counts = step.counts
        counts["questions"] = counts.get("questions", 0) + sum(map(len, jobs.values()))

        def count(result: Any = None) -> None:
            num_failed = sum(number for kind, number in step.unusable.items() if kind.endswith(tuple(failed)))
            counts["without_usable_answer"] = num_failed
            if num_failed > self.recipe.max_failed * counts["questions"]:
                self.session.stop.ask(self._too_many_failed(step))

        count()
        return await self.session.run_jobs(step.name, jobs, on_result=count)

    def _too_many_failed(self, step: _Step) -> Unfinished:
        reasons = ", ".join(f"{kind} {number}" for kind, number in sorted(step.unusable.items()))
        counts = step.counts
        return Unfinished(
            f"{step.name}: {counts['without_usable_answer']} of {counts['questions']} questions have no usable answer "
            f"({reasons}; examples are in the table above), more than max_failed allows "
            f"({self.recipe.max_failed:.0%}). All answers are kept, also what cannot be used: start again to ask once "
            "more where none came; raise max_failed to go on without these; or take more max_tries with --new-run"
        )


def _shown(counts: Mapping[str, Any]) -> str:
    """What is not zero of counts, within each other or not: `calls 80, dropped (chosen and rejected tie 2)`."""
    parts = []
    for key, value in counts.items():
        shown = _shown(value) if isinstance(value, Mapping) else str(value)
        if value and shown:
            parts.append(f"{key.replace('_', ' ')} {f'({shown})' if isinstance(value, Mapping) else shown}")
    return ", ".join(parts)


def _read_seeds(source: str) -> tuple[Sequence[str], Sequence[str]]:
    """Topics and tasks."""
    if source == "builtin":
        return TOPICS, SEED_TASKS
    rows = []
    for location, row in iterate_rows(source):
        if isinstance(row, BadRow):
            raise InputError(f"instructions.seeds: {location}: {row.reason}")
        rows.append(row)
    topics, tasks = read_seeds(rows)
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
