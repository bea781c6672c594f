"""dSFT: chats in, a fine-tuned model out (arXiv 2310.16944, section 3).

Reads the base model and dialogues; writes RUN/dsft/: metrics.jsonl, checkpoints/, model/, summary.json.
"""

from __future__ import annotations

import functools

from zephyr_jax.data.encoded import EncodedConversations
from zephyr_jax.data.loader import SftBatches
from zephyr_jax.data.tokenised import load_conversations
from zephyr_jax.model.mistral import abstract_params, compute_params
from zephyr_jax.recipe import Dsft
from zephyr_jax.records import Conversation
from zephyr_jax.sharding import num_row_shards
from zephyr_jax.stages.outcome import finish_stage
from zephyr_jax.stages.stage_data import StageData, load_stage_data
from zephyr_jax.stages.start import (
    OnEvaluation,
    Run,
    base_model,
    evaluation,
    model_settings,
    run_facts,
    say,
    say_attention,
)
from zephyr_jax.training.loop import StageTask, evaluate_batches, run_stage
from zephyr_jax.training.objectives import sft_objective

DsftData = StageData[Conversation, EncodedConversations]


def dsft_options(run: Run) -> Dsft:
    """The recipe's block, which is there when the stage is."""
    options = run.recipe.dsft
    assert options is not None  # the recipe's own check
    return options


def load_dsft_data(run: Run, *, keep: bool = True) -> DsftData:
    """The stage's dialogues; arguments and errors as of `load_stage_data`."""
    options = dsft_options(run)
    return load_stage_data(
        run, "dsft", options, load_conversations, unit="dialogue", keep=keep, loss_on=options.loss_on
    )


def dsft_batches(run: Run, data: DsftData) -> SftBatches:
    """The training batches, planned to the last step."""
    options = dsft_options(run)
    return SftBatches(
        data.train,
        max_length=options.max_length,
        packing=options.packing,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        epochs=options.epochs,
        max_steps=options.max_steps,
        isolate_dialogues=options.isolate_dialogues,
        shuffle=options.shuffle,
        seed=run.recipe.seed,
        row_multiple=num_row_shards(run.mesh),
        pad_id=run.tokenizer.pad_id,
    )


def dsft_eval_batches(run: Run, dialogues: EncodedConversations) -> SftBatches:
    """Every evaluation row once, in file order."""
    options = dsft_options(run)
    return SftBatches(
        dialogues,
        max_length=options.max_length,
        packing=options.packing,
        batch_size=options.micro_batch_size or options.batch_size,
        isolate_dialogues=options.isolate_dialogues,
        shuffle=False,
        row_multiple=num_row_shards(run.mesh),
        pad_id=run.tokenizer.pad_id,
    )


def run_dsft(run: Run, data: DsftData, *, on_evaluation: OnEvaluation) -> None:
    """Runs the stage, or what is left of it.

    Args:
      run: the run.
      data: the stage's rows.
      on_evaluation: (stage, params, step) -> None, called at every evaluation (sample answers).
    """
    options, start = dsft_options(run), base_model(run)
    batches = dsft_batches(run, data)
    num_empty = batches.shapes[0].num_rows - batches.micro_batch_size
    if num_empty:
        shards = num_row_shards(run.mesh)
        say(
            f"dsft: {batches.micro_batch_size} rows do not share out evenly over the {shards} devices of data x fsdp: "
            f"{num_empty} empty rows are computed with them; a multiple of {shards} wastes none"
        )
    eval_batches = None if data.eval is None else dsft_eval_batches(run, data.eval)
    shapes = batches.shapes + (eval_batches.shapes if eval_batches else ())
    settings = model_settings(run.recipe, rows=options.row_layout)
    say_attention(settings, start.shape, (shape.row_length for shape in shapes))
    objective = sft_objective(shape=start.shape, settings=settings)
    evaluate = None
    if eval_batches is not None:
        measure = evaluate_batches(objective, eval_batches, complete=lambda batch: batch, mesh=run.mesh)
        evaluate = evaluation("dsft", measure, on_evaluation)
    folder = run.folder / "dsft"
    folder.mkdir(parents=True, exist_ok=True)
    task = StageTask(
        name="dsft",
        folder=folder,
        options=options,
        objective=objective,
        abstract_params=abstract_params(start.shape),
        load_params=start.load_params,
        batches=batches,
        complete=lambda batch: batch,
        prepare=functools.partial(compute_params, settings=settings),
        evaluate=evaluate,
        trackers=run.recipe.trackers,
        data_fingerprint=data.train.fingerprint(),
        facts=run_facts(run, data.reports()),
    )
    result = run_stage(task, mesh=run.mesh, peers=run.peers)
    finish_stage(run, "dsft", result=result, shape=start.shape, reports=data.reports(), batches=batches)
