"""Attention: who sees whom as tables written by hand, and every implementation the same numbers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.packed_heads import packed_rows, plain_rows, random_heads
from zephyr_jax.model.attention import _cudnn, attention
from zephyr_jax.model.visibility import Coordinates, visible


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


def test_in_rows_of_two_levels_a_branch_sees_the_text_that_it_grows_from():
    """Beginning b, context 1 (branch 256) with continuations x and y, context 2 (512) with z."""
    forks = _coordinates([0, 1, 2, 2, 1, 2], [1] * 6, [0, 256, 257, 258, 512, 513])
    wanted = """
        1 0 0 0 0 0
        1 1 0 0 0 0
        1 1 1 0 0 0
        1 1 0 1 0 0
        1 0 0 0 1 0
        1 0 0 0 1 1
    """
    assert visible(forks, forks, window=None)[0].astype(int).tolist() == _table(wanted)


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


@pytest.mark.parametrize("window", [None, 5])
def test_cudnn_sees_in_plain_rows_what_dense_attention_sees(window):
    """Texts of 15 and 11 tokens, 4 of padding behind. cuDNN's own kernel needs a GPU: XLA computes what it is asked.

    Padding gives finite numbers, and no gradient where nothing reads it.
    """
    heads = random_heads(15, num_heads=4, num_kv_heads=2)
    where = plain_rows([15, 11], total=15)
    real_BT11 = (where.segments > 0)[:, :, None, None]

    def run(function):
        def total(heads):
            out = function(*heads)
            return jnp.sum(jnp.sin(out) * real_BT11), jnp.where(real_BT11, out, 0.0 * out)

        (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(heads)
        return out, gradients

    dense = functools.partial(attention, query=where, key=where, window=window, implementation="xla")
    cudnn = functools.partial(_cudnn, window=window, mask_BTS=None, implementation="xla")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), run(dense), run(cudnn))


def test_cudnn_sees_in_packed_rows_what_its_mask_says():
    heads = random_heads(15, num_heads=4, num_kv_heads=2)
    where = packed_rows()
    mask_BTS = visible(where, where, window=3)
    real_BT11 = (where.segments > 0)[:, :, None, None]
    dense = attention(*heads, query=where, key=where, window=3, implementation="xla")
    cudnn = _cudnn(*heads, window=3, mask_BTS=mask_BTS, implementation="xla")
    np.testing.assert_allclose(cudnn * real_BT11, dense * real_BT11, atol=2e-6)


def test_cudnn_is_asked_for_causal_order_with_every_window(monkeypatch):
    """Its window alone lets a query see what stands behind it."""
    asked = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, *_, **options: asked.append(options) or q)
    heads = random_heads(15, num_heads=2, num_kv_heads=2)
    for rows, where in (("plain", plain_rows([15, 11], total=15)), ("pairs", packed_rows())):
        attention(*heads, query=where, key=where, window=4, implementation="cudnn", rows=rows)
    plain, packed = asked
    assert plain["is_causal"] and plain["local_window_size"] == (3, 0) and plain["mask"] is None
    assert packed["is_causal"] and packed["local_window_size"] is None and packed["mask"].shape == (2, 1, 15, 15)
    assert plain["implementation"] == packed["implementation"] == "cudnn"
