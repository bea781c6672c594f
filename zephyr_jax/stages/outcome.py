"""How a stage ends: the model as a Hugging Face folder, then summary.json, whose presence says that it is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zephyr_jax.data.loader import StepBatches
from zephyr_jax.host_memory import peak_memory
from zephyr_jax.model.hf_folder import save_model
from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import ReadReport
from zephyr_jax.stages.start import Run, run_facts, say
from zephyr_jax.training.loop import StageResult
from zephyr_jax.whole_files import write_json


def is_done(run: Run, stage: str) -> bool:
    """Whether the stage has ended: its summary is written last."""
    return run.peers.first_says(f"{stage} done?", (run.folder / stage / "summary.json").exists)


def read_summary(run: Run, stage: str) -> dict[str, Any]:
    """A finished stage's summary."""
    summary: dict[str, Any] = json.loads((run.folder / stage / "summary.json").read_text(encoding="utf-8"))
    return summary


def finish_stage(
    run: Run,
    stage: str,
    *,
    result: StageResult,
    shape: ModelShape,
    reports: Mapping[str, ReadReport],
    batches: StepBatches,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes model/ and summary.json, and says the stage in one line.

    Args:
      run: the run.
      stage: its name.
      result: what the loop gave.
      shape: the model's shape.
      reports: what became of the rows, by split.
      batches: the training batches, for their statistics.
      notes: further entries of the summary.
    """
    folder = run.folder / stage
    save_model(
        result.params,
        folder / "model",
        shape=shape,
        dtype=run.recipe.model.compute_dtype,
        tokenizer=run.tokenizer,
        overwrite=True,
        writes=run.peers.is_first,
    )
    peak_bytes, measured = peak_memory()
    summary = {
        "stage": stage,
        "steps": batches.num_steps,
        "metrics": result.metrics,
        "eval_metrics": result.eval_metrics,
        "num_tokens": result.num_tokens,
        "seconds": round(result.seconds, 3),
        "data_wait_share": round(result.data_wait_share, 5),
        "compilation": result.compilation,
        "batches": batches.statistics(),
        "peak_memory": {"bytes": peak_bytes, "of": measured},
    } | run_facts(run, reports)
    summary |= dict(notes or {})
    if run.peers.is_first:
        write_json(folder / "summary.json", summary)
    run.peers.check_all_see(folder / "summary.json")
    say(summary_line(summary))


def summary_line(summary: Mapping[str, Any]) -> str:
    """`dsft: 60 steps, 123,456 tokens in 70 s (1,763 tokens/s), loss 0.71, held out 0.74`."""
    rate = summary["num_tokens"] / max(summary["seconds"], 1e-9)
    text = (
        f"{summary['stage']}: {summary['steps']} steps, {summary['num_tokens']:,} tokens in "
        f"{summary['seconds']:,.0f} s ({rate:,.0f} tokens/s), loss {summary['metrics'].get('loss', float('nan')):.4f}"
    )
    held_out = summary["eval_metrics"]
    if held_out:
        text += f", held out {held_out['eval/loss']:.4f}"
        if "eval/rewards/accuracies" in held_out:
            text += f" (reward accuracy {held_out['eval/rewards/accuracies']:.3f})"
    lost = {split: report["unreadable"] | report["dropped"] for split, report in summary["data"].items()}
    dropped = sum(sum(reasons.values()) for reasons in lost.values())
    cut = sum(sum(report["cut"].values()) for report in summary["data"].values())
    return text + f"; {dropped} rows dropped, {cut} cut"
