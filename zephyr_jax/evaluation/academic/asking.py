"""Puts the items of tasks to models, with a progress bar; what was answered before is kept. No JAX of its own."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from zephyr_jax.evaluation.academic.items import AcademicModel, ChoiceItem, Likelihood, Outcome, PromptItem
from zephyr_jax.evaluation.academic.samples import SampleFile
from zephyr_jax.evaluation.academic.tasks import Task


@dataclasses.dataclass(frozen=True)
class Answered:
    """A task answered by a model.

    Attributes:
      model: its name.
      task: with its items.
      outcomes: what it did, by item.
      samples: the file with a line an item.
    """

    model: str
    task: Task
    outcomes: tuple[Outcome, ...]
    samples: Path


def ask_tasks(model: AcademicModel, tasks: Sequence[Task], *, folder: Path) -> list[Answered]:
    """Every task to one model.

    Args:
      model: its weights are read where something is missing.
      tasks: with their items.
      folder: where the samples lie.

    Raises:
      InputError: the folder cannot be written, or the model cannot take an item.
    """
    return [_ask(model, task, folder=folder) for task in tasks]


def _ask(model: AcademicModel, task: Task, *, folder: Path) -> Answered:
    samples = SampleFile(folder, task, model=model.name, fingerprint=model.fingerprint())
    try:
        missing = samples.missing()
        if samples.num_kept:
            kept = f"{samples.num_kept} of {len(task.items)} items are kept from before"
            print(f"evaluate: {task.options.label} by {model.name}: {kept}", file=sys.stderr)
        if missing:
            model.load()
            description = f"{task.options.label} by {model.name}"
            with tqdm(total=len(task.items), initial=samples.num_kept, unit="item", desc=description) as bar:
                if isinstance(task.items[0], ChoiceItem):
                    _ask_choices(model, task, missing, samples, bar)
                else:
                    _ask_prompts(model, task, missing, samples, bar)
        return Answered(model.name, task, tuple(samples.finish()), samples.path)
    finally:
        samples.close()


def _ask_choices(model: AcademicModel, task: Task, missing: Sequence[int], samples: SampleFile, bar: tqdm) -> None:
    requests: list[tuple[str, str]] = []
    owners: list[tuple[int, int]] = []  # of a request: its item, and the choice
    waiting: dict[int, list[Likelihood | None]] = {}
    for index in missing:
        item = task.items[index]
        assert isinstance(item, ChoiceItem)
        requests += item.requests()
        owners += [(index, choice) for choice in range(len(item.choices))]
        waiting[index] = [None] * len(item.choices)
    for request, likelihood in model.loglikelihoods(requests):
        index, choice = owners[request]
        waiting[index][choice] = likelihood
        known = [found for found in waiting[index] if found is not None]
        if len(known) == len(waiting[index]):
            samples.keep(index, known)
            bar.update()


def _ask_prompts(model: AcademicModel, task: Task, missing: Sequence[int], samples: SampleFile, bar: tqdm) -> None:
    items = [task.items[index] for index in missing]
    num_tokens = 0
    for place, generated in model.generate([item for item in items if isinstance(item, PromptItem)]):
        samples.keep(missing[place], generated)
        num_tokens += generated.num_tokens
        bar.set_postfix_str(f"{num_tokens} tokens")
        bar.update()
