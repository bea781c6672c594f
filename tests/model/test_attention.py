"""Attention: who sees whom as tables written by hand, and every implementation the same numbers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zephyr_jax.model import attention as attention_module
from zephyr_jax.model.attention import Coordinates, attention, choose_attention, visible
from zephyr_jax.records import InputError


def _coordinates(positions, segments, branches) -> Coordinates:
    return Coordinates(*(np.asarray([row], np.int32) for row in (positions, segments, branches)))


# A pair [prompt of 2 | chosen of 2 | rejected of 1], a dialogue of 2 tokens, 1 of padding.
PACKED = _coordinates([0, 1, 2, 3, 2, 0, 1, 0], [1, 1, 1, 1, 1, 2, 2, 0], [0, 0, 1, 1, 2, 0, 0, 0])


def _random_heads(num_tokens: int, *, num_heads: int, num_kv_heads: int, size: int = 8, seed: int = 0):
    random = np.random.default_rng(seed)
    heads = (num_heads, num_kv_heads, num_kv_heads)
    return [random.standard_normal((2, num_tokens, n, size)).astype(np.float32) for n in heads]


def _packed_row(num_tokens: int) -> Coordinates:
    """Two rows in which pairs, dialogues and padding meet block borders at other places."""
    first = ([*range(5), 3, 4, *range(8)], [1] * 7 + [2] * 8, [0, 0, 0, 1, 1, 2, 2] + [0] * 8)
    second = ([*range(11), 0, 0, 0, 0], [1] * 11 + [0] * 4, [0] * 15)
    assert num_tokens == 15
    return Coordinates(*(np.asarray(rows, np.int32) for rows in zip(first, second, strict=True)))


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
    q_BTNH, k_BSKH, v_BSKH = _random_heads(15, num_heads=6, num_kv_heads=2)
    where = _packed_row(15)
    run = jax.jit(functools.partial(attention, query=where, key=where, window=window, implementation="xla"))
    grouped = np.asarray(run(q_BTNH, k_BSKH, v_BSKH))
    repeated = np.asarray(run(q_BTNH, np.repeat(k_BSKH, 3, axis=2), np.repeat(v_BSKH, 3, axis=2)))
    tiled = np.asarray(run(q_BTNH, np.tile(k_BSKH, (1, 1, 3, 1)), np.tile(v_BSKH, (1, 1, 3, 1))))
    np.testing.assert_allclose(grouped, repeated, atol=1e-6)
    assert np.abs(grouped - tiled).max() > 0.1


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("block", [4, 5, 64], ids=["last_block_smaller", "even_blocks", "one_block"])
def test_blockwise_equals_dense_in_values_and_gradients(window, block, monkeypatch):
    monkeypatch.setattr(attention_module, "QUERY_BLOCK_TOKENS", block)
    heads = _random_heads(15, num_heads=4, num_kv_heads=2)
    where = _packed_row(15)
    real_BT11 = (where.segments > 0)[:, :, None, None]
    weights_BTNH = np.random.default_rng(1).standard_normal(heads[0].shape).astype(np.float32) * real_BT11

    def run(implementation: str):
        def total(heads):
            out = attention(*heads, query=where, key=where, window=window, implementation=implementation)
            return jnp.sum(out * weights_BTNH), out * real_BT11

        (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(heads)
        return out, gradients

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), run("xla"), run("blockwise"))


def test_a_query_that_sees_nothing_is_finite_and_so_are_gradients():
    """Padding queries: all scores masked. With -inf the softmax would be 0 / 0, and the NaN would spread backwards."""
    heads = _random_heads(15, num_heads=2, num_kv_heads=2)
    nothing = Coordinates(*(np.zeros((2, 15), np.int32),) * 3)

    def total(heads):
        return jnp.sum(attention(*heads, query=nothing, key=nothing, window=None, implementation="xla"))

    assert all(np.isfinite(gradient).all() for gradient in jax.device_get(jax.jit(jax.grad(total))(heads)))


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
    block = attention_module.QUERY_BLOCK_TOKENS
    assert choose_attention("auto", block, platform="cpu") == "xla"
    assert choose_attention("auto", block + 1, platform="cpu") == "blockwise"


def test_a_named_implementation_is_taken_or_refused_never_replaced():
    assert choose_attention("xla", 4096, platform="cpu") == "xla"
    assert choose_attention("blockwise", 8, platform="cpu") == "blockwise"
    assert choose_attention("cudnn", 8, platform="gpu") == "cudnn"
    with pytest.raises(InputError, match=r"model.attention: cudnn needs an NVIDIA GPU, this is cpu; use auto"):
        choose_attention("cudnn", 4096, platform="cpu")
