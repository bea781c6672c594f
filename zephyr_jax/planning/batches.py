"""The step batch that a plan assumes where no data is read: its shape, and what was assumed to get there.

Not here: the shapes of a run on real rows (data/loader.py), the arrays' meaning (data/packing.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from zephyr_jax.data.loader import StepShape
from zephyr_jax.data.packing import MicroBatch, empty_micro_batch, round_up, target_width
from zephyr_jax.data.pair_rows import empty_pair_micro_batch
from zephyr_jax.recipe import Ddpo, Dsft
from zephyr_jax.records import InputError

# Tokens of a pair, prompt and both answers, over max_length. Real pairs with GPT-4's verdicts, Mistral's tokenizer,
# max_length 1024 and max_prompt_length 512: 573 a pair, 615 with what packing leaves empty in batches of 32
# (benchmarks.token_table); 640 is on the safe side.
MEAN_PAIR_SHARE = 640 / 1024


class AssumedBatch(NamedTuple):
    """A step batch without data.

    Attributes:
      shape: its shape.
      assumptions: what was assumed for it, a sentence each.
    """

    shape: StepShape
    assumptions: tuple[str, ...]

    @property
    def num_positions(self) -> int:
        """Positions that the step computes, padding included."""
        return self.shape.num_micro_batches * self.shape.num_rows * self.shape.row_length

    def arrays(self) -> MicroBatch:
        """The step batch, of padding alone: the arrays that the loader makes, [A, ...] each."""
        num_micro_batches, num_rows, row_length, num_targets, num_pairs = self.shape
        sizes = {"num_rows": num_rows, "row_length": row_length, "num_targets": num_targets}
        batch = empty_pair_micro_batch(**sizes, num_pairs=num_pairs) if num_pairs else empty_micro_batch(**sizes)
        return {name: np.broadcast_to(array, (num_micro_batches, *array.shape)) for name, array in batch.items()}


def assume_batch(options: Dsft | Ddpo, *, row_multiple: int, rows_per_step: int | None = None) -> AssumedBatch:
    """The largest step batch that the recipe's data is expected to need.

    Args:
      options: the stage's block.
      row_multiple: every micro-batch has a multiple of so many rows: the devices that share them.
      rows_per_step: rows of an optimizer step, for packed pairs; None: from MEAN_PAIR_SHARE.

    Raises:
      InputError: rows were given where the recipe has them already.
    """
    micro_batch_size = options.micro_batch_size or options.batch_size
    num_micro_batches = options.batch_size // micro_batch_size
    packed_pairs = isinstance(options, Ddpo) and options.layout == "packed"
    if rows_per_step is not None and not packed_pairs:
        raise InputError(
            f"--rows-per-step: got {rows_per_step}, but only ddpo with layout: packed leaves its rows open; "
            "change batch_size or micro_batch_size instead"
        )
    said = ["no data is read: every row is taken as full of target tokens, which is the largest batch"]
    if isinstance(options, Dsft):
        wanted, row_length, num_pairs = micro_batch_size, options.max_length, 0
    elif not packed_pairs:
        wanted, row_length, num_pairs = 2 * micro_batch_size, options.max_length, micro_batch_size
    else:
        row_length, num_pairs = options.row_length, micro_batch_size
        wanted, sentence = _packed_rows(options, micro_batch_size, num_micro_batches, rows_per_step)
        said.append(sentence)
    row_length = row_length if packed_pairs else round_up(row_length, 64)
    num_rows = round_up(wanted, row_multiple)
    if num_rows > wanted:
        said.append(
            f"rows of a micro-batch: {wanted} needed, {num_rows} computed, as {row_multiple} devices share them"
        )
    shape = StepShape(num_micro_batches, num_rows, row_length, target_width(row_length, row_length), num_pairs)
    return AssumedBatch(shape, tuple(said))


def _packed_rows(
    options: Ddpo, micro_batch_size: int, num_micro_batches: int, rows_per_step: int | None
) -> tuple[int, str]:
    """Rows of a micro-batch of packed pairs, and the sentence that says why."""
    if rows_per_step is not None:
        return -(
            -rows_per_step // num_micro_batches
        ), f"packed rows of a step: {rows_per_step}, as --rows-per-step says"
    mean = min(math.ceil(MEAN_PAIR_SHARE * options.max_length), options.row_length)
    rows = -(-micro_batch_size * mean // options.row_length)
    return rows, (
        f"packed rows: {micro_batch_size} pairs of {mean} tokens on average, the prompt once (5/8 of max_length: real "
        f"pairs have a little less at 1024), fill {rows} rows of {options.row_length} a micro-batch; --rows-per-step "
        "overrides it, and train takes shorter rows where a step fits them"
    )
