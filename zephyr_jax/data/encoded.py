"""Tokenised dialogues and pairs, kept compactly: 200 000 dialogues are a few flat arrays, not a million objects.

Not here: making the ids fit (data/preparing.py), rows and batches (data/packing.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EncodedConversations:
    """M tokenised dialogues in flat arrays; `dialogues[i]` gives views `(ids, is_target)` of one of them.

    Attributes:
      ids: int32 [S], the ids of all dialogues one after the other.
      is_target: bool [S], whether the token is to be learnt; never set on a dialogue's first token.
      offsets: int64 [M + 1], dialogue i is `ids[offsets[i] : offsets[i + 1]]`.
      rows: int64 [M], the index of the dialogue among the rows given.
      dropped: the index of each row left out -> why.
    """

    ids: np.ndarray
    is_target: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    dropped: dict[int, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def collect(cls, items: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> EncodedConversations:
        """Joins `(row, ids, is_target)` as they come, holding no second copy of what is already joined."""
        ids, is_target, offsets, rows = array("i"), bytearray(), array("q", [0]), array("q")
        for row, item_ids, item_is_target in items:
            ids.frombytes(np.asarray(item_ids, np.int32).tobytes())
            is_target += np.asarray(item_is_target, np.bool_).tobytes()
            offsets.append(len(ids))
            rows.append(row)
        return cls(
            ids=_array(ids, np.int32),
            is_target=_array(is_target, np.bool_),
            offsets=_array(offsets, np.int64),
            rows=_array(rows, np.int64),
        )

    @classmethod
    def join(cls, parts: Iterable[tuple[int, EncodedConversations]]) -> EncodedConversations:
        """Joins `(index of the part's first row among all rows, part)` as they come."""
        ids, is_target, offsets, rows = array("i"), bytearray(), array("q", [0]), array("q")
        dropped: dict[int, str] = {}
        for start, part in parts:
            offsets.frombytes((part.offsets[1:] + len(ids)).tobytes())
            ids.frombytes(part.ids.tobytes())
            is_target += part.is_target.tobytes()
            rows.frombytes((part.rows + start).tobytes())
            dropped |= {start + row: reason for row, reason in part.dropped.items()}
        return cls(
            ids=_array(ids, np.int32),
            is_target=_array(is_target, np.bool_),
            offsets=_array(offsets, np.int64),
            rows=_array(rows, np.int64),
            dropped=dropped,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[part], self.is_target[part]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [M]: tokens of each dialogue."""
        return np.diff(self.offsets)

    def fingerprint(self) -> str:
        """sha256 of the ids, of what is learnt and of where dialogues are parted: equal where the rows are."""
        digest = hashlib.sha256(np.ascontiguousarray(self.offsets, "<i8").data)
        digest.update(np.ascontiguousarray(self.ids, "<i4").data)  # no copy: it may be a gigabyte
        digest.update(np.ascontiguousarray(self.is_target).data)
        return digest.hexdigest()

    @property
    def num_targets(self) -> np.ndarray:
        """int64 [M]: target tokens of each dialogue, none of which is empty."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(self.is_target, self.offsets[:-1], dtype=np.int64)  # a cumsum would take 8 bytes a token


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EncodedPairs:
    """M tokenised preference pairs in flat arrays; `pairs[i]` gives views `(prompt, chosen, rejected)` of one.

    Attributes:
      ids: int32 [S], prompt, chosen and rejected of all pairs one after the other.
      offsets: int64 [3 M + 1], where each of those parts ends and the next begins.
      rows: int64 [M], the index of the pair among the rows given.
      dropped: the index of each row left out -> why.
    """

    ids: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    dropped: dict[int, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def collect(cls, items: Iterable[tuple[int, np.ndarray, np.ndarray, np.ndarray]]) -> EncodedPairs:
        """Joins `(row, prompt, chosen, rejected)` as they come."""
        ids, offsets, rows = array("i"), array("q", [0]), array("q")
        for row, *parts in items:
            for part in parts:
                ids.frombytes(np.asarray(part, np.int32).tobytes())
                offsets.append(len(ids))
            rows.append(row)
        return cls(
            ids=_array(ids, np.int32),
            offsets=_array(offsets, np.int64),
            rows=_array(rows, np.int64),
        )

    @classmethod
    def join(cls, parts: Iterable[tuple[int, EncodedPairs]]) -> EncodedPairs:
        """Joins `(index of the part's first row among all rows, part)` as they come."""
        ids, offsets, rows = array("i"), array("q", [0]), array("q")
        dropped: dict[int, str] = {}
        for start, part in parts:
            offsets.frombytes((part.offsets[1:] + len(ids)).tobytes())
            ids.frombytes(part.ids.tobytes())
            rows.frombytes((part.rows + start).tobytes())
            dropped |= {start + row: reason for row, reason in part.dropped.items()}
        return cls(
            ids=_array(ids, np.int32),
            offsets=_array(offsets, np.int64),
            rows=_array(rows, np.int64),
            dropped=dropped,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start, prompt_end, chosen_end, end = self.offsets[3 * index : 3 * index + 4]
        return self.ids[start:prompt_end], self.ids[prompt_end:chosen_end], self.ids[chosen_end:end]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [M, 3]: tokens of the prompt, of the chosen and of the rejected response."""
        return np.diff(self.offsets).reshape(-1, 3)

    def fingerprint(self) -> str:
        """sha256 of the ids and of where they are parted: equal exactly where the pairs are equal, in order."""
        digest = hashlib.sha256(np.ascontiguousarray(self.offsets, "<i8").data)
        digest.update(np.ascontiguousarray(self.ids, "<i4").data)  # no copy: it may be a gigabyte
        return digest.hexdigest()


def _array(buffer: array | bytearray, dtype: type[np.generic]) -> np.ndarray:
    """The buffer as an array, without a copy and closed to writing: the rows of every batch are read from it."""
    return np.frombuffer(memoryview(buffer).toreadonly(), dtype) if buffer else np.zeros(0, dtype)
