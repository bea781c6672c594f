"""Blockwise attention: the numbers of dense attention, and no visit to a block that nobody sees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.packed_heads import packed_rows, random_heads, repeated_rows
from zephyr_jax.model import blockwise_attention
from zephyr_jax.model.attention import attention
from zephyr_jax.model.blockwise_attention import block_size, causal_blocks, live_blocks
from zephyr_jax.model.visibility import Coordinates


@pytest.fixture
def blocks_of_16(monkeypatch):
    monkeypatch.setattr(blockwise_attention, "MAX_BLOCK_TOKENS", 16)


def _rows_of(lengths: list[int], *, total: int) -> Coordinates:
    """One row of dialogues, each a segment of its own, padded to `total`."""
    rest = total - sum(lengths)
    positions = np.concatenate([*map(np.arange, lengths), np.zeros(rest)])
    segments = np.concatenate([*(np.full(n, i) for i, n in enumerate(lengths, start=1)), np.zeros(rest)])
    return Coordinates(*(row.astype(np.int32)[None] for row in (positions, segments, np.zeros(total))))


def test_blocks_are_equal_and_reach_little_over_the_end():
    """768 = 3 x 256; 384 in two of 192; 704 in three of 240, 16 too many; 257 in two of 144."""
    assert [block_size(n) for n in (768, 384, 704, 257, 2048, 15)] == [256, 192, 240, 144, 256, 16]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("copies", [1, 2, 5], ids=["one_block", "whole_blocks", "padded_blocks"])
def test_blockwise_equals_dense_in_values_and_gradients(window, copies, blocks_of_16):
    """15, 30 and 75 tokens in blocks of 16: packed rows side by side, their segments told apart."""
    num_tokens = 15 * copies
    heads = random_heads(num_tokens, num_heads=4, num_kv_heads=2)
    where = repeated_rows(copies)
    real_BT11 = (where.segments > 0)[:, :, None, None]
    weights_BTNH = np.random.default_rng(1).standard_normal(heads[0].shape).astype(np.float32) * real_BT11

    def run(implementation: str):
        def total(heads):
            out = attention(*heads, query=where, key=where, window=window, implementation=implementation)
            return jnp.sum(out * weights_BTNH), out * real_BT11

        (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(heads)
        return out, gradients

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), run("xla"), run("blockwise"))


def test_all_causal_blocks_give_what_the_live_ones_give(blocks_of_16):
    """What is masked adds exact zeros."""
    heads = random_heads(64, num_heads=2, num_kv_heads=1)
    where = Coordinates(*(np.repeat(field, 2, axis=0) for field in _rows_of([16, 32], total=64)))

    def run(blocks):
        def total(heads):
            out = blockwise_attention.blockwise_attention(*heads, where=where, blocks=blocks, window=None)
            return jnp.sum(jnp.sin(out)), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(heads)
        return out, gradients

    live = run(live_blocks(where, window=None))
    jax.tree.map(np.testing.assert_array_equal, live, run(causal_blocks(64)))


@pytest.mark.parametrize("implementation", ["xla", "blockwise"])
def test_a_query_that_sees_nothing_is_finite_and_so_are_gradients(implementation):
    """Padding queries: all scores masked. With -inf the softmax would be 0 / 0, and the NaN would spread backwards."""
    heads = random_heads(15, num_heads=2, num_kv_heads=2)
    nothing = Coordinates(*(np.zeros((2, 15), np.int32),) * 3)

    def total(heads):
        return jnp.sum(attention(*heads, query=nothing, key=nothing, window=None, implementation=implementation))

    value, gradients = jax.jit(jax.value_and_grad(total))(heads)
    assert all(np.isfinite(array).all() for array in jax.device_get([value, *gradients]))


def _visited(blocks: blockwise_attention.Blocks) -> list[tuple[int, int]]:
    return [(int(blocks.queries[i]), int(blocks.keys[i])) for i in range(int(blocks.num_visits))]


def test_dialogues_that_do_not_see_each_other_share_no_block(blocks_of_16):
    """Dialogues of 16 and 32 tokens in 64, blocks of 16: block 0 sees itself, 1 and 2 the second one, 3 is padding."""
    where = _rows_of([16, 32], total=64)
    assert _visited(live_blocks(where, window=None)) == [(0, 0), (1, 1), (2, 1), (2, 2)]


def test_a_window_ends_the_visits_to_blocks_before_it(blocks_of_16):
    """One dialogue of 64, window 2: a block sees itself and the last token of the block before."""
    where = _rows_of([64], total=64)
    assert _visited(live_blocks(where, window=2)) == [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]


def test_the_rejected_answer_does_not_visit_the_chosen_one(blocks_of_16):
    """[prompt 16 | chosen 16 | rejected 16]: block 2 skips block 1."""
    positions, branches = np.r_[0:32, 16:32], np.repeat([0, 1, 2], 16)
    where = Coordinates(*(row.astype(np.int32)[None] for row in (positions, np.ones(48), branches)))
    assert _visited(live_blocks(where, window=None)) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 2)]


def test_sums_go_on_in_float32_from_block_to_block():
    """1024 equal keys in 4 blocks weigh 1/1024 each: out is the values' mean, sin(0..1023)'s own in bfloat16.

    The mean is 0.0015, what is summed up to 50 times a value's size: sums in bfloat16 would be off by 1e-3 and more.
    """
    values = np.sin(np.arange(1024)).astype(jnp.bfloat16)
    v_BSKH = jnp.asarray(values)[None, :, None, None] * jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    zeros = jnp.zeros_like(v_BSKH)
    places = np.arange(1024, dtype=np.int32)[None]
    where = Coordinates(places, np.ones_like(places), np.zeros_like(places))
    run = jax.jit(lambda v: attention(zeros, zeros, v, query=where, key=where, window=None, implementation="blockwise"))
    out = np.asarray(run(v_BSKH))
    assert out.dtype == jnp.bfloat16
    means = np.cumsum(values.astype(np.float64)) / np.arange(1, 1025)
    np.testing.assert_allclose(out[0, :, 0, 0].astype(np.float64), means, rtol=2**-8, atol=2e-6)


def test_bfloat16_gradients_are_those_of_dense_attention_to_rounding():
    heads = [jnp.asarray(h, jnp.bfloat16) for h in random_heads(15, num_heads=4, num_kv_heads=2)]
    where = packed_rows()

    def gradients(implementation: str):
        def total(heads):
            out = attention(*heads, query=where, key=where, window=None, implementation=implementation)
            return jnp.sum(jnp.sin(out.astype(jnp.float32)) * (where.segments > 0)[:, :, None, None])

        return jax.jit(jax.grad(total))(heads)

    for ours, dense in zip(gradients("blockwise"), gradients("xla"), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(ours, np.float32), np.asarray(dense, np.float32), rtol=2**-6, atol=0.03)
