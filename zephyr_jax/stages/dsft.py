"""dSFT: chats in, a fine-tuned model out (arXiv 2310.16944, section 3).

Reads the base model and dialogues; writes RUN/dsft/: metrics.jsonl, checkpoints/, model/, summary.json.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from zephyr_jax.data.encoded import EncodedConversations
from zephyr_jax.data.loader import SftBatches
from zephyr_jax.data.preparing import prepare_conversations
from zephyr_jax.data.sources import read_conversations
from zephyr_jax.model.mistral import Params, abstract_params
from zephyr_jax.recipe import Dsft, Source
from zephyr_jax.records import Conversation, InputError, ReadReport
from zephyr_jax.sharding import num_row_shards
from zephyr_jax.stages.outcome import finish_stage
from zephyr_jax.stages.start import OnEvaluation, Run, base_model, model_settings, say_attention
from zephyr_jax.training.loop import StageTask, evaluate_batches, run_stage
from zephyr_jax.training.objectives import sft_objective


@dataclasses.dataclass(frozen=True)
class DsftData:
    """The stage's rows, tokenised: the reports say what was read, cut and dropped."""

    train: EncodedConversations
    train_report: ReadReport
    eval: EncodedConversations | None
    eval_report: ReadReport | None
    eval_rows: tuple[Conversation, ...]

    def reports(self) -> dict[str, ReadReport]:
        """Reports by split."""
        return {"train": self.train_report} | ({"eval": self.eval_report} if self.eval_report else {})


def dsft_options(run: Run) -> Dsft:
    """The recipe's block, which is there when the stage is."""
    options = run.recipe.dsft
    assert options is not None  # the recipe's own check
    return options


def load_dsft_data(run: Run) -> DsftData:
    """Reads, checks and tokenises the stage's dialogues.

    Raises:
      InputError: a source cannot be read, too many rows are bad, or nothing usable is left.
    """
    options = dsft_options(run)
    train, train_report, _ = _load(run, options.data.train)
    if not options.data.eval:
        return DsftData(train, train_report, None, None, ())
    evaluation, eval_report, rows = _load(run, options.data.eval)
    return DsftData(train, train_report, evaluation, eval_report, tuple(rows))


def _load(run: Run, sources: tuple[Source, ...]) -> tuple[EncodedConversations, ReadReport, list[Conversation]]:
    options = dsft_options(run)
    rows, report = read_conversations(sources, seed=run.recipe.seed, max_bad_rows=options.max_bad_rows, progress=True)
    encoded = prepare_conversations(
        rows,
        run.tokenizer,
        max_length=options.max_length,
        loss_on=options.loss_on,
        report=report,
        progress=True,
    )
    if len(encoded) == 0:
        names = ", ".join(source.source for source in sources)
        raise InputError(f"{names}: no dialogue is left of {len(rows)} rows: {report.dropped}; raise dsft.max_length")
    return encoded, report, rows


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
    eval_batches = None if data.eval is None else dsft_eval_batches(run, data.eval)
    shapes = batches.shapes + (eval_batches.shapes if eval_batches else ())
    say_attention(run.recipe, (shape.row_length for shape in shapes))
    objective = sft_objective(shape=start.shape, settings=model_settings(run.recipe))
    evaluate = None
    if eval_batches is not None:
        measure = evaluate_batches(objective, eval_batches, complete=lambda batch: batch, mesh=run.mesh)
        evaluate = functools.partial(_evaluate, measure, on_evaluation)
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
        evaluate=evaluate,
        trackers=run.recipe.trackers,
        data_fingerprint=data.train.fingerprint(),
    )
    result = run_stage(task, mesh=run.mesh)
    finish_stage(run, "dsft", result=result, shape=start.shape, reports=data.reports(), batches=batches)


def _evaluate(
    measure: Callable[[Params], dict[str, float]], on_evaluation: OnEvaluation, params: Params, step: int
) -> dict[str, float]:
    values = measure(params)
    on_evaluation("dsft", params, step)
    return values
