"""Packed and plain rows and random heads for them, for the tests of attention. Not a test."""

from __future__ import annotations

import numpy as np

from zephyr_jax.model.visibility import Coordinates


def random_heads(num_tokens: int, *, num_heads: int, num_kv_heads: int, size: int = 8, seed: int = 0):
    """Queries, keys and values of two rows, float32."""
    random = np.random.default_rng(seed)
    heads = (num_heads, num_kv_heads, num_kv_heads)
    return [random.standard_normal((2, num_tokens, n, size)).astype(np.float32) for n in heads]


def packed_rows() -> Coordinates:
    """Two rows in which pairs, dialogues and padding meet block borders at other places."""
    first = ([*range(5), 3, 4, *range(8)], [1] * 7 + [2] * 8, [0, 0, 0, 1, 1, 2, 2] + [0] * 8)
    second = ([*range(11), 0, 0, 0, 0], [1] * 11 + [0] * 4, [0] * 15)
    return Coordinates(*(np.asarray(rows, np.int32) for rows in zip(first, second, strict=True)))


def plain_rows(lengths: list[int], *, total: int) -> Coordinates:
    """A row for each length: one text, padding at the end."""
    places = np.arange(total, dtype=np.int32)[None]
    real = places < np.asarray(lengths)[:, None]
    return Coordinates(places * real, real.astype(np.int32), np.zeros_like(places * real))


def repeated_rows(copies: int) -> Coordinates:
    """The packed rows several times side by side, their segments told apart."""
    row = packed_rows()
    segments = [np.where(row.segments > 0, row.segments + 2 * i, 0) for i in range(copies)]
    return Coordinates(np.tile(row.positions, copies), np.concatenate(segments, axis=1), np.tile(row.branches, copies))
