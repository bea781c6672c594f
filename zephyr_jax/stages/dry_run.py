"""What a run would do, without doing it: steps, tokens, rows dropped and cut, one decoded example a stage.

The data is read and tokenised for real; no weights are read, nothing is trained and no file is written.
"""

from __future__ import annotations

import numpy as np

from zephyr_jax.data.loader import StepBatches
from zephyr_jax.records import ReadReport
from zephyr_jax.stages.ddpo import ddpo_batches, load_ddpo_data
from zephyr_jax.stages.dsft import dsft_batches, load_dsft_data
from zephyr_jax.stages.start import Run
from zephyr_jax.training.optimizer import make_schedule

SHOWN_CHARACTERS = 1200


def describe_stage(run: Run, stage: str) -> str:
    """The stage in a few lines, with its first example: `[[...]]` marks what it learns from."""
    if stage == "dsft":
        data = load_dsft_data(run, keep=False)
        ids, is_target = data.train[0]
        return "\n".join(
            [
                *_plan(run, stage, dsft_batches(run, data), data.reports()),
                "  first dialogue, the target tokens in [[ ]]:",
                _indented(_marked(run, ids, is_target)),
            ]
        )
    pairs = load_ddpo_data(run, keep=False)
    prompt, chosen, rejected = pairs.train[0]
    return "\n".join(
        [
            *_plan(run, stage, ddpo_batches(run, pairs.train), pairs.reports()),
            "  first pair, the response tokens in [[ ]]: prompt, chosen, rejected:",
            _indented(run.tokenizer.decode(prompt, skip_special_tokens=False)),
            _indented(_marked(run, chosen, np.ones(len(chosen), bool))),
            _indented(_marked(run, rejected, np.ones(len(rejected), bool))),
        ]
    )


def _plan(run: Run, stage: str, batches: StepBatches, reports: dict[str, ReadReport]) -> list[str]:
    counts = batches.statistics()
    options = getattr(run.recipe, stage)
    schedule = make_schedule(options, batches.num_steps)
    peak = max(float(schedule(step)) for step in range(0, batches.num_steps, max(1, batches.num_steps // 200)))
    unit = "rows" if stage == "dsft" else "pairs"
    lines = [
        f"{stage}:",
        f"  {counts['steps']} optimizer steps of {options.batch_size} {unit}, {counts['steps_per_epoch']} an epoch "
        f"({counts['items_per_epoch']} {unit})",
        f"  {counts['tokens']:,} tokens, {counts['target_tokens']:,} of them targets; "
        f"{counts['padding_share']:.1%} of {counts['positions']:,} positions are padding",
        "  step shapes [micro-batches, rows, tokens]: "
        + ", ".join(f"[{s.num_micro_batches}, {s.num_rows}, {s.row_length}]" for s in batches.shapes),
        f"  learning rate: {options.schedule}, highest {peak:.3g}, at the last step "
        f"{float(schedule(batches.num_steps - 1)):.3g}",
    ]
    for split, report in reports.items():
        content = report.as_dict()
        unreadable, dropped, cut = content["unreadable"], content["dropped"], content["cut"]
        lines.append(
            f"  {split}: {report.num_rows} rows read, {sum(unreadable.values())} unreadable{_reasons(unreadable)}, "
            f"{sum(dropped.values())} dropped{_reasons(dropped)}, {sum(cut.values())} cut{_reasons(cut)}"
        )
    return lines


def _reasons(counts: dict[str, int]) -> str:
    return f" ({', '.join(f'{count} {reason}' for reason, count in counts.items())})" if counts else ""


def _marked(run: Run, ids: np.ndarray, is_target: np.ndarray) -> str:
    """The text with its runs of target tokens between [[ and ]]."""
    edges = [0, *(np.flatnonzero(np.diff(is_target.astype(np.int8))) + 1), len(ids)]
    parts = []
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        text = run.tokenizer.decode(ids[start:end], skip_special_tokens=False, continues=start > 0)
        parts.append(f"[[{text}]]" if is_target[start] else text)
    return "".join(parts)


def _indented(text: str) -> str:
    cut = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."
    return "\n".join("    " + line for line in cut.splitlines())
