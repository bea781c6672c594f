"""Rows of contexts with the continuations that may follow them: what several have in common is computed once a row.

A continuation sees its context and itself, never its siblings, as the answers of a packed preference pair do
(data/pair_rows.py). Contexts that begin alike (the worked examples of a few-shot task) share that beginning in the same
way: a tree of two levels, [beginning | context, continuation, continuation | context, ...]. Rows are micro-batches of
the format in data/packing.py, all of one shape, so that one program scores them all. A continuation's last token is
predicted and never read: it takes no place in a row.

  target_slots   the continuation, by its place in the step's `owners`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from zephyr_jax.data.packing import MicroBatch, best_fit, empty_micro_batch, round_up

BRANCHES_PER_FORK = 256  # branch = this times the context's number + the continuation's (model/visibility.py)
SMALLEST_ROW = 256
LEAST_SHARED_TOKENS = 32  # shorter beginnings are not worth the longer rows
# A beginning is not cut by more than a quarter to take in one more context.
LEAST_KEPT_SHARE = 0.75
LEAST_SAVED_SHARE = 0.1  # of all places: on GPUs rows of two levels go without the fastest attention
MOST_BRANCH_TOKENS = 1024  # a context with more tokens of continuations comes again, rather than in a longer row
TARGET_MULTIPLE = 64
LONGER_ROWS_SAVE = 0.05  # the share of places that longer rows must save: their activations leave the caches


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Fork:
    """A context and what may follow it.

    Attributes:
      context: int32 [P], 1 or more.
      continuations: int32 [C_i] each, 1 or more.
      owners: by continuation, the requests that ask for it.
    """

    context: np.ndarray
    continuations: tuple[np.ndarray, ...]
    owners: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Places in a row."""
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations)

    @property
    def num_targets(self) -> int:
        """Tokens to predict."""
        return sum(len(ids) for ids in self.continuations)


@dataclasses.dataclass(frozen=True)
class Forks:
    """All requests, those of one context together.

    Attributes:
      forks: in the order of their first requests.
      num_truncated: requests whose context lost tokens from its start.
    """

    forks: tuple[Fork, ...]
    num_truncated: int


def truncate(context: Sequence[int], continuation: Sequence[int], *, max_length: int) -> Sequence[int]:
    """The context's last tokens, so that all tokens read (the continuation's last is not) are at most `max_length`."""
    return context[max(0, len(context) + len(continuation) - 1 - max_length) :]


def fork_requests(
    requests: Sequence[tuple[Sequence[int], Sequence[int]]], *, max_length: int, max_branches: int
) -> Forks:
    """Puts requests of one context together; equal requests become one.

    Args:
      requests: (context, continuation), token ids, 1 or more each; the continuation has at most `max_length`.
      max_length: the most tokens that the model reads; longer contexts lose tokens from their start.
      max_branches: the most continuations of two tokens or more beside each other.

    Returns:
      The forks. Requests whose contexts are cut at different places do not share them.
    """
    by_context: dict[bytes, dict[bytes, list[int]]] = {}
    num_truncated = 0
    for index, (context, continuation) in enumerate(requests):
        assert len(context) and 0 < len(continuation) <= max_length, (len(context), len(continuation))
        kept = truncate(context, continuation, max_length=max_length)
        num_truncated += len(kept) < len(context)
        siblings = by_context.setdefault(_key(kept), {})
        siblings.setdefault(_key(continuation), []).append(index)
    forks: list[Fork] = []
    for key, siblings in by_context.items():
        forks += _forks(_ids(key), [(_ids(ids), tuple(who)) for ids, who in siblings.items()], max_branches)
    return Forks(tuple(forks), num_truncated)


def _key(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, np.int32).tobytes()


def _ids(key: bytes) -> np.ndarray:
    return np.frombuffer(key, np.int32)


