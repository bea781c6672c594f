"""Academic scores as a block of a table, a picture, and sentences on what may be said of them."""

from __future__ import annotations

from zephyr_jax.evaluation.academic.results import AcademicResults, TaskScore
from zephyr_jax.evaluation.published import ACADEMIC
from zephyr_jax.evaluation.statistics import Estimate
from zephyr_jax.reporting.blocks import Block, Intervals, Note, Part, Row, Sentences, Table

# A subject of fewer items says nothing: its score is in results.json alone.
_ITEMS_TO_SHOW = 5


def academic_block(results: AcademicResults, *, level: float) -> Block:
    """Everything.

    Args:
      results: the scores.
      level: of the intervals.
    """
    rows = [_row(score, score.estimate) for score in results.scores if score.estimate]
    caption = f"Scores in percent with {level:.0%} intervals over the items, each task by the metric in brackets."
    parts: list[Part] = [
        Intervals("Academic tasks with intervals", "Academic tasks", "score, %", rows, None, caption),
        _table(results),
    ]
    if any(found.num_items >= _ITEMS_TO_SHOW for score in results.scores for found in score.groups.values()):
        parts.append(_group_table(results))
    parts.append(Sentences(_sentences(results)))
    parts.append(Note("Prompts and scores are those of lm-evaluation-harness 0.4.13; a line an item is in academic/."))
    tiles = {
        f"{score.task.options.task}, {score.metric}: {score.model}": f"{score.estimate.mean:.2f} %"
        for score in results.scores
        if score.estimate
    }
    return Block("Academic tasks", parts, tiles)


def _row(score: TaskScore, estimate: Estimate) -> Row:
    low, high = (estimate.mean if bound is None else bound for bound in (estimate.low, estimate.high))
    return f"{score.model}\n{score.task.options.label} ({score.metric})", estimate.mean, low, high


def _table(results: AcademicResults) -> Table:
    head = ["model", "task", "shots", "metric", "score", "error", "interval", "guessing", "items", "source"]
    rows = []
    for score in results.scores:
        options = score.task.options
        for name, found in score.metrics.items():
            rows.append([
                score.model,
                options.task + (", chat template" if options.chat_template else ""),
                str(options.num_shots),
                name,
                f"{found.mean:.2f}",
                "-" if found.standard_error is None else f"{found.standard_error:.2f}",
                "-" if found.low is None or found.high is None else f"{found.low:.2f} to {found.high:.2f}",
                "-" if score.guessing is None else f"{score.guessing:.2f}",
                str(found.num_items),
                "here",
            ])  # fmt: skip
    asked = {(score.task.options.task, score.task.options.num_shots) for score in results.scores}
    rows += [
        [entry.model, entry.task, str(entry.shots), entry.metric, f"{entry.score:.2f}", *["-"] * 3, "all", entry.source]
        for entry in ACADEMIC
        if (entry.task, entry.shots) in asked
    ]
    return Table(head, rows)


def _group_table(results: AcademicResults) -> Table:
    """A row a subject, a column a model."""
    grouped = [score for score in results.scores if score.groups]
    names = sorted({name for score in grouped for name in score.groups})
    rows = []
    for name in names:
        cells = [score.groups.get(name) for score in grouped]
        items = next(cell.num_items for cell in cells if cell)
        rows.append([name, str(items), *("-" if cell is None else _with_interval(cell) for cell in cells)])
    return Table(["subject", "items", *(f"{score.model}, {score.task.options.label}" for score in grouped)], rows)


def _with_interval(found: Estimate) -> str:
    interval = "" if found.low is None or found.high is None else f" ({found.low:.0f} to {found.high:.0f})"
    return f"{found.mean:.1f}{interval}"


def _sentences(results: AcademicResults) -> list[str]:
    sentences = [f"{label}: {comparison.sentence('items')}." for label, comparison in results.comparisons]
    for score in results.scores:
        task, total = score.task.options.task, len(score.task.items)
        if score.within_noise_of_guessing:
            sentences.append(f"{score.model} on {task} is within noise of guessing ({score.guessing:.2f} %).")
        if score.num_unchecked:
            sentences.append(
                f"{score.num_unchecked} of {total} items of {task} have no score for {score.model} and are left out: "
                "their instructions on the answer's language need langdetect (pip install 'zephyr-jax[ifeval]')."
            )
    limited = [score.task.options for score in results.scores if score.task.options.limit is not None]
    if limited:
        first = dict.fromkeys(
            f"{options.limit} of {options.task}" + (", each subject" if options.task == "mmlu" else "")
            for options in limited
        )
        sentences.append(
            f"Asked were the first rows of a file alone ({'; '.join(first)}): the whole file may score otherwise."
        )
    if any(score.task.options.task == "ifeval" for score in results.scores):
        sentences.append(
            "Sentences are counted by rules of ours, where IFEval takes NLTK's trained model: they differ by more than "
            "one in 2 % of chat models' answers."
        )
    return sentences + list(dict.fromkeys(note for score in results.scores for note in score.task.notes))
