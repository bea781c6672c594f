"""Which dialogue goes in which row, and the rows themselves: the one batch format of all layouts and both stages.

A micro-batch is a dict of numpy arrays. B rows, T positions of a row, N target tokens of a row, P pairs.

  tokens, positions, segments, branches   int32 [B, T]
  target_sources                          int32 [B, N]  index into T of the hidden state that predicts the target
  target_ids, target_slots                int32 [B, N]  the id to predict; the sum its log-prob belongs to
  target_weights                          float32 [B, N]  1 for a target, 0 for filler; targets stand in front
  num_tokens                              int32 []  input tokens without padding, a shared prompt counted twice
  pair_weights, pair_rows                 float32, int32 [P]  preference pairs only, see data/pair_rows.py

Query q sees key k where their segments are equal and not 0 (padding), positions[k] <= positions[q], and
branches[k] is 0 or branches[q], or in rows of two levels (data/continuation_rows.py) that without its last 8 bits. A
key that is seen never stands after its query in the row.
Not here: pairs (data/pair_rows.py), the order of a run and its shapes (data/loader.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from zephyr_jax.data.encoded import EncodedConversations

MicroBatch = dict[str, np.ndarray]


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def best_fit(
    lengths: Sequence[int] | np.ndarray, capacity: int, *, order: Iterable[int] | None = None
) -> list[list[int]]:
    """Packs items into rows, each into the fullest row that still holds it, else into a new row.

    Six items in rows of 10 tokens; the 4 fills row 0 and the 3 goes beside the first 5:

      length   6  5  4  3  5  4
      row      0  1  0  1  2  2

    Args:
      lengths: [M] tokens of each item, each from 1 to `capacity`.
      capacity: tokens of a row.
      order: the items in the order they come, default as given.

    Returns:
      The items of each row in the order they came; rows stand in the order of their first items.

    Raises:
      ValueError: an item that no row can hold, or one of no tokens.
    """
    sizes = np.asarray(lengths, np.int64).tolist()
    if sizes and not 1 <= min(sizes) <= max(sizes) <= capacity:
        raise ValueError(f"lengths: got {min(sizes)} to {max(sizes)}, wanted 1 to the row's {capacity} tokens")
    rows: list[list[int]] = []
    rows_with_space: dict[int, list[int]] = {}
    spaces = 0  # bit s is set where some row has exactly s tokens free: the fullest fitting row is one shift away
    for item in range(len(sizes)) if order is None else order:
        size = sizes[item]
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            candidates = rows_with_space[space]
            row = candidates.pop()
            if not candidates:
                spaces ^= 1 << space
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(int(item))
        space -= size
        if space:
            rows_with_space.setdefault(space, []).append(row)
            spaces |= 1 << space
    return rows


def target_width(most_targets: int, row_length: int) -> int:
    """N: the smallest multiple of 128 (64 in rows of at most 512) that holds the fullest row's targets.

    It may exceed the row's length: filler costs little, and a width that nothing divides would be scored one by one.
    """
    return round_up(max(most_targets, 1), 128 if row_length > 512 else 64)


def empty_micro_batch(*, num_rows: int, row_length: int, num_targets: int, pad_id: int = 0) -> MicroBatch:
    """A micro-batch of padding alone: B = num_rows, T = row_length, N = num_targets."""
    batch = {name: np.zeros((num_rows, row_length), np.int32) for name in ("positions", "segments", "branches")}
    batch |= {f"target_{name}": np.zeros((num_rows, num_targets), np.int32) for name in ("sources", "ids", "slots")}
    batch["tokens"] = np.full((num_rows, row_length), pad_id, np.int32)
    batch["target_weights"] = np.zeros((num_rows, num_targets), np.float32)
    batch["num_tokens"] = np.zeros((), np.int32)
    return batch


def dialogue_micro_batch(
    dialogues: EncodedConversations,
    rows: Sequence[Sequence[int]],
    *,
    num_rows: int,
    row_length: int,
    num_targets: int,
    isolate_dialogues: bool = True,
    pad_id: int = 0,
) -> MicroBatch:
    """Rows of whole dialogues. Two, [11 12 13] with 13 as target and [21 22] with 22, in a row of 6:

      index           0  1  2  3  4  5
      tokens         11 12 13 21 22  0
      positions       0  1  2  0  1  0
      segments        1  1  1  2  2  0
      branches        0  0  0  0  0  0
      target_sources  1  3  0
      target_ids     13 22  0
      target_slots    0  0  0
      target_weights  1  1  0

    Args:
      dialogues: the data set.
      rows: the dialogues of each row, at most `num_rows` of them; further rows stay empty.
      num_rows: B.
      row_length: T.
      num_targets: N.
      isolate_dialogues: False puts all of a row in one segment with running positions, so that dialogues see
        those before them (the first Zephyr's stack did). Even then none predicts the next one's first token.
      pad_id: what fills `tokens`.

    Returns:
      The micro-batch, see this file's head.
    """
    batch = empty_micro_batch(num_rows=num_rows, row_length=row_length, num_targets=num_targets, pad_id=pad_id)
    for row, members in enumerate(rows):
        start = filled = 0
        for segment, index in enumerate(members, start=1):
            ids, is_target = dialogues[index]
            part = slice(start, start + len(ids))
            batch["tokens"][row, part] = ids
            batch["positions"][row, part] = np.arange(len(ids)) + (0 if isolate_dialogues else start)
            batch["segments"][row, part] = segment if isolate_dialogues else 1
            targets = np.flatnonzero(is_target)
            part = slice(filled, filled + len(targets))
            batch["target_sources"][row, part] = start + targets - 1
            batch["target_ids"][row, part] = ids[targets]
            batch["target_weights"][row, part] = 1
            start, filled = start + len(ids), filled + len(targets)
        batch["num_tokens"] += np.int32(start)
    return batch
