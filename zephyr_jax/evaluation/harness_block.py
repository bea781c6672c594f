"""What lm-evaluation-harness scored as a block of a table, a picture, and sentences on what may be said of it."""

from __future__ import annotations

from zephyr_jax.evaluation.harness import HarnessResults, HarnessScore
from zephyr_jax.evaluation.published import ACADEMIC
from zephyr_jax.evaluation.statistics import Estimate
from zephyr_jax.reporting.blocks import Block, Intervals, Note, Part, Row, Sentences, Table


def harness_block(results: HarnessResults, *, level: float) -> Block:
    """Everything.

    Args:
      results: the scores.
      level: of the intervals.
    """
    mains = [(score, score.metrics[score.main]) for score in results.scores if score.main is not None]
    parts: list[Part] = []
    if mains:
        caption = f"Scores with {level:.0%} intervals over the questions, each task by the metric in brackets."
        title = "Tasks of lm-evaluation-harness"
        rows = [_row(score, found) for score, found in mains]
        parts.append(Intervals(f"{title} with intervals", title, "score, %", rows, None, caption))
    parts.append(_table(results))
    sentences = [f"{label}: {comparison.sentence('items')}." for label, comparison in results.comparisons]
    if results.limit is not None:
        sentences.append(f"Asked were the first {results.limit} questions of a task alone: all may score otherwise.")
    parts.append(Sentences(sentences))
    versions = " and ".join(sorted({score.harness for score in results.scores}))
    parts.append(
        Note(f"Asked and scored by lm_eval {versions}; its own results and a line a question are in harness/.")
    )
    tiles = {f"{score.task}, {score.main}: {score.model}": f"{found.mean:.2f} %" for score, found in mains}
    return Block("Tasks of lm-evaluation-harness", parts, tiles)


def _row(score: HarnessScore, estimate: Estimate) -> Row:
    low, high = (estimate.mean if bound is None else bound for bound in (estimate.low, estimate.high))
    return f"{score.model}\n{score.label} ({score.main})", estimate.mean, low, high


def _table(results: HarnessResults) -> Table:
    head = ["model", "task", "shots", "metric, filter", "score", "error", "interval", "items", "source"]
    rows = []
    for score in results.scores:
        start = [score.model, score.task + (", chat template" if score.chat_template else "")]
        start += ["the task's" if score.shots is None else str(score.shots)]
        for name, found in score.metrics.items():
            error = "-" if found.standard_error is None else f"{found.standard_error:.2f}"
            interval = "-" if found.low is None or found.high is None else f"{found.low:.2f} to {found.high:.2f}"
            rows.append([*start, name, f"{found.mean:.2f}", error, interval, str(found.num_items), "here"])
        rows += [[*start, name, f"{value:.4f}", "-", "-", "-", "here"] for name, value in score.others.items()]
    asked = {(score.task, score.shots) for score in results.scores}
    rows += [
        [entry.model, entry.task, str(entry.shots), entry.metric, f"{entry.score:.2f}", *["-"] * 3, entry.source]
        for entry in ACADEMIC
        if (entry.task, entry.shots) in asked
    ]
    return Table(head, rows)
