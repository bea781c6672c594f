"""Attention: who sees whom as tables written by hand, and every implementation the same numbers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.packed_heads import packed_rows, random_heads
from zephyr_jax.model import blockwise_attention
from zephyr_jax.model.attention import attention, choose_attention
from zephyr_jax.model.visibility import Coordinates, visible
from zephyr_jax.records import InputError


def _coordinates(positions, segments, branches) -> Coordinates:
    return Coordinates(*(np.asarray([row], np.int32) for row in (positions, segments, branches)))


# A pair [prompt of 2 | chosen of 2 | rejected of 1], a dialogue of 2 tokens, 1 of padding.
PACKED = _coordinates([0, 1, 2, 3, 2, 0, 1, 0], [1, 1, 1, 1, 1, 2, 2, 0], [0, 0, 1, 1, 2, 0, 0, 0])


def test_each_token_sees_its_own_prompt_and_answer_and_nothing_else():
    """Rows are queries, columns keys: prompt p p, chosen c c, rejected r, dialogue d d, padding."""
    wanted = """
        1 0 0 0 0 0 0 0
        1 1 0 0 0 0 0 0
        1 1 1 0 0 0 0 0
        1 1 1 1 0 0 0 0
        1 1 0 0 1 0 0 0
        0 0 0 0 0 1 0 0
        0 0 0 0 0 1 1 0
        0 0 0 0 0 0 0 0
    """
    assert visible(PACKED, PACKED, window=None)[0].astype(int).tolist() == _table(wanted)


def test_window_counts_the_current_token_and_positions_not_places():
    """Window 2: oneself and one before; the rejected token stands at position 2, so it sees position 1 alone."""
    wanted = """
        1 0 0 0 0 0 0 0
        1 1 0 0 0 0 0 0
        0 1 1 0 0 0 0 0
        0 0 1 1 0 0 0 0
        0 1 0 0 1 0 0 0
        0 0 0 0 0 1 0 0
        0 0 0 0 0 1 1 0
        0 0 0 0 0 0 0 0
    """
    assert visible(PACKED, PACKED, window=2)[0].astype(int).tolist() == _table(wanted)


def _table(text: str) -> list[list[int]]:
    return [[int(cell) for cell in line.split()] for line in text.strip().splitlines()]


@pytest.mark.parametrize("window", [None, 3])
def test_grouped_heads_equal_repeated_key_value_heads(window):
    """Queries 0, 1, 2 use key/value head 0 and queries 3, 4, 5 head 1: jnp.repeat, not jnp.tile."""
    q_BTNH, k_BSKH, v_BSKH = random_heads(15, num_heads=6, num_kv_heads=2)
    where = packed_rows()
    run = jax.jit(functools.partial(attention, query=where, key=where, window=window, implementation="xla"))
    grouped = np.asarray(run(q_BTNH, k_BSKH, v_BSKH))
    repeated = np.asarray(run(q_BTNH, np.repeat(k_BSKH, 3, axis=2), np.repeat(v_BSKH, 3, axis=2)))
    tiled = np.asarray(run(q_BTNH, np.tile(k_BSKH, (1, 1, 3, 1)), np.tile(v_BSKH, (1, 1, 3, 1))))
    np.testing.assert_allclose(grouped, repeated, atol=1e-6)
    assert np.abs(grouped - tiled).max() > 0.1


def test_softmax_is_in_float32_when_heads_are_bfloat16():
    """512 equal keys weigh 1/512 each: their values' mean is exact in float32 sums, a bf16 softmax would stall at 256.

    The values are 1, so the output is the sum of the weights: 1.
    """
    ones = np.ones((1, 512, 1, 2), jnp.bfloat16)
    zeros_BT = np.zeros((1, 512), np.int32)
    where = Coordinates(zeros_BT, zeros_BT + 1, zeros_BT)
    run = functools.partial(attention, query=where, key=where, window=None, implementation="xla")
    out = np.asarray(jax.jit(run)(ones, ones, ones))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), 1.0, atol=1e-2)


def test_auto_takes_blocks_for_rows_longer_than_one_block():
    block = blockwise_attention.MAX_BLOCK_TOKENS
    assert choose_attention("auto", block, platform="cpu") == "xla"
    assert choose_attention("auto", block + 1, platform="cpu") == "blockwise"


def test_a_named_implementation_is_taken_or_refused_never_replaced():
    assert choose_attention("xla", 4096, platform="cpu") == "xla"
    assert choose_attention("blockwise", 8, platform="cpu") == "blockwise"
    assert choose_attention("cudnn", 8, platform="gpu") == "cudnn"
    with pytest.raises(InputError, match=r"model.attention: cudnn needs an NVIDIA GPU, this is cpu; use auto"):
        choose_attention("cudnn", 4096, platform="cpu")
