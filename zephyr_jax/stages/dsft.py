"""dSFT: chats in, a fine-tuned model out (arXiv 2310.16944, section 3).

Reads the base model and dialogues; writes RUN/dsft/: metrics.jsonl, checkpoints/, model/, summary.json.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from zephyr_jax.data.encoded import EncodedConversations
from zephyr_jax.data.loader import SftBatches
from zephyr_jax.data.tokenised import Keeping, TokenisedRows, load_conversations
from zephyr_jax.model.mistral import Params, abstract_params
from zephyr_jax.peers import ALONE
from zephyr_jax.recipe import Dsft, Source
from zephyr_jax.records import Conversation, InputError, ReadReport
from zephyr_jax.sharding import num_row_shards
from zephyr_jax.stages.outcome import finish_stage
from zephyr_jax.stages.start import OnEvaluation, Run, base_model, model_settings, run_facts, say, say_attention
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


def load_dsft_data(run: Run, *, keep: bool = True) -> DsftData:
    """Reads, checks and tokenises the stage's dialogues, or finds them tokenised.

    Args:
      run: the run.
      keep: whether what is tokenised is kept for the next time.

    Raises:
      InputError: a source cannot be read, too many rows are bad, or nothing usable is left.
    """
    data = dsft_options(run).data
    train = _load(run, "train", data.train, keep=keep)
    if not data.eval:
        return DsftData(train.encoded, train.report, None, None, ())
    held_out = _load(run, "eval", data.eval, keep=keep)
    assert held_out.records is not None  # asked for
    return DsftData(train.encoded, train.report, held_out.encoded, held_out.report, tuple(held_out.records))


def _load(
    run: Run, split: str, sources: tuple[Source, ...], *, keep: bool
) -> TokenisedRows[Conversation, EncodedConversations]:
    options = dsft_options(run)
    loaded = load_conversations(
        sources,
        run.tokenizer,
        name=f"dsft {split}",
        keeping=Keeping(Path(run.recipe.output_dir) / "tokenised", writes=keep),
        seed=run.recipe.seed,
        max_bad_rows=options.max_bad_rows,
        max_length=options.max_length,
        loss_on=options.loss_on,
        wants_records=split == "eval",
        peers=run.peers if keep else ALONE,
    )
    if len(loaded.encoded) == 0:
        names, report = ", ".join(source.source for source in sources), loaded.report
        num_rows = report.num_rows - len(report.bad_rows)
        raise InputError(f"{names}: no dialogue is left of {num_rows} rows: {report.dropped}; raise dsft.max_length")
    return loaded


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
        facts=run_facts(run, data.reports()),
    )
    result = run_stage(task, mesh=run.mesh, peers=run.peers)
    finish_stage(run, "dsft", result=result, shape=start.shape, reports=data.reports(), batches=batches)


def _evaluate(
    measure: Callable[[Params], dict[str, float]], on_evaluation: OnEvaluation, params: Params, step: int
) -> dict[str, float]:
    values = measure(params)
    on_evaluation("dsft", params, step)
    return values