def _forks(
    context: np.ndarray, continuations: Sequence[tuple[np.ndarray, tuple[int, ...]]], max_branches: int
) -> Iterator[Fork]:
    """One fork, or several where there are too many continuations or tokens."""
    parts: list[list[tuple[np.ndarray, tuple[int, ...]]]] = [[]]
    num_tokens = num_branches = 0
    for ids, owners in continuations:
        length = len(ids) - 1
        if parts[-1] and (num_tokens + length > MOST_BRANCH_TOKENS or num_branches + (length > 0) > max_branches):
            parts.append([])
            num_tokens = num_branches = 0
        parts[-1].append((ids, owners))
        num_tokens, num_branches = num_tokens + length, num_branches + (length > 0)
    for part in parts:
        yield Fork(context, tuple(ids for ids, _ in part), tuple(owners for _, owners in part))


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """Forks whose contexts begin alike, that beginning once in front of them; or one fork by itself.

    Attributes:
      num_shared: tokens of the beginning, less than any of the contexts; 0 for a fork by itself.
      members: indexes of the forks.
      num_tokens: places in a row.
    """

    num_shared: int
    members: tuple[int, ...]
    num_tokens: int


def common_beginnings(forks: Sequence[Fork]) -> list[tuple[int, list[int]]]:
    """Which forks' contexts begin alike: (tokens in common, indexes); 0 tokens for forks that share with nobody.

    Nobody shares where that would save too little.
    """
    order = sorted(range(len(forks)), key=lambda index: forks[index].context.astype(">i4").tobytes())
    groups: list[tuple[int, list[int]]] = []
    for index in order:
        context = forks[index].context
        if groups:
            num_shared, members = groups[-1]
            beginning = forks[members[0]].context[: num_shared or -1]  # one token at least is a context's own
            common = min(_num_alike(beginning, context), len(context) - 1)
            if common >= LEAST_SHARED_TOKENS and common >= LEAST_KEPT_SHARE * num_shared:
                groups[-1] = (common, [*members, index])
                continue
        groups.append((0, [index]))
    saved = sum(num_shared * (len(members) - 1) for num_shared, members in groups)
    if saved < LEAST_SAVED_SHARE * sum(fork.num_tokens for fork in forks):
        return [(0, [index]) for index in range(len(forks))]
    return groups


