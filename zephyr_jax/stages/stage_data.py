"""The rows of a training stage, tokenised: those that it learns from, and those that it is judged on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic

from zephyr_jax.data.tokenised import Encoded, Keeping, Record, TokenisedRows
from zephyr_jax.peers import ALONE
from zephyr_jax.recipe import StageOptions
from zephyr_jax.records import InputError, ReadReport
from zephyr_jax.stages.start import Run


@dataclasses.dataclass(frozen=True)
class StageData(Generic[Record, Encoded]):
    """A stage's rows.

    Attributes:
      train, eval: tokenised; eval is None where the stage has no evaluation rows.
      train_report, eval_report: what was read, cut and dropped.
      eval_rows: the evaluation rows as they were read.
    """

    train: Encoded
    train_report: ReadReport
    eval: Encoded | None
    eval_report: ReadReport | None
    eval_rows: tuple[Record, ...]

    def reports(self) -> dict[str, ReadReport]:
        """Reports by split."""
        return {"train": self.train_report} | ({"eval": self.eval_report} if self.eval_report else {})


def load_stage_data(
    run: Run,
    stage: str,
    options: StageOptions,
    load: Callable[..., TokenisedRows[Record, Encoded]],
    *,
    unit: str,
    keep: bool,
    **fitting: Any,
) -> StageData[Record, Encoded]:
    """Reads, checks and tokenises a stage's rows, or finds them tokenised.

    Args:
      run: the run.
      stage: its name.
      options: its block of the recipe.
      load: `load_conversations` or `load_pairs` of data/tokenised.py.
      unit: what a row is, for messages.
      keep: whether what is tokenised is kept for the next time.
      **fitting: how rows are made to fit, as `load` takes it.

    Raises:
      InputError: a source cannot be read, too many rows are bad, or nothing usable is left.
    """

    def loaded(split: str) -> TokenisedRows[Record, Encoded]:
        sources = getattr(options.data, split)
        rows = load(
            sources,
            run.tokenizer,
            name=f"{stage} {split}",
            keeping=Keeping(Path(run.recipe.output_dir) / "tokenised", writes=keep),
            seed=run.recipe.seed,
            max_bad_rows=options.max_bad_rows,
            max_length=options.max_length,
            wants_records=split == "eval",
            peers=run.peers if keep else ALONE,
            **fitting,
        )
        if len(rows.encoded) == 0:
            names, report = ", ".join(source.source for source in sources), rows.report
            num_rows = report.num_rows - len(report.bad_rows)
            raise InputError(
                f"{names}: no {unit} is left of {num_rows} rows: {report.dropped}; raise {stage}.max_length"
            )
        return rows

    train = loaded("train")
    if not options.data.eval:
        return StageData(train.encoded, train.report, None, None, ())
    held_out = loaded("eval")
    assert held_out.records is not None  # asked for
    return StageData(train.encoded, train.report, held_out.encoded, held_out.report, tuple(held_out.records))
