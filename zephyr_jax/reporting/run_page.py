"""A run as one self-contained HTML page: what was run, its stages, held-out figures, AI feedback, evaluations.

Whatever the run's folder does not have is not there. Not here: reading the folder (run_files.py), a stage's section
(stage_page.py), and the blocks of an evaluation, which are handed in.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Sequence

from zephyr_jax.data.comparison_statistics import share_of
from zephyr_jax.recipe_file import differences, non_defaults
from zephyr_jax.reporting.blocks import Block, blocks_html, tiles_of
from zephyr_jax.reporting.page import Html, bullets, element, folded, page, section, table, tiles
from zephyr_jax.reporting.run_files import FeedbackFiles, Record, RunFiles, StageFiles
from zephyr_jax.reporting.stage_page import NAMES, duration, stage_section, state_of, time_text

# Figure -> what it is, and where the number of its items stands.
_HELD_OUT: dict[str, tuple[str, str | None]] = {
    "loss": ("loss on held-out dialogues, nats a token", None),
    "preference_accuracy": ("pairs with the chosen answer more probable", "num_pairs"),
    "exact_answers": ("answers exactly right, greedy", "num_exact"),
}


def run_page(
    run: RunFiles,
    evaluation: Sequence[Block],
    *,
    evaluation_note: str,
    beside: Sequence[tuple[RunFiles, Sequence[Block]]] = (),
    now: float,
) -> str:
    """The whole page.

    Args:
      run: what its folder says.
      evaluation: blocks of its evaluation; none: there is none.
      evaluation_note: how their intervals are to be read.
      beside: other runs and their evaluations, whose figures stand beside this one's.
      now: seconds since 1970, for the page's date and what is still going.

    Raises:
      InputError: matplotlib is not installed.
    """
    date = datetime.datetime.fromtimestamp(now, datetime.UTC)
    name = run.recipe.name if run.recipe else run.folder.name
    parts: list[Html] = []
    if run.problems:
        parts.append(section("Not all could be read", bullets(run.problems)))
    if beside:
        parts.append(section("Beside other runs", *_beside([(run, evaluation), *beside])))
    if run.recipe_text or run.stages:
        parts.append(section("What was run", *_what_was_run(run)))
    parts += [stage_section(stage, run.recipe, now=now) for stage in run.stages]
    if run.held_out:
        parts.append(section("Held-out rows", *_held_out(run)))
    if run.feedback is not None:
        parts.append(section("AI feedback", *_feedback(run.feedback)))
    sections = blocks_html(evaluation, name="e")
    if sections:
        parts += [section("Evaluation", element("p", f"{evaluation_note}.", class_="soft")), *sections]
    subtitle = f"{run_state(run, now=now)} This page was written on {date:%Y-%m-%d at %H:%M} UTC."
    return page(f"Run: {name}", subtitle, tiles(_figures(run) | tiles_of(evaluation)), *parts)


def run_state(run: RunFiles, *, now: float) -> str:
    """One sentence for each stage, and for AI feedback."""
    begun = {stage.name: stage for stage in run.stages}
    names = [name for name in NAMES if name in begun or (run.recipe and name in run.recipe.stages)]
    states = [f"{NAMES[name]}: {state_of(begun[name], now=now) if name in begun else 'not begun'}." for name in names]
    if run.feedback is not None:
        states.append(f"AI feedback: {'done' if run.feedback.is_done else 'not ended'}.")
    return " ".join(states)


def _figures(run: RunFiles) -> dict[str, str]:
    figures = {}
    for stage in run.stages:
        if not stage.steps:
            continue
        name = NAMES[stage.name]
        figures[f"{name} steps"] = f"{stage.last_step:,}" + (f" of {stage.num_steps:,}" if stage.num_steps else "")
        if stage.summary is not None:
            figures[f"{name} time"] = duration(stage.summary["seconds"])
        figures[f"{name} loss, last step"] = f"{stage.steps[-1]['loss']:.4f}"
        if stage.evaluations:
            last = stage.evaluations[-1]
            figures[f"{name} loss, held out"] = f"{last['eval/loss']:.4f}"
            if "eval/rewards/accuracies" in last:
                figures[f"{name} reward accuracy, held out"] = f"{last['eval/rewards/accuracies']:.1%}"
    return figures


def _beside(runs: Sequence[tuple[RunFiles, Sequence[Block]]]) -> Iterator[Html]:
    """The figures of several runs in columns, and what differs between the recipe of the first and the others'."""
    first = runs[0][0]
    names = [str(run.folder) if run.folder.name == first.folder.name else run.folder.name for run, _ in runs[1:]]
    columns = [_figures(run) | _held_out_figures(run) | tiles_of(blocks) for run, blocks in runs]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [[label, *(column.get(label, "-") for column in columns)] for label in labels]
    yield table(("", first.folder.name, *names), rows)
    note = "Figures side by side are no test: a recipe of evaluate with all the models compares them item by item."
    yield element("p", note, class_="soft")
    for name, (run, _) in zip(names, runs[1:], strict=True):
        if first.recipe and run.recipe:
            changes = differences(first.recipe, run.recipe)
            yield folded(f"{len(changes)} keys of the recipe differ in {name}", bullets(changes))