def _num_alike(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    unlike = np.flatnonzero(first[:length] != second[:length])
    return int(unlike[0]) if len(unlike) else length


def bundle_forks(forks: Sequence[Fork], groups: Sequence[tuple[int, list[int]]], *, row_length: int) -> list[Bundle]:
    """Parts forks with a beginning in common so that each part fits a row, with that beginning once more."""
    bundles = []
    for num_shared, members in groups:
        own = [forks[index].num_tokens - num_shared for index in members]
        longest_first = np.argsort(-np.array(own), kind="stable").tolist()
        for part in best_fit(own, row_length - num_shared, order=longest_first):
            num_tokens = num_shared + sum(own[place] for place in part)
            bundles.append(Bundle(num_shared, tuple(members[place] for place in part), num_tokens))
    return bundles


@dataclasses.dataclass(frozen=True)
class ForkRows:
    """The rows of all forks, and their one shape.

    Attributes:
      forks: what the rows hold.
      rows: the bundles of each row.
      row_length: T.
      num_targets: N.
      rows_per_step: B.
    """

    forks: Sequence[Fork]
    rows: Sequence[Sequence[Bundle]]
    row_length: int
    num_targets: int
    rows_per_step: int

    @property
    def has_shared_beginnings(self) -> bool:
        """Whether branches have a second level."""
        return any(bundle.num_shared for row in self.rows for bundle in row)

    @property
    def num_tokens(self) -> int:
        """Places that hold a token."""
        return sum(bundle.num_tokens for row in self.rows for bundle in row)

    @property
    def num_steps(self) -> int:
        """Micro-batches."""
        return -(-len(self.rows) // self.rows_per_step)

    def step(self, step: int) -> tuple[MicroBatch, list[tuple[int, ...]]]:
        """A micro-batch, and the requests of each continuation in it: slot -> owners. Steps are counted from 0.

        The context [1 2 3] with [4 5 6] and [7 8] and [9] in a row of 8:

          index           0  1  2  3  4  5  6  7
          tokens          1  2  3  4  5  7  0  0
          positions       0  1  2  3  4  3  0  0
          segments        1  1  1  1  1  1  0  0
          branches        0  0  0  1  1  2  0  0
          target_sources  2  3  4  2  5  2
          target_ids      4  5  6  7  8  9
          target_slots    0  0  0  1  1  2

        The contexts [1 2 3] with [4 5] and [7 8], and [1 2 6] with [9 8], which begin alike with [1 2]:

          tokens          1    2    3    4    7    6    9
          positions       0    1    2    3    3    2    3
          branches        0    0  256  257  258  512  513
        """
        batch = empty_micro_batch(num_rows=self.rows_per_step, row_length=self.row_length, num_targets=self.num_targets)
        owners: list[tuple[int, ...]] = []
        first = step * self.rows_per_step
        for row, members in enumerate(self.rows[first : first + self.rows_per_step]):
            start = filled = 0
            for segment, bundle in enumerate(members, start=1):
                filled = self._write(batch, row, start, filled, bundle, segment=segment, owners=owners)
                start += bundle.num_tokens
            batch["num_tokens"] += np.int32(start)
        return batch, owners

    def _write(
        self,
        batch: MicroBatch,
        row: int,
        start: int,
        filled: int,
        bundle: Bundle,
        *,
        segment: int,
        owners: list[tuple[int, ...]],
    ) -> int:
        """Writes a bundle into a row from place `start` and target `filled` on; returns the targets that are filled."""
        tokens, positions, branches = (batch[name][row] for name in ("tokens", "positions", "branches"))
        batch["segments"][row, start : start + bundle.num_tokens] = segment
        num_shared, place = bundle.num_shared, start + bundle.num_shared
        tokens[start:place] = self.forks[bundle.members[0]].context[:num_shared]
        positions[start:place] = np.arange(num_shared)
        for number, index in enumerate(bundle.members, start=1 if num_shared else 0):
            fork, branch = self.forks[index], BRANCHES_PER_FORK * number
            num_context = len(fork.context)
            own = slice(place, place + num_context - num_shared)
            tokens[own] = fork.context[num_shared:]
            positions[own] = np.arange(num_shared, num_context)
            branches[own] = branch
            place = own.stop
            for ids, who in zip(fork.continuations, fork.owners, strict=True):
                read = slice(place, place + len(ids) - 1)
                if len(ids) > 1:
                    branch += 1
                    tokens[read] = ids[:-1]
                    positions[read] = num_context + np.arange(len(ids) - 1)
                    branches[read] = branch
                targets = slice(filled, filled + len(ids))
                batch["target_sources"][row, targets] = np.r_[own.stop - 1, np.arange(read.start, read.stop)]
                batch["target_ids"][row, targets] = ids
                batch["target_slots"][row, targets] = len(owners)
                batch["target_weights"][row, targets] = 1
                owners.append(who)
                place, filled = read.stop, targets.stop
        return filled


def row_lengths(longest: int) -> list[int]:
    """Row lengths worth trying that hold `longest`: four to every doubling, up to four times its own."""
    lengths, base = [], SMALLEST_ROW
    while base < 8 * max(longest, SMALLEST_ROW):
        lengths += [base + base * quarter // 4 for quarter in range(4)]
        base *= 2
    return [length for length in lengths if longest <= length <= 4 * max(longest, SMALLEST_ROW)]


def lay_out_rows(forks: Sequence[Fork], *, tokens_per_step: int, row_multiple: int = 1) -> ForkRows:
    """Packs forks into the shortest rows among those that leave nearly the fewest places empty or filled twice.

    Args:
      forks: 1 or more.
      tokens_per_step: places of a step, about; a step has at least one row.
      row_multiple: rows of a step are a multiple of it.
    """
    groups = common_beginnings(forks)
    tried = []
    for row_length in row_lengths(max(fork.num_tokens for fork in forks)):
        bundles = bundle_forks(forks, groups, row_length=row_length)
        lengths = np.array([bundle.num_tokens for bundle in bundles])
        packed = best_fit(lengths, row_length, order=np.argsort(-lengths, kind="stable").tolist())
        rows = [[bundles[index] for index in row] for row in packed]
        most = round_up(max(1, tokens_per_step // row_length), row_multiple)
        # A power of two where there are few: few sizes, so that a program kept on disk serves again.
        few = round_up(1 << (len(rows) - 1).bit_length(), row_multiple)
        fullest = max(sum(forks[index].num_targets for bundle in row for index in bundle.members) for row in rows)
        tried.append(ForkRows(forks, rows, row_length, round_up(fullest, TARGET_MULTIPLE), min(most, few)))
    fewest = min(map(_places, tried))
    return next(laid for laid in tried if _places(laid) * (1 - LONGER_ROWS_SAVE) <= fewest)


def _places(laid: ForkRows) -> int:
    return laid.num_steps * laid.rows_per_step * laid.row_length
