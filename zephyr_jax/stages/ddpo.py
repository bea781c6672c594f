"""dDPO: preference pairs and the dSFT model in, an aligned model out (arXiv 2310.16944, section 3, eq. 2).

Reads the dSFT stage's model (or the base model) and pairs, runs the reference pass or reads its store; writes
RUN/ddpo/: metrics.jsonl, checkpoints/, model/, summary.json. Policy and reference are one function of two trees.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np

from zephyr_jax.data.encoded import EncodedPairs
from zephyr_jax.data.loader import PairBatches
from zephyr_jax.data.tokenised import load_pairs
from zephyr_jax.model.mistral import ModelSettings, abstract_params, compute_params
from zephyr_jax.recipe import Ddpo
from zephyr_jax.records import PreferencePair
from zephyr_jax.sharding import num_row_shards
from zephyr_jax.stages.outcome import finish_stage
from zephyr_jax.stages.reference import Arrays, reference_log_probs
from zephyr_jax.stages.stage_data import StageData, load_stage_data
from zephyr_jax.stages.start import (
    OnEvaluation,
    Run,
    StartModel,
    base_model,
    evaluation,
    model_settings,
    run_facts,
    say,
    say_attention,
    stage_model,
)
from zephyr_jax.training.loop import StageTask, evaluate_batches, run_stage
from zephyr_jax.training.losses import loss_at_zero_margin
from zephyr_jax.training.objectives import dpo_objective

# Largest |margin| / beta (nats, sums over two answers) at which the policy still counts as equal to its reference. The
# train step and the reference pass are compiled apart and pack the pairs in other rows; in bfloat16 a 135M model's sums
# over some 600 tokens then differ by 0.4 to 1.0 (the largest of 8 pairs, four runs), whatever XLA's excess precision.
START_TOLERANCE = {"float32": 1e-3, "bfloat16": 4.0}


DdpoData = StageData[PreferencePair, EncodedPairs]


def ddpo_options(run: Run) -> Ddpo:
    """The recipe's block, which is there when the stage is."""
    options = run.recipe.ddpo
    assert options is not None  # the recipe's own check
    return options


def load_ddpo_data(run: Run, *, keep: bool = True) -> DdpoData:
    """The stage's pairs; arguments and errors as of `load_stage_data`."""
    options = ddpo_options(run)
    return load_stage_data(
        run,
        "ddpo",
        options,
        load_pairs,
        unit="pair",
        keep=keep,
        max_prompt_length=options.max_prompt_length,
        row_length=options.row_length if options.layout == "packed" else None,
    )


def ddpo_batches(run: Run, pairs: EncodedPairs) -> PairBatches:
    """The training batches, planned to the last step."""
    options = ddpo_options(run)
    return PairBatches(
        pairs,
        layout=options.layout,
        row_length=options.row_length,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        epochs=options.epochs,
        max_steps=options.max_steps,
        shuffle=options.shuffle,
        seed=run.recipe.seed,
        row_multiple=num_row_shards(run.mesh),
        pad_id=run.tokenizer.pad_id,
    )


def ordered_batches(run: Run, pairs: EncodedPairs) -> PairBatches:
    """Every pair once, in file order, without accumulation: for the reference pass and for evaluation."""
    options = ddpo_options(run)
    return PairBatches(
        pairs,
        layout=options.layout,
        row_length=options.row_length,
        batch_size=options.micro_batch_size or options.batch_size,
        shuffle=False,
        row_multiple=num_row_shards(run.mesh),
        pad_id=run.tokenizer.pad_id,
    )