def _held_out_figures(run: RunFiles) -> dict[str, str]:
    if not run.held_out:
        return {}
    found = list(run.held_out.values())[-1]
    return {title: _held_out_text(found, key, counted) for key, (title, counted) in _HELD_OUT.items() if key in found}


def _what_was_run(run: RunFiles) -> Iterator[Html]:
    if run.stages:
        yield table(("", *(NAMES[stage.name] for stage in run.stages)), list(_fact_rows(run.stages)), as_text=True)
    if run.recipe is not None:
        rows = non_defaults(run.recipe)
        yield element("p", "The recipe, where it has no default or differs from it:", class_="soft")
        yield folded(f"{len(rows)} keys", table(("key", "value", "default"), rows, as_text=True))
    if run.recipe_text:
        yield folded("The whole recipe", element("pre", run.recipe_text))


def _fact_rows(stages: Sequence[StageFiles]) -> Iterator[list[str]]:
    def began(stage: StageFiles) -> str:
        return time_text(stage.sessions[0].began["began"]) if stage.sessions else ""

    def ended(stage: StageFiles) -> str:
        last = stage.sessions[-1].ended if stage.sessions else None
        return time_text(last["ended"]) if last else ""

    def devices(stage: StageFiles) -> str:
        facts = stage.facts
        if "devices" not in facts:
            return ""
        mesh = ", ".join(f"{axis} {size}" for axis, size in facts["mesh"].items())
        kind = facts.get("device_kind") or facts["versions"]["backend"]
        return f"{len(facts['devices'])} x {kind}; mesh {mesh}; processes {facts['processes']}"

    def versions(stage: StageFiles) -> str:
        return ", ".join(f"{name} {version}" for name, version in stage.facts.get("versions", {}).items())

    def seconds(stage: StageFiles) -> str:
        return duration(stage.summary["seconds"]) if stage.summary else ""

    for name, text in {
        "began": began, "ended": ended, "time, all sittings": seconds, "devices": devices, "versions": versions,
    }.items():  # fmt: skip
        cells = [text(stage) for stage in stages]
        if any(cells):
            yield [name, *cells]


def _held_out(run: RunFiles) -> Iterator[Html]:
    with_dsft = any(stage.name == "dsft" for stage in run.stages)
    names = {"base": f"before {'dSFT' if with_dsft else 'dDPO'}", "dsft": "after dSFT", "ddpo": "after dDPO"}
    rows = [
        [title, *(_held_out_text(found, key, counted) for found in run.held_out.values())]
        for key, (title, counted) in _HELD_OUT.items()
        if any(key in found for found in run.held_out.values())
    ]
    yield table(("", *(names.get(label, label) for label in run.held_out)), rows)
    note = "In brackets 95 % intervals (Wilson's), each pair and each prompt counted as independent."
    yield element("p", note, class_="soft")


def _held_out_text(found: Record, key: str, counted: str | None) -> str:
    """`0.1740`, or `54.2% of 240 (47.8 to 60.3)`; a dash where it was not measured."""
    if key not in found:
        return "-"
    if counted is None:
        return f"{found[key]:.4f}"
    if counted not in found:  # a run of an earlier version
        return f"{found[key]:.1%}"
    known = share_of(round(found[key] * found[counted]), found[counted])
    return f"{known.share:.1%} of {known.total} ({100 * known.low:.1f} to {100 * known.high:.1f})"


def _feedback(feedback: FeedbackFiles) -> Iterator[Html]:
    rows = []
    for step, counts in feedback.counts.items():
        shown = "not there" if counts is None else "; ".join(_count_text(key, value) for key, value in counts.items())
        rows.append([step, shown])
    yield table(("step", "counts"), rows, as_text=True)
    sums: dict[str, Counter[str]] = {}
    for session in feedback.sessions:
        for model, tally in session.get("models", {}).items():
            sums.setdefault(model, Counter()).update({key: tally.get(key, 0) for key in _CALLS})
    if sums:
        note = f"Calls in {len(feedback.sessions)} sittings; what an earlier one had kept was not asked again:"
        yield element("p", note, class_="soft")
        yield table(
            ("model", *_CALLS.values()), [[model, *(found[key] for key in _CALLS)] for model, found in sums.items()]
        )


_CALLS = {
    "answered": "answered",
    "kept": "kept before",
    "tries": "tries",
    "failed": "failed",
    "prompt_tokens": "tokens read",
    "completion_tokens": "tokens written",
}


def _count_text(key: str, value: object) -> str:
    name = key.replace("_", " ")
    if isinstance(value, dict):
        return f"{name}: {', '.join(f'{inner} {count}' for inner, count in value.items()) or 'none'}"
    return f"{name} {value}"
