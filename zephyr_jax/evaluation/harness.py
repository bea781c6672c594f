"""lm-evaluation-harness on models of ours as a recipe asks for it: its tasks, its scores, with intervals of ours.

    academic:
      model: runs/zephyr/ddpo
      harness: {tasks: {arc_challenge: 25, hellaswag: 10, mmlu: 5, truthfulqa_mc2: 0}}

Answers are kept by the harness's own cache, under a key of the model: an interrupted run goes on. Needs the extra
[harness]; not here: the model as the harness knows models (harness_model.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_jax.academic_options import HarnessOptions
from zephyr_jax.evaluation.academic.samples import folder_name
from zephyr_jax.evaluation.statistics import Comparison, Estimate, Sampling, compare_by_task, estimate_mean
from zephyr_jax.evaluation_recipe import EvaluationRecipe
from zephyr_jax.records import InputError
from zephyr_jax.whole_files import open_whole

if TYPE_CHECKING:
    from zephyr_jax.evaluation.academic.local_model import LocalModel

# What stands for a task, where it has it; else its first metric.
MAIN_METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc")


@dataclasses.dataclass(frozen=True)
class HarnessScore:
    """A model's scores on a task.

    Attributes:
      model, task: their names.
      shots: worked examples before a question; None: as the task has it.
      chat_template: whether prompts were turns of the model's chat template.
      metrics: "metric, filter" -> score over the questions, in percent where every question's score is from 0 to 1.
      others: what the harness says of metrics that are no mean over questions, such as perplexities.
      main: the metric that stands for the task; None: it has none over questions.
      by_item: (task, question) -> score by that metric.
      harness: the harness's version.
    """

    model: str
    task: str
    shots: int | None
    chat_template: bool
    metrics: Mapping[str, Estimate]
    others: Mapping[str, float]
    main: str | None
    by_item: Mapping[Hashable, float]
    harness: str

    @property
    def label(self) -> str:
        """The task with its shots."""
        return task_label(self.task, self.shots)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "task": self.task,
            "shots": self.shots,
            "chat_template": self.chat_template,
            "metric": self.main,
            "metrics": {name: found.as_dict(("score", "standard_error")) for name, found in self.metrics.items()},
            "others": dict(self.others),
            "lm_eval": self.harness,
        }


def task_label(task: str, shots: int | None) -> str:
    """The task with its shots, for people and for names of files."""
    return task if shots is None else f"{task}-{shots}shot"


@dataclasses.dataclass(frozen=True)
class HarnessResults:
    """All scores, and models compared on each task; with a limit, on so many first questions of a task alone."""

    scores: tuple[HarnessScore, ...]
    comparisons: tuple[tuple[str, Comparison], ...]
    limit: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "limit": self.limit,
            "tasks": [score.as_dict() for score in self.scores],
            "comparisons": [{"task": label} | comparison.as_dict() for label, comparison in self.comparisons],
        }


def harness_results(scores: Sequence[HarnessScore], *, limit: int | None = None, sampling: Sampling) -> HarnessResults:
    """The scores of all models, and every two models compared on each task; `limit` is the recipe's."""
    found = [(score.label, score.model, score.by_item) for score in scores]
    return HarnessResults(tuple(scores), compare_by_task(found, sampling=sampling), limit)


def find_tasks(recipe: EvaluationRecipe) -> Any:
    """What knows the harness's tasks, for `run_harness`; None where the recipe has none of them.

    Raises:
      InputError: the extra is missing, or the harness does not know one of the recipe's tasks.
    """
    options = recipe.academic.harness if recipe.academic else None
    if options is None:
        return None
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"academic.harness: lm-evaluation-harness cannot be imported ({error}); wanted pip install "
            "'zephyr-jax[harness]', or the tasks that are scored here from files (academic.tasks)"
        ) from None
    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise InputError(f"academic.harness.include_path {options.include_path}: is no folder; wanted one with tasks")
    manager = TaskManager(include_path=options.include_path)
    known = set(manager.all_tasks)
    unknown = [name for name in options.tasks if name not in known]
    if unknown:
        raise InputError(
            f"academic.harness.tasks: the harness knows no {', '.join(unknown)}; `lm_eval ls tasks` lists what it knows"
        )
    return manager