def run_ddpo(run: Run, data: DdpoData, *, on_evaluation: OnEvaluation) -> None:
    """Runs the reference pass and the stage, or what is left of them.

    Args:
      run: the run.
      data: the stage's pairs.
      on_evaluation: (stage, params, step) -> None, called at every evaluation (sample answers).
    """
    options = ddpo_options(run)
    start = stage_model(run, "dsft") if "dsft" in run.recipe.stages else base_model(run)
    batches = ddpo_batches(run, data.train)
    shapes = [shape for split in (data.train, data.eval) if split for shape in ordered_batches(run, split).shapes]
    settings = model_settings(run.recipe, rows=options.row_layout)
    say_attention(settings, start.shape, (shape.row_length for shape in (*batches.shapes, *shapes)))
    objective = dpo_objective(options, shape=start.shape, settings=settings)
    complete = functools.partial(add_reference, _reference(run, start, data.train, settings, split="train"))
    evaluate = None
    if data.eval is not None:
        eval_batches = ordered_batches(run, data.eval)
        complete_eval = functools.partial(add_reference, _reference(run, start, data.eval, settings, split="eval"))
        measure = evaluate_batches(objective, eval_batches, complete=complete_eval, mesh=run.mesh)
        evaluate = evaluation("ddpo", measure, on_evaluation)
    folder = run.folder / "ddpo"
    folder.mkdir(parents=True, exist_ok=True)
    task = StageTask(
        name="ddpo",
        folder=folder,
        options=options,
        objective=objective,
        abstract_params=abstract_params(start.shape),
        load_params=start.load_params,
        batches=batches,
        complete=complete,
        prepare=functools.partial(compute_params, settings=settings),
        evaluate=evaluate,
        check_first_step=functools.partial(check_start, options, run.recipe.model.compute_dtype),
        trackers=run.recipe.trackers,
        data_fingerprint=data.train.fingerprint(),
        facts=run_facts(run, data.reports()),
    )
    result = run_stage(task, mesh=run.mesh, peers=run.peers)
    first = {
        "start_loss": result.first_metrics["loss"],
        "start_loss_at_zero_margin": loss_at_zero_margin(beta=options.beta, loss=options.loss),
        "start_max_abs_margin_over_beta": result.first_metrics["rewards/max_abs_margin"] / options.beta,
        "start_tolerance": START_TOLERANCE[run.recipe.model.compute_dtype],
    }
    finish_stage(run, "ddpo", result=result, shape=start.shape, reports=data.reports(), batches=batches, notes=first)


def _reference(run: Run, start: StartModel, pairs: EncodedPairs, settings: ModelSettings, *, split: str) -> Arrays:
    return reference_log_probs(
        run,
        options=ddpo_options(run),
        start=start,
        pairs=pairs,
        batches=ordered_batches(run, pairs),
        settings=settings,
        split=split,
    )


def add_reference(reference: Arrays, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with `reference_chosen` and `reference_rejected`, float32 [A, P]; 0 for filler pairs."""
    rows_AP = batch["pair_rows"]
    looked_up = {
        f"reference_{side}": np.where(rows_AP >= 0, reference[side][rows_AP], 0.0).astype(np.float32)
        for side in ("chosen", "rejected")
    }
    return dict(batch) | looked_up


def check_start(options: Ddpo, compute_dtype: str, metrics: Mapping[str, float]) -> None:
    """Checks that the first step sees the policy at its reference: loss at zero margin, |margin| / beta within bounds.

    Raises:
      RuntimeError: it does not, so the reference log-probs are not those of this model and these rows.
    """
    tolerance = START_TOLERANCE[compute_dtype]
    wanted = loss_at_zero_margin(beta=options.beta, loss=options.loss)
    margin = metrics["rewards/max_abs_margin"] / options.beta
    # The slope of every loss in the margin is at most 1, but for ipo's, whose margin is divided by the lengths.
    slack = (1.0 if options.loss != "ipo" else 1 / options.beta**2) * options.beta * tolerance
    if margin > tolerance or not math.isclose(metrics["loss"], wanted, rel_tol=1e-5, abs_tol=slack):
        raise RuntimeError(
            f"ddpo: the first step has loss {metrics['loss']:.6f} and |margin| / beta {margin:.2e}; a policy that "
            f"starts at its reference has {wanted:.6f} and at most {tolerance:g} in {compute_dtype}. The reference "
            "log-probs are not those of this model: delete the store named above and run again"
        )
    name = {"sigmoid": "ln 2", "hinge": "1", "ipo": "1 / (4 beta^2)"}[options.loss]
    say(
        f"ddpo: checked that the policy starts at its reference: loss {metrics['loss']:.6f}, at zero margin "
        f"{name} = {wanted:.6f}; largest |margin| / beta {margin:.1e} nats (at most {tolerance:g} in {compute_dtype})"
    )
