"""A training stage on a run's page: its state, curves and their numbers, the check at step 0, rows lost, memory."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zephyr_jax.recipe import Recipe
from zephyr_jax.reporting.page import Html, bullets, element, figure, folded, panels, section, table
from zephyr_jax.reporting.plots import MAX_POINTS, Picture
from zephyr_jax.reporting.run_files import Record, StageFiles

NAMES = {"dsft": "dSFT", "ddpo": "dDPO"}
_ROWS_SHOWN = 12
_MINUTES_OF_A_STEP = 10


def duration(seconds: float) -> str:
    """`12 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def state_of(stage: StageFiles, *, now: float) -> str:
    """Whether the stage is done, was stopped, has failed, or seems to go on, in a few words."""
    if stage.summary is not None:
        return "done"
    at = f"step {stage.last_step}" + (f" of {stage.num_steps}" if stage.num_steps else "")
    if stage.sessions and stage.sessions[-1].ended is not None:
        how = stage.sessions[-1].how
        if how == "done":
            return "all steps are made; the model is being written, or that was cut off"
        if how == "interrupted":
            return f"stopped after {at}; the same command goes on"
        return f"failed after {at}: {how}"
    if stage.written is None:
        return "begun, nothing logged yet"
    silent = max(now - stage.written, 0)
    seems = "still going" if silent < 60 * _MINUTES_OF_A_STEP else "killed"
    last = f"{at} was logged" if stage.steps else "no step is logged, the file of them is from"
    return f"not ended: {last} {duration(silent)} before this page, so it seems {seems}"


def stage_section(stage: StageFiles, recipe: Recipe | None, *, now: float) -> Html:
    """The stage's section.

    Args:
      stage: what its folder says.
      recipe: the run's, where it could be read.
      now: seconds since 1970, for what is still going.

    Raises:
      InputError: matplotlib is not installed.
    """
    parts: list[object] = [bullets(_sentences(stage, recipe, now=now))]
    if stage.steps:
        parts.append(panels(_panels(stage)))
        parts.append(element("p", _curves_note(stage), class_="soft"))
        parts.append(folded("The numbers of the curves", *_number_tables(stage)))
    if len(stage.sessions) > 1:
        parts.append(folded("Sittings", _sessions_table(stage)))
    data = stage.facts.get("data")
    if data:
        parts.append(table(("rows", "read", "unreadable", "dropped", "cut"), list(_data_rows(data))))
    memory = list(_memory_rows(stage.summary or {}))
    if memory:
        head = ("micro-batches, rows, tokens a row", "state", "batch", "activations", "temporaries", "planned in all")
        parts.append(folded(_memory_summary(stage.summary or {}), table(head, memory)))
    if stage.samples:
        parts.append(folded("Answers on the way", *_samples(stage.samples)))
    return section(f"{NAMES[stage.name]} ({stage.name})", *parts)


def _sentences(stage: StageFiles, recipe: Recipe | None, *, now: float) -> Iterator[str]:
    state = state_of(stage, now=now)
    summary = stage.summary
    if summary is None:
        yield f"{state[0].upper()}{state[1:]}."
    else:
        rate = summary["num_tokens"] / max(summary["seconds"], 1e-9)
        yield (
            f"Done: {summary['steps']:,} steps, {summary['num_tokens']:,} tokens in {duration(summary['seconds'])} "
            f"({rate:,.0f} tokens/s, evaluations and compilation included)."
        )
        batches = summary["batches"]
        yield (
            f"{batches['target_tokens']:,} of its tokens are targets; {batches['padding_share']:.1%} of all positions "
            f"are padding; {summary['data_wait_share']:.1%} of the last sitting's time went into waiting for data."
        )
    if stage.resumed_at:
        steps = ", ".join(map(str, stage.resumed_at))
        times = "once" if len(stage.resumed_at) == 1 else f"{len(stage.resumed_at)} times"
        yield f"Taken up again {times}, after step {steps} (dotted lines)."
    if len(stage.evaluations) > 1:
        first, last = stage.evaluations[0], stage.evaluations[-1]
        text = f"Held-out loss {first['eval/loss']:.4f} at step {first['step']}, {last['eval/loss']:.4f} at step "
        yield text + f"{last['step']}."
    if stage.name == "ddpo" and stage.steps and stage.steps[0]["step"] == 1:
        yield _start_sentence(stage, recipe)


def _start_sentence(stage: StageFiles, recipe: Recipe | None) -> str:
    """The check that the policy starts at its reference: step 1 is logged only where it is passed."""
    first, summary = stage.steps[0], stage.summary or {}
    text = f"Start checked: at step 1 the loss is {first['loss']:.6f}"
    if "start_loss_at_zero_margin" in summary:
        text += f", at zero margin {summary['start_loss_at_zero_margin']:.6f}"
    if recipe and recipe.ddpo and "rewards/max_abs_margin" in first:
        text += f"; the largest |margin| / beta is {first['rewards/max_abs_margin'] / recipe.ddpo.beta:.1e} nats"
    if "start_tolerance" in summary:
        text += f" (at most {summary['start_tolerance']:g})"
    return f"{text}. The policy starts at its reference."


def _series(records: Sequence[Record], key: str) -> tuple[list[float], list[float]]:
    found = [(record["step"], record[key]) for record in records if isinstance(record.get(key), (int, float))]
    return [step for step, _ in found], [float(value) for _, value in found]


def _panels(stage: StageFiles) -> Iterator[Html]:
    """A small picture for each of the stage's measures that is there."""
    yield from _panel(stage, "loss", {"training": "loss"}, held_out=True, caption="Loss")
    if stage.name == "ddpo":
        rewards = {"chosen": "rewards/chosen", "rejected": "rewards/rejected"}
        yield from _panel(stage, "rewards", rewards, held_out=True, caption="Rewards, mean over pairs", level=0)
        yield from _panel(stage, "margins", {"training": "rewards/margins"}, held_out=True, caption="Reward margins")
        yield from _panel(
            stage, "accuracies", {"training": "rewards/accuracies"}, held_out=True, caption="Reward accuracies",
            level=0.5,
        )  # fmt: skip
        logps = {"chosen": "logps/chosen", "rejected": "logps/rejected"}
        yield from _panel(stage, "logps", logps, held_out=True, caption="Log-probs of answers, nats a pair")
    yield from _panel(stage, "rate", {"learning rate": "learning_rate"}, caption="Learning rate")
    yield from _panel(stage, "norm", {"gradient norm": "grad_norm"}, caption="Gradient norm before clipping")
    yield from _panel(stage, "speed", {"tokens/s": "tokens_per_second"}, caption="Tokens a second")
    yield from _panel(stage, "wait", {"share": "data_wait_share"}, caption="Share of a step spent waiting for data")


def _panel(
    stage: StageFiles,
    name: str,
    keys: dict[str, str],
    *,
    caption: str,
    held_out: bool = False,
    level: float | None = None,
) -> Iterator[Html]:
    series = {label: values for label, key in keys.items() if (values := _series(stage.steps, key))[0]}
    if not series:
        return
    points = {}
    if held_out:
        for label, key in keys.items():
            values = _series(stage.evaluations, f"eval/{key}")
            if values[0]:
                points["held out" if len(keys) == 1 else f"{label}, held out"] = values
    last = ", ".join(f"{label} {y[-1]:.4g}" for label, (_, y) in (series | points).items())
    picture = Picture(
        1, name=f"{stage.name}-{name}", label=f"{caption} of {stage.name} by step; last: {last}", height=2.7, width=4.4
    )
    picture.lines(series, points, title=caption, x_label="step", level=level, marks=stage.resumed_at)
    yield figure(picture.svg(), f"last: {last}")


def _curves_note(stage: StageFiles) -> str:
    note = "Lines: training, each step's own batch. Discs: held-out rows."
    if len(stage.steps) > MAX_POINTS:
        every = -(-len(stage.steps) // MAX_POINTS)
        note += f" Lines are means of {every} logged steps, in a band from least to most."
    return note


_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", "{:z.4f}".format),
    "rewards/chosen": ("reward chosen", "{:z.4f}".format),
    "rewards/rejected": ("rejected", "{:z.4f}".format),
    "rewards/margins": ("margin", "{:z.4f}".format),
    "rewards/accuracies": ("accuracy", "{:.3f}".format),
    "logps/chosen": ("logp chosen", "{:z.1f}".format),
    "logps/rejected": ("rejected", "{:z.1f}".format),
    "learning_rate": ("learning rate", "{:.3g}".format),
    "grad_norm": ("gradient norm", "{:.3g}".format),
    "tokens_per_second": ("tokens/s", "{:,.0f}".format),
    "data_wait_share": ("waiting", "{:.1%}".format),
}


def _number_tables(stage: StageFiles) -> Iterator[Html]:
    yield _number_table("training", stage.steps, "")
    if stage.evaluations:
        yield _number_table("held out", stage.evaluations, "eval/")


def _number_table(name: str, records: Sequence[Record], prefix: str) -> Html:
    shown = spread(records, _ROWS_SHOWN)
    keys = [key for key in _COLUMNS if any(prefix + key in record for record in shown)]
    head = (f"{name}: step", *(_COLUMNS[key][0] for key in keys))
    rows = [
        [
            str(record["step"]),
            *(_COLUMNS[key][1](record[prefix + key]) if prefix + key in record else "-" for key in keys),
        ]
        for record in shown
    ]
    return table(head, rows)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most so many of the items, evenly apart, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]


def _sessions_table(stage: StageFiles) -> Html:
    rows = []
    for session in stage.sessions:
        began, ended = session.began, session.ended
        last = [] if ended is None else [time_text(ended["ended"]), f"step {ended['after_step']}"]
        how = "killed" if ended is None and session is not stage.sessions[-1] else session.how
        rows.append([time_text(began["began"]), f"step {began['after_step']}", *(last or ["", ""]), how])
    return table(("began", "after", "ended", "after", "how"), rows, as_text=True)


def time_text(stamp: str) -> str:
    """`2026-11-26 00:41:22 UTC` of an ISO time."""
    return f"{datetime.datetime.fromisoformat(stamp).astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _data_rows(data: Record) -> Iterator[list[str]]:
    def counts(reasons: Record) -> str:
        return "; ".join(f"{count} {reason}" for reason, count in reasons.items()) or "0"

    for split, report in data.items():
        yield [split, str(report["rows"]), *(counts(report[kind]) for kind in ("unreadable", "dropped", "cut"))]


def _memory_rows(summary: Record) -> Iterator[list[str]]:
    for program in summary.get("compilation", {}).get("train_steps", ()):
        planned = program.get("bytes_per_device")
        if planned:
            parts = [planned[part] for part in ("state", "batch", "activations", "temporaries")]
            total = planned["state"] + planned["batch"] + planned["temporaries"]
            yield [" x ".join(map(str, program["shape"][:3])), *map(size_text, [*parts, total])]


def _memory_summary(summary: Record) -> str:
    most = max(
        sum(program["bytes_per_device"][part] for part in ("state", "batch", "temporaries"))
        for program in summary["compilation"]["train_steps"]
        if program.get("bytes_per_device")
    )
    text = f"Memory: the train step needs {size_text(most)} a device, as compiled (activations are of the temporaries)"
    peak = summary.get("peak_memory")
    return text + (f"; most in use {size_text(peak['bytes'])} ({peak['of']})" if peak else "")


def size_text(num_bytes: int) -> str:
    """`1.25 GB`, `4.30 MB`."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


def _samples(samples: Sequence[Record]) -> Iterator[Html]:
    steps = list(dict.fromkeys(sample["step"] for sample in samples))
    shown = set(spread(steps, 3))
    rows = [
        [str(sample["step"]), sample["messages"][-1]["content"], sample["response"]]
        for sample in samples
        if sample["step"] in shown
    ]
    texts = [[step, _short(prompt), _short(answer)] for step, prompt, answer in rows]
    yield table(("step", "prompt", "answer"), texts, as_text=True)


def _short(text: str, length: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."
