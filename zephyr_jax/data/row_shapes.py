"""The few shapes that a run's packed pairs are filled up to: each is one compiled program, so there are at most eight.

A micro-batch of pairs needs more or longer rows than another. One shape for all would compute mostly padding where
micro-batches are small (two pairs of 700 tokens in a row of 2048); a shape for each would compile at every step.
Not here: filling the rows (data/pair_rows.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zephyr_jax.data.packing import round_up

MOST_SHAPES, MOST_SHAPES_OF_A_SHORT_RUN = 8, 4
LEAST_SAVING = 0.01  # the share of all positions that a further shape must save
STEPS_PER_SHAPE = 12  # what a further shape saves, a few hundredths of all steps, must be more than its compilation


def most_shapes(num_steps: int) -> int:
    """How many shapes a run may have: one for every dozen steps, but four in a short run and never more than eight."""
    return min(MOST_SHAPES, max(MOST_SHAPES_OF_A_SHORT_RUN, num_steps // STEPS_PER_SHAPE))


def candidate_row_lengths(longest: int) -> list[int]:
    """Row lengths worth trying below and up to `longest`, ascending: 16ths of it, rounded up to multiples of 64."""
    unit = round_up(-(-longest // 16), 64)
    return [*range(unit, longest, unit), longest]


def choose_row_shapes(
    needed: np.ndarray,
    row_lengths: Sequence[int],
    *,
    most_rows: int,
    row_multiple: int = 1,
    max_shapes: int = MOST_SHAPES_OF_A_SHORT_RUN,
) -> list[tuple[int, int]]:
    """Picks the shapes one after the other, each the one that saves the most padding, while it is worth a program.

      row_lengths     512  1024
      needed, step 1    2     1
              step 2    -     2      some pair is longer than 512: written 0
      shapes          (1, 1024) for step 1, (2, 1024) for step 2; (2, 512) is no smaller than the first

    Args:
      needed: int [M, C], rows that steps (all, or a sample) need at each row length; 0 where it cannot hold them.
      row_lengths: [C] ascending; the last holds every pair.
      most_rows: rows of the longest row length that any step of the run needs.
      row_multiple: every number of rows is a multiple of it.
      max_shapes: the most shapes, see `most_shapes`.

    Returns:
      `(rows, row length)` by their positions, ascending; the last holds every step.
    """
    needed = -(-np.asarray(needed) // row_multiple) * row_multiple
    # Of two row lengths for the same positions the longer is tried first: it holds longer pairs.
    candidates = [
        (int(num_rows), row_length, column)
        for column, row_length in reversed(list(enumerate(row_lengths)))
        for num_rows in np.unique(needed[:, column])
        if num_rows
    ]
    shapes = [(round_up(most_rows, row_multiple), row_lengths[-1])]
    positions = np.full(len(needed), shapes[0][0] * shapes[0][1])  # that each step computes with the shapes so far
    while candidates and len(shapes) < max_shapes:
        options = []
        for num_rows, row_length, column in candidates:
            fits = (needed[:, column] > 0) & (needed[:, column] <= num_rows)
            options.append(np.where(fits, np.minimum(positions, num_rows * row_length), positions))
        best = int(np.argmin([option.sum() for option in options]))
        if options[best].sum() > (1 - LEAST_SAVING) * positions.sum():
            break
        positions = options[best]
        shapes.append(candidates[best][:2])
    return sorted(shapes, key=lambda shape: shape[0] * shape[1])
