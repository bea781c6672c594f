"""All stages of a run in order, each if it is not done, and the held-out table at the end."""

from __future__ import annotations

from zephyr_jax.stages.ddpo import load_ddpo_data, run_ddpo
from zephyr_jax.stages.dsft import load_dsft_data, run_dsft
from zephyr_jax.stages.held_out import held_out_rows, held_out_table, measure_held_out, sample_writer
from zephyr_jax.stages.outcome import is_done, read_summary, summary_line
from zephyr_jax.stages.start import Run, base_model, say, stage_model


def run_stages(run: Run) -> str:
    """Runs what is left of a run.

    Args:
      run: the run; its folder holds recipe.yaml.

    Returns:
      The held-out table as text; empty where the recipe has no evaluation data, and in all processes but the first.
    """
    recipe = run.recipe
    dialogues = load_dsft_data(run) if recipe.dsft is not None and "dsft" in recipe.stages else None
    pairs = load_ddpo_data(run) if recipe.ddpo is not None and "ddpo" in recipe.stages else None
    held_out = held_out_rows(dialogues, pairs)
    start = base_model(run)
    on_evaluation = sample_writer(run, held_out, start)
    measure_held_out(run, start, label="base", held_out=held_out)
    for stage in recipe.stages:
        if is_done(run, stage):
            say(f"{stage}: done already; {summary_line(read_summary(run, stage))}")
        elif stage == "dsft":
            assert dialogues is not None
            run_dsft(run, dialogues, on_evaluation=on_evaluation)
        else:
            assert pairs is not None
            run_ddpo(run, pairs, on_evaluation=on_evaluation)
        measure_held_out(run, stage_model(run, stage), label=stage, held_out=held_out)
    return held_out_table(run, held_out) if run.peers.is_first else ""
