"""Rows of preference pairs: packed with the prompt shared by both responses, or two padded rows a pair.

Both layouts are micro-batches of the format in data/packing.py and mean the same loss: a response sees its prompt
and itself, never the other response. A pair stays in the micro-batch it was given to.

  target_slots          2 p for a token of pair p's chosen response, 2 p + 1 for one of its rejected
  pair_weights [P]      float32, 1 for a pair, 0 for filler
  pair_rows [P]         int32, the pair's index in the data set, -1 for filler
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zephyr_jax.data.encoded import EncodedPairs
from zephyr_jax.data.packing import MicroBatch, best_fit, empty_micro_batch


def pack_pairs(lengths: Sequence[int] | np.ndarray, row_length: int) -> list[list[int]]:
    """Packs the pairs of one micro-batch, longest first, each into the fullest row that holds it.

    Args:
      lengths: [P] tokens of prompt, chosen and rejected together.
      row_length: tokens of a row.

    Returns:
      The pairs of each row, ascending; rows in the order of their first pairs.
    """
    longest_first = np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist()
    return sorted(sorted(row) for row in best_fit(lengths, row_length, order=longest_first))


def packed_pair_micro_batch(
    pairs: EncodedPairs,
    indexes: Sequence[int] | np.ndarray,
    *,
    num_rows: int,
    row_length: int,
    num_targets: int,
    num_pairs: int,
    rows: slice | None = None,
    pad_id: int = 0,
) -> MicroBatch:
    """Rows of [prompt | chosen | rejected]. The pair [1 2 3], [4 5], [6] in a row of 8:

      index           0  1  2  3  4  5  6  7
      tokens          1  2  3  4  5  6  0  0
      positions       0  1  2  3  4  3  0  0
      segments        1  1  1  1  1  1  0  0
      branches        0  0  0  1  1  2  0  0
      target_sources  2  3  2  0
      target_ids      4  5  6  0
      target_slots    0  0  1  0
      target_weights  1  1  1  0

    The prompt's last token predicts the first token of both responses, hence the explicit sources.

    Args:
      pairs: the data set.
      indexes: the pairs of this micro-batch, at most `num_pairs`; pair p of the batch is `indexes[p]`.
      num_rows: B, at least the rows that `pack_pairs` makes of them.
      row_length: T.
      num_targets: N.
      num_pairs: P.
      rows: which of the B rows to make; None: all. What is said of the pairs beside them is always said of all.
      pad_id: what fills `tokens`.

    Returns:
      The micro-batch; a pair's prompt counts twice in `num_tokens`.
    """
    rows = slice(0, num_rows) if rows is None else rows
    batch = empty_pair_micro_batch(
        num_rows=rows.stop - rows.start,
        row_length=row_length,
        num_targets=num_targets,
        num_pairs=num_pairs,
        pad_id=pad_id,
    )
    _enter_pairs(batch, pairs, indexes)
    packed = pack_pairs(pairs.lengths[np.asarray(indexes, np.int64)].sum(axis=1), row_length)
    assert len(packed) <= num_rows, (len(packed), num_rows)
    for row, members in enumerate(packed[rows]):
        start = filled = 0
        for segment, p in enumerate(members, start=1):
            prompt, chosen, rejected = pairs[int(indexes[p])]
            split, end = len(prompt), len(prompt) + len(chosen) + len(rejected)
            part = slice(start, start + end)
            batch["tokens"][row, part] = np.concatenate([prompt, chosen, rejected])
            batch["positions"][row, part] = np.concatenate(
                [np.arange(split + len(chosen)), np.arange(split, split + len(rejected))]
            )
            batch["segments"][row, part] = segment
            batch["branches"][row, part] = np.repeat([0, 1, 2], [split, len(chosen), len(rejected)])
            last_of_prompt, rejected_start = start + split - 1, start + split + len(chosen)
            filled = _add_targets(batch, row, filled, chosen, last_of_prompt, start + split, slot=2 * p)
            filled = _add_targets(batch, row, filled, rejected, last_of_prompt, rejected_start, slot=2 * p + 1)
            start += end
    return batch


def padded_pair_micro_batch(
    pairs: EncodedPairs,
    indexes: Sequence[int] | np.ndarray,
    *,
    num_rows: int,
    row_length: int,
    num_targets: int,
    num_pairs: int,
    rows: slice | None = None,
    pad_id: int = 0,
) -> MicroBatch:
    """Two rows a pair: [prompt | chosen] in row 2 p and [prompt | rejected] in row 2 p + 1. [1 2 3], [4 5], [6]:

      index           0  1  2  3  4  5
      tokens          1  2  3  4  5  0
      tokens          1  2  3  6  0  0

    Arguments and result as of `packed_pair_micro_batch`; every branch is 0 and every segment 1 (0 in padding).
    """
    rows = slice(0, num_rows) if rows is None else rows
    batch = empty_pair_micro_batch(
        num_rows=rows.stop - rows.start,
        row_length=row_length,
        num_targets=num_targets,
        num_pairs=num_pairs,
        pad_id=pad_id,
    )
    _enter_pairs(batch, pairs, indexes)
    for p, index in enumerate(indexes):
        prompt, *responses = pairs[int(index)]
        for slot, response in enumerate(responses, start=2 * p):
            if not rows.start <= slot < rows.stop:
                continue
            row, end = slot - rows.start, len(prompt) + len(response)
            batch["tokens"][row, :end] = np.concatenate([prompt, response])
            batch["positions"][row, :end] = np.arange(end)
            batch["segments"][row, :end] = 1
            _add_targets(batch, row, 0, response, len(prompt) - 1, len(prompt), slot=slot)
    return batch


def empty_pair_micro_batch(
    *, num_rows: int, row_length: int, num_targets: int, num_pairs: int, pad_id: int = 0
) -> MicroBatch:
    """A micro-batch of padding and filler pairs alone: B = num_rows, T = row_length, N = num_targets, P = num_pairs."""
    batch = empty_micro_batch(num_rows=num_rows, row_length=row_length, num_targets=num_targets, pad_id=pad_id)
    batch["pair_weights"] = np.zeros(num_pairs, np.float32)
    batch["pair_rows"] = np.full(num_pairs, -1, np.int32)
    return batch


def _enter_pairs(batch: MicroBatch, pairs: EncodedPairs, indexes: Sequence[int] | np.ndarray) -> None:
    """Writes what a micro-batch says of its pairs beside their rows."""
    indexes = np.asarray(indexes, np.int64)
    batch["pair_weights"][: len(indexes)] = 1
    batch["pair_rows"][: len(indexes)] = indexes
    batch["num_tokens"] += np.int32((pairs.lengths[indexes] @ [2, 1, 1]).sum())


def _add_targets(
    batch: MicroBatch, row: int, filled: int, response: np.ndarray, first_source: int, start: int, *, slot: int
) -> int:
    """Writes a response's targets behind the `filled` ones of the row; `start` is its first token's index."""
    part = slice(filled, filled + len(response))
    batch["target_sources"][row, part] = np.arange(start - 1, start - 1 + len(response))
    batch["target_sources"][row, filled] = first_source
    batch["target_ids"][row, part] = response
    batch["target_slots"][row, part] = slot
    batch["target_weights"][row, part] = 1
    return filled + len(response)
