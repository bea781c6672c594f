"""Which rows each optimizer step sees: batches as a pure function of the data, the seed and the step's number.

Nothing is kept from step to step, so a run goes on where it stopped by the step's number alone. All batches of a
run have the few shapes in `shapes`, known before it starts; the last, smaller batch of an epoch is kept and filled
up with empty rows. A step batch is A micro-batches (data/packing.py) stacked along a leading axis.
Not here: the layout of a row (data/packing.py, data/pair_rows.py), the thread that makes batches ahead of need
(data/prefetch.py), devices, reference log-probs.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from zephyr_jax.data.encoded import EncodedConversations, EncodedPairs
from zephyr_jax.data.packing import (
    MicroBatch,
    best_fit,
    dialogue_micro_batch,
    round_up,
    target_width,
)
from zephyr_jax.data.pair_rows import pack_pairs, packed_pair_micro_batch, padded_pair_micro_batch
from zephyr_jax.data.row_shapes import candidate_row_lengths, choose_row_shapes, most_shapes
from zephyr_jax.records import InputError

NUM_PLANNED_STEPS = 256  # steps tried at every row length when shapes are picked: enough, and a second for any run


class StepShape(NamedTuple):
    """The shape of a step batch: A micro-batches of B rows, T positions, N targets a row, P pairs (dialogues: 0)."""

    num_micro_batches: int
    num_rows: int
    row_length: int
    num_targets: int
    num_pairs: int = 0


def seeded_order(num_items: int, seed: int, *, stream: int) -> np.ndarray:
    """A permutation of the items from the seed: stream 0 is the order of packing, stream 1 + e that of epoch e.

    RandomState's draws are frozen for good, a Generator's may change with numpy's version; and an interrupted run
    must find the same order after an upgrade.
    """
    bits = np.random.MT19937(np.random.SeedSequence([seed, stream]))
    return np.random.RandomState(bits).permutation(num_items)


class StepBatches(abc.ABC):
    """Items (rows of dialogues, or pairs) dealt to the steps of a run; its two kinds below make them arrays.

    Every epoch deals every item once, in an order of its own. Where all items together are fewer than one batch,
    the batch is as small as they are.

    Attributes:
      num_items: items in an epoch.
      num_steps_per_epoch: optimizer steps in an epoch, the smaller last one included.
      num_steps: optimizer steps of the run, exact: `max_steps`, else the epochs' steps rounded up.
      num_micro_batches: A.
      micro_batch_size: items in a full micro-batch.
      shapes: the shapes of the run's step batches.
    """

    shapes: tuple[StepShape, ...]

    def __init__(
        self,
        num_items: int,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        epochs: float,
        max_steps: int | None,
        shuffle: bool,
        seed: int,
    ):
        if num_items == 0:
            raise InputError("data: got no usable rows, wanted at least one; the counts of dropped rows say why")
        micro_batch_size = micro_batch_size or batch_size
        if batch_size % micro_batch_size:
            raise InputError(
                f"micro_batch_size: got {micro_batch_size}, wanted a divisor of batch_size ({batch_size}); "
                "change one of them"
            )
        self.num_items = num_items
        self.micro_batch_size = min(micro_batch_size, num_items)
        self.num_micro_batches = min(batch_size // micro_batch_size, math.ceil(num_items / micro_batch_size))
        self.num_steps_per_epoch = math.ceil(num_items / batch_size)
        self.num_steps = math.ceil(self.num_steps_per_epoch * epochs) if max_steps is None else max_steps
        self._items_per_step = self.micro_batch_size * self.num_micro_batches
        self._shuffle, self._seed = shuffle, seed
        self._last_order: tuple[int, np.ndarray] = (-1, np.arange(0))

    def items(self, step: int) -> list[np.ndarray]:
        """The items of each of the step's A micro-batches; steps count from 1. The last ones may be empty."""
        if step < 1:
            raise ValueError(f"step: got {step}, wanted 1 or more")
        epoch, step_of_epoch = divmod(step - 1, self.num_steps_per_epoch)
        start = step_of_epoch * self._items_per_step
        items = self._order(epoch)[start : start + self._items_per_step]
        size = self.micro_batch_size
        return [items[size * a : size * (a + 1)] for a in range(self.num_micro_batches)]

    def batch(self, step: int, rows: slice | None = None) -> MicroBatch:
        """The step batch of a step, counted from 1: every array of a micro-batch with a leading axis A.

        Args:
          step: which one.
          rows: the rows to make, of the shape's B; None: all. What is not by rows (pairs, counts) is of all of them.
        """
        rows = slice(0, self.shape(step).num_rows) if rows is None else rows
        micro_batches = [self._micro_batch(items, step, rows) for items in self.items(step)]
        return {name: np.stack([batch[name] for batch in micro_batches]) for name in micro_batches[0]}

    def batches(self, *, start: int = 1) -> Iterator[MicroBatch]:
        """The step batches from step `start` to the run's end."""
        return (self.batch(step) for step in range(start, self.num_steps + 1))

    @abc.abstractmethod
    def shape(self, step: int) -> StepShape:
        """The shape of a step's batch, one of `shapes`."""

    def statistics(self) -> dict[str, int | float]:
        """What the run will read: steps, items, tokens, target tokens, the share of padding; over `num_steps`."""
        read_tokens, row_tokens, targets = self._item_sizes()
        # Whole epochs weigh each item alike, so only the unfinished epoch is dealt out.
        num_epochs, num_rest = divmod(self.num_steps, self.num_steps_per_epoch)
        times = np.full(self.num_items, num_epochs)
        for step in range(self.num_steps - num_rest + 1, self.num_steps + 1):
            times[np.concatenate(self.items(step))] += 1
        positions = sum(math.prod(self.shape(step)[:3]) for step in range(1, self.num_steps + 1))
        return {
            "steps": self.num_steps,
            "steps_per_epoch": self.num_steps_per_epoch,
            "items_per_epoch": self.num_items,
            "tokens": int(times @ read_tokens),
            "target_tokens": int(times @ targets),
            "positions": positions,
            "padding_share": 1 - int(times @ row_tokens) / positions if positions else 0.0,
        }

    def _order(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(self.num_items)
        known, order = self._last_order  # read and replaced as one, since several threads may ask for batches
        if known != epoch:
            order = seeded_order(self.num_items, self._seed, stream=1 + epoch)
            self._last_order = (epoch, order)
        return order

    @abc.abstractmethod
    def _micro_batch(self, items: np.ndarray, step: int, rows: slice) -> MicroBatch:
        """The arrays of one micro-batch of the step, those by rows for some rows alone."""

    @abc.abstractmethod
    def _item_sizes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each item: tokens as counted in num_tokens, positions filled in rows, target tokens."""


class SftBatches(StepBatches):
    """Step batches of dialogues: packed into rows once, in seeded order, the rows shuffled anew every epoch.

    Args:
      dialogues: the data set, none longer than `max_length`.
      max_length: tokens of a packed row, if the fullest row needs them; unpacked rows are as long as the longest
        dialogue, rounded up to a multiple of 64.
      packing: several dialogues a row, or one.
      batch_size: rows of an optimizer step.
      micro_batch_size: rows of a micro-batch; None: no accumulation.
      epochs: passes over the data.
      max_steps: exactly that many steps instead.
      isolate_dialogues: see `dialogue_micro_batch`.
      shuffle: False takes dialogues in file order, as does evaluation.
      seed: of the order.
      row_multiple: B is a multiple of it (the devices that share the rows); the rows added are empty.
      pad_id: what fills `tokens`.
    """

    def __init__(
        self,
        dialogues: EncodedConversations,
        *,
        max_length: int,
        packing: bool,
        batch_size: int,
        micro_batch_size: int | None = None,
        epochs: float = 1,
        max_steps: int | None = None,
        isolate_dialogues: bool = True,
        shuffle: bool = True,
        seed: int = 0,
        row_multiple: int = 1,
        pad_id: int = 0,
    ):
        num_dialogues, lengths, num_targets = len(dialogues), dialogues.lengths, dialogues.num_targets
        if packing:
            order = seeded_order(num_dialogues, seed, stream=0) if shuffle else np.arange(num_dialogues)
            self.rows = best_fit(lengths, max_length, order=order.tolist())
        else:
            self.rows = [[index] for index in range(num_dialogues)]
        super().__init__(
            len(self.rows),
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            epochs=epochs,
            max_steps=max_steps,
            shuffle=shuffle,
            seed=seed,
        )
        self._dialogues, self._isolate_dialogues, self._pad_id = dialogues, isolate_dialogues, pad_id
        self._row_tokens = _row_sums(self.rows, lengths)
        self._row_targets = _row_sums(self.rows, num_targets)
        longest = int(self._row_tokens.max())
        row_length = min(max_length, round_up(longest, 64)) if packing else round_up(longest, 64)
        num_rows = round_up(self.micro_batch_size, row_multiple)
        width = target_width(int(self._row_targets.max()), row_length)
        self.shapes = (StepShape(self.num_micro_batches, num_rows, row_length, width),)

    def shape(self, step: int) -> StepShape:
        return self.shapes[0]

    def _micro_batch(self, items: np.ndarray, step: int, rows: slice) -> MicroBatch:
        _, _, row_length, num_targets, _ = self.shapes[0]
        batch = dialogue_micro_batch(
            self._dialogues,
            [self.rows[item] for item in items[rows]],
            num_rows=rows.stop - rows.start,
            row_length=row_length,
            num_targets=num_targets,
            isolate_dialogues=self._isolate_dialogues,
            pad_id=self._pad_id,
        )
        return batch | {"num_tokens": np.array(self._row_tokens[items].sum(), np.int32)}

    def _item_sizes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._row_tokens, self._row_tokens, self._row_targets


class PairBatches(StepBatches):
    """Step batches of preference pairs, exactly `batch_size` of them in each but an epoch's last.

    `batch["pair_rows"]` [A, P] says which pair of the data set each is (-1: filler), to look up its reference
    log-probs. Packed, the rows that a step needs vary: all steps of the run are planned when this is made, and
    each gets the smallest of a few shapes that holds it (at most four in a short run, eight in a long one).

    Args:
      pairs: the data set, as prepared for this layout.
      layout: "packed" (prompt shared, several pairs a row) or "padded" (two rows a pair).
      row_length: the most tokens of a packed row, where a step needs them; padded rows are as long as the longest
        prompt and response, rounded up to a multiple of 64.
      batch_size: pairs of an optimizer step.
      micro_batch_size: pairs of a micro-batch; None: no accumulation.
      epochs, max_steps, shuffle, seed, row_multiple, pad_id: as of `SftBatches`.
    """

    def __init__(
        self,
        pairs: EncodedPairs,
        *,
        layout: str,
        row_length: int,
        batch_size: int,
        micro_batch_size: int | None = None,
        epochs: float = 1,
        max_steps: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        row_multiple: int = 1,
        pad_id: int = 0,
    ):
        if layout not in ("packed", "padded"):
            raise ValueError(f"layout: got {layout!r}, wanted 'packed' or 'padded'")
        super().__init__(
            len(pairs),
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            epochs=epochs,
            max_steps=max_steps,
            shuffle=shuffle,
            seed=seed,
        )
        self._pairs, self._pad_id, self._packed = pairs, pad_id, layout == "packed"
        self._lengths, self._tokens = pairs.lengths, pairs.lengths.sum(axis=1)
        self._targets = self._lengths[:, 1:].sum(axis=1)
        self._shape_of_step: dict[int, StepShape] = {}
        shapes = self._plan(row_length, row_multiple) if self._packed else [self._padded_shape(row_multiple)]
        self.shapes = tuple(
            StepShape(
                self.num_micro_batches, num_rows, length, target_width(most_targets, length), self.micro_batch_size
            )
            for num_rows, length, most_targets in shapes
        )
        if self.num_steps <= NUM_PLANNED_STEPS:  # a shape that no step uses would still be compiled ahead of time
            used = {self.shape(step) for step in range(1, self.num_steps + 1)}
            self.shapes = tuple(shape for shape in self.shapes if shape in used)

    def items(self, step: int) -> list[np.ndarray]:
        """The pairs of each micro-batch of the step: all take the shape of the longest, so they get equal tokens."""
        micro_batches = super().items(step)
        if not self._packed or len(micro_batches) == 1:
            return micro_batches
        return _balanced(np.concatenate(micro_batches), self._tokens, len(micro_batches), self.micro_batch_size)

    def shape(self, step: int) -> StepShape:
        if not self._packed:
            return self.shapes[0]
        if not 1 <= step <= self.num_steps:
            raise ValueError(f"step: got {step}, wanted 1 to {self.num_steps}, the steps planned")
        if step not in self._shape_of_step:
            items = self.items(step)
            self._shape_of_step[step] = next(shape for shape in self.shapes if self._fits(items, shape))
        return self._shape_of_step[step]

    def _fits(self, micro_batches: list[np.ndarray], shape: StepShape) -> bool:
        _, num_rows, row_length, num_targets, _ = shape
        if any(self._tokens[items].sum() > num_rows * row_length for items in micro_batches):
            return False  # seen without packing
        needs = [self._needs(items, row_length) for items in micro_batches]
        return all(0 <= rows <= num_rows and targets <= num_targets for rows, _, targets in needs)

    def _needs(self, items: np.ndarray, row_length: int) -> tuple[int, int, int]:
        """Of one micro-batch: rows (-1: a pair is longer than a row), longest row, most targets of a row."""
        tokens = self._tokens[items]
        if not len(items) or tokens.max() > row_length:
            return (-1 if len(items) else 0), 0, 0
        rows = pack_pairs(tokens, row_length)
        return len(rows), int(_row_sums(rows, tokens).max()), int(_row_sums(rows, self._targets[items]).max())

    def _padded_shape(self, row_multiple: int) -> tuple[int, int, int]:
        responses = self._lengths[:, 1:].max(axis=1)
        longest = int((self._lengths[:, 0] + responses).max())
        return round_up(2 * self.micro_batch_size, row_multiple), round_up(longest, 64), int(responses.max())

    def _plan(self, row_length: int, row_multiple: int) -> list[tuple[int, int, int]]:
        """The rows, row length and most targets of each shape: the last holds all steps, the others suit a sample."""
        steps = range(1, self.num_steps + 1)
        needs = np.array([self._needs(items, row_length) for step in steps for items in self.items(step)])
        if needs[:, 0].min() < 0:
            raise ValueError(f"row_length: got {row_length}, wanted at least the longest pair's {self._tokens.max()}")
        most_rows, longest, most_targets = needs.max(axis=0).tolist()
        row_lengths = candidate_row_lengths(min(row_length, round_up(longest, 64)))
        sample = [self.items(step) for step in steps[:: -(-len(steps) // NUM_PLANNED_STEPS)]]
        # [steps, row lengths, micro-batches, 3]: the whole step takes the shape of its most demanding micro-batch
        sampled = np.array(
            [[[self._needs(items, length) for items in step] for length in row_lengths] for step in sample]
        )
        rows = np.where(sampled[..., 0].min(axis=2) < 0, 0, sampled[..., 0].max(axis=2))
        shapes = choose_row_shapes(
            rows,
            row_lengths,
            most_rows=most_rows,
            row_multiple=row_multiple,
            max_shapes=most_shapes(self.num_steps),
        )
        targets = dict(zip(row_lengths, sampled[..., 2].max(axis=(0, 2)).tolist(), strict=True))
        return [(num_rows, length, targets[length]) for num_rows, length in shapes[:-1]] + [(*shapes[-1], most_targets)]

    def _micro_batch(self, items: np.ndarray, step: int, rows: slice) -> MicroBatch:
        _, num_rows, row_length, num_targets, num_pairs = self.shape(step)
        make = packed_pair_micro_batch if self._packed else padded_pair_micro_batch
        return make(
            self._pairs,
            items,
            num_rows=num_rows,
            rows=rows,
            row_length=row_length,
            num_targets=num_targets,
            num_pairs=num_pairs,
            pad_id=self._pad_id,
        )

    def _item_sizes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        read = self._lengths @ [2, 1, 1]
        return read, self._tokens if self._packed else read, self._targets


def _balanced(items: np.ndarray, tokens: np.ndarray, num_groups: int, most_items: int) -> list[np.ndarray]:
    """Items dealt to groups of at most `most_items`: the longest first, each to the group with the fewest tokens."""
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    totals = [0] * num_groups
    for item in items[np.argsort(-tokens[items], kind="stable")].tolist():
        group = min((g for g in range(num_groups) if len(groups[g]) < most_items), key=totals.__getitem__)
        groups[group].append(item)
        totals[group] += int(tokens[item])
    return [np.array(group, items.dtype) for group in sorted(groups, key=len, reverse=True)]


def _row_sums(rows: list[list[int]], values: np.ndarray) -> np.ndarray:
    """[R]: the sum of the values of each row's members; no row is empty."""
    starts = np.cumsum([0] + [len(row) for row in rows[:-1]])
    return np.add.reduceat(values[np.fromiter(itertools.chain.from_iterable(rows), np.int64)], starts)