def run_harness(
    model: LocalModel, options: HarnessOptions, manager: Any, *, folder: Path, sampling: Sampling
) -> list[HarnessScore]:
    """Has the harness run its tasks on one model.

    Args:
      model: its weights are read.
      options: of the recipe.
      manager: of `find_tasks`.
      folder: where the harness's results, samples and cache go.
      sampling: of the intervals.

    Raises:
      InputError: a task's data cannot be had, or the folder cannot be written.
    """
    import lm_eval

    from zephyr_jax.evaluation.harness_model import ZephyrLM

    key = hashlib.sha256(json.dumps(model.fingerprint(), sort_keys=True).encode()).hexdigest()[:16]
    own = folder / folder_name(model.name)
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir: {own} cannot be written ({error.strerror})") from error
    model.load()
    ours = ZephyrLM(model.text_model, batch_size=model.batch_size)
    scores = []
    for task, shots in options.tasks.items():
        print(f"evaluate: {task_label(task, shots)} by {model.name}, asked by lm_eval", file=sys.stderr)
        try:
            found = lm_eval.simple_evaluate(
                ours,
                tasks=[task],
                num_fewshot=shots,
                limit=options.limit,
                task_manager=manager,
                apply_chat_template=options.chat_template,
                use_cache=str(own / f"answers-{key}"),
                bootstrap_iters=0,
                log_samples=True,
            )
        except (ConnectionError, FileNotFoundError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"academic.harness.tasks.{task}: cannot be run ({reason}); where the hub is not within reach, give "
                "tasks on local files (academic.tasks, or the harness's own YAML under academic.harness.include_path)"
            ) from error
        _write(own / task_label(task, shots), found)
        scores.append(read_score(found, model=model.name, task=task, shots=shots, options=options, sampling=sampling))
    return scores


def read_score(
    found: Mapping[str, Any], *, model: str, task: str, shots: int | None, options: HarnessOptions, sampling: Sampling
) -> HarnessScore:
    """A task's scores, or those of all tasks of a group together, each question counted alike.

    Args:
      found: what simple_evaluate says, with samples.
      model, task, shots: what was asked.
      options: of the recipe.
      sampling: of the intervals.
    """
    values: dict[str, dict[Hashable, float]] = {}
    for name, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                if isinstance(sample[metric], (bool, int, float)):
                    by_item = values.setdefault(f"{metric}, {sample['filter']}", {})
                    by_item[name, sample["doc_id"]] = float(sample[metric])
    own = found["results"].get(task, {})
    for name in list(values):
        said = own.get(name.replace(", ", ","))
        if said is not None and abs(said - statistics.fmean(values[name].values())) > 1e-6:
            del values[name]  # put together in another way than by a mean: the harness's own figure stands
    metrics = {metric: _estimate(list(by_item.values()), sampling) for metric, by_item in values.items()}
    others = {
        name.replace(",", ", "): float(value)
        for name, value in own.items()
        if isinstance(value, (int, float)) and "," in name and "_stderr" not in name
    }
    main = next((name for start in MAIN_METRICS for name in metrics if name.startswith(f"{start}, ")), None)
    main = main or next(iter(metrics), None)
    by_item = values[main] if main else {}
    scale = 100 if _is_share(list(by_item.values())) else 1
    return HarnessScore(
        model=model,
        task=task,
        shots=shots,
        chat_template=options.chat_template,
        metrics=metrics,
        others={name: value for name, value in others.items() if name not in metrics},
        main=main,
        by_item={item: scale * value for item, value in by_item.items()},
        harness=found["lm_eval_version"],
    )


def _estimate(values: Sequence[float], sampling: Sampling) -> Estimate:
    """The mean, in percent where all are from 0 to 1."""
    if _is_share(values):
        return estimate_mean([100 * value for value in values], whole=100.0, sampling=sampling)
    return estimate_mean(values, sampling=sampling)


def _is_share(values: Sequence[float]) -> bool:
    return all(0 <= value <= 1 for value in values)


def _write(path: Path, found: Mapping[str, Any]) -> None:
    """The harness's results as it says them, and a line a question."""
    results = {name: value for name, value in found.items() if name != "samples"}
    with open_whole(path.with_name(path.name + ".json")) as file:
        file.write(json.dumps(results, indent=1, default=str) + "\n")
    with open_whole(path.with_name(path.name + ".samples.jsonl")) as file:
        for name, samples in found["samples"].items():
            for sample in samples:
                file.write(json.dumps({"task": name} | sample, ensure_ascii=False, default=str) + "\n")
