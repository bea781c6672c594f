"""Scores of academic tasks with how sure they are, and models compared on the same items. No JAX.

All scores are in percent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from zephyr_jax.evaluation.academic.asking import Answered
from zephyr_jax.evaluation.academic.items import ChoiceItem, Scores
from zephyr_jax.evaluation.academic.tasks import METRICS, Task
from zephyr_jax.evaluation.statistics import Comparison, Estimate, Sampling, compare_by_task, estimate_mean


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """A model's scores on a task.

    Attributes:
      model: its name.
      task: with its items.
      metrics: metric -> score in percent, that which stands for the task first; over instructions, where an item has
        several, in groups of an item; without those that no item has a score for.
      groups: subject -> the score of the first metric.
      guessing: what a choice at random is expected to score in percent; None: nothing is chosen.
      num_unchecked: items without a score, which are in none of them.
      by_item: number of the item's row -> score in percent, of the first metric.
      samples: the file with a line an item.
    """

    model: str
    task: Task
    metrics: Mapping[str, Estimate]
    groups: Mapping[str, Estimate]
    guessing: float | None
    num_unchecked: int
    by_item: Mapping[Hashable, float]
    samples: str

    @property
    def metric(self) -> str:
        """The metric that stands for the task."""
        return METRICS[self.task.options.task][0]

    @property
    def estimate(self) -> Estimate | None:
        """The score that stands for the task; None where no item has one."""
        return self.metrics.get(self.metric)

    @property
    def within_noise_of_guessing(self) -> bool:
        """Whether the interval holds what guessing scores."""
        found = self.estimate
        if self.guessing is None or found is None or found.low is None or found.high is None:
            return False
        return bool(found.low <= self.guessing <= found.high)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        options = self.task.options
        return {
            "model": self.model,
            "task": options.task,
            "file": options.file,
            "shots": options.num_shots,
            "chat_template": options.chat_template,
            "metric": self.metric,
            "metrics": {name: found.as_dict(("score", "standard_error")) for name, found in self.metrics.items()},
            "groups": {name: found.as_dict(("score", "standard_error")) for name, found in self.groups.items()},
            "guessing": self.guessing,
            "within_noise_of_guessing": self.within_noise_of_guessing,
            "num_unchecked": self.num_unchecked,
            "samples": self.samples,
            "notes": list(self.task.notes),
        }


@dataclasses.dataclass(frozen=True)
class AcademicResults:
    """All scores, and models compared on each task."""

    scores: tuple[TaskScore, ...]
    comparisons: tuple[tuple[str, Comparison], ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tasks": [score.as_dict() for score in self.scores],
            "comparisons": [{"task": label} | comparison.as_dict() for label, comparison in self.comparisons],
        }


def academic_results(answered: Sequence[Answered], *, sampling: Sampling) -> AcademicResults:
    """The scores of what was answered, and every two models compared on each task."""
    scores = tuple(_task_score(found, sampling) for found in answered)
    found = [(score.task.options.label, score.model, score.by_item) for score in scores]
    return AcademicResults(scores, compare_by_task(found, within=(0.0, 100.0), sampling=sampling))


def _task_score(answered: Answered, sampling: Sampling) -> TaskScore:
    task = answered.task
    by_item = [(item, task.scores(item, outcome)) for item, outcome in zip(task.items, answered.outcomes, strict=True)]
    names = METRICS[task.options.task]
    metrics = {name: _estimate([scores for _, scores in by_item], name, sampling) for name in names}
    groups: dict[str, list[Scores]] = {}
    for item, scores in by_item:
        if item.group:
            groups.setdefault(item.group, []).append(scores)
    by_group = {group: _estimate(found, names[0], sampling) for group, found in groups.items()}
    main = {item.number: scores[names[0]] for item, scores in by_item}
    chances = [sum(item.correct) / len(item.correct) for item in task.items if isinstance(item, ChoiceItem)]
    return TaskScore(
        model=answered.model,
        task=task,
        metrics={name: found for name, found in metrics.items() if found},
        groups={group: found for group, found in by_group.items() if found},
        guessing=100 * float(np.mean(chances)) if chances else None,
        num_unchecked=sum(score is None for score in main.values()),
        by_item={number: 100 * score for number, score in main.items() if isinstance(score, float)},
        samples=str(answered.samples),
    )


def _estimate(scores: Sequence[Scores], name: str, sampling: Sampling) -> Estimate | None:
    """The mean of a metric in percent; None where it has no value. An item's own values are one group."""
    values: list[float] = []
    groups: list[int] = []
    for number, found in enumerate(scores):
        value = found[name]
        own = value if isinstance(value, tuple) else (value,)
        values += [100 * score for score in own if score is not None]
        groups += [number for score in own if score is not None]
    return estimate_mean(values, groups=groups, whole=100.0, sampling=sampling) if values else None
