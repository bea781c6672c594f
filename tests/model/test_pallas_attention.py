"""The GPU kernels through Pallas' interpreter: the numbers of dense attention, no visit to a block that nobody sees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.packed_heads import packed_rows, plain_rows, random_heads, repeated_rows
from zephyr_jax.model import attention as attention_module
from zephyr_jax.model import pallas_attention
from zephyr_jax.model.attention import attention
from zephyr_jax.model.pallas_attention import Tile, Tiles, find_visits, tiles_for
from zephyr_jax.model.visibility import MAX_BRANCHES, Coordinates

# Every kernel with other blocks: an index that takes one for the other would be seen.
SMALL = Tiles(Tile(32, 16, 4, 2), Tile(16, 32, 4, 2), Tile(16, 32, 4, 2))


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setattr(pallas_attention, "INTERPRET", True)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(attention_module, "tiles_for", lambda head_dim, dtype: SMALL)


def _values_and_gradients(heads, where, *, window, implementation):
    """Outputs of real tokens, and gradients of a function of them."""
    real_BT11 = (where.segments > 0)[:, :, None, None]
    weights_BTNH = np.random.default_rng(1).standard_normal(heads[0].shape).astype(np.float32) * real_BT11

    def total(heads):
        out = attention(*heads, query=where, key=where, window=window, implementation=implementation)
        return jnp.sum(jnp.sin(out.astype(jnp.float32)) * weights_BTNH), out * real_BT11

    (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(heads)
    return out, gradients


@pytest.mark.parametrize("window", [None, 3])
def test_kernels_equal_dense_attention_in_values_and_gradients(window, small_tiles):
    """75 tokens in three blocks of 32 and in five of 16: pairs, dialogues and padding, 4 heads on 2."""
    heads, where = random_heads(75, num_heads=4, num_kv_heads=2), repeated_rows(5)
    dense, ours = (
        _values_and_gradients(heads, where, window=window, implementation=name) for name in ("xla", "pallas")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), dense, ours)


def test_as_many_branches_as_there_may_be_are_told_apart(small_tiles):
    """A context of 20 and 255 continuations of one token, beside a second text: their codes do not run together."""
    positions = np.r_[0:20, np.full(MAX_BRANCHES, 20), 0:13]
    segments, branches = np.repeat([1, 2], [20 + MAX_BRANCHES, 13]), np.zeros(288, np.int32)
    branches[20 : 20 + MAX_BRANCHES] = np.arange(1, MAX_BRANCHES + 1)
    where = Coordinates(*(np.tile(row.astype(np.int32), (2, 1)) for row in (positions, segments, branches)))
    heads = random_heads(288, num_heads=2, num_kv_heads=1)
    dense, ours = (_values_and_gradients(heads, where, window=None, implementation=name) for name in ("xla", "pallas"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), dense, ours)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_tiles_of_gpus_give_bfloat16_attention_to_rounding(head_dim):
    """160 tokens, padded to the 256 that their blocks divide: one text and two of them with padding."""
    heads = [jnp.asarray(h, jnp.bfloat16) for h in random_heads(160, num_heads=2, num_kv_heads=1, size=head_dim)]
    where = plain_rows([160, 100], total=160)
    where = where._replace(segments=np.where(where.positions >= 70, 2 * where.segments, where.segments))
    dense, ours = (_values_and_gradients(heads, where, window=90, implementation=name) for name in ("xla", "pallas"))
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(ours), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=2**-6, atol=0.04)


def test_a_query_that_sees_nothing_gives_zero_and_finite_gradients(small_tiles):
    heads = random_heads(15, num_heads=2, num_kv_heads=2)
    where = packed_rows()
    real = np.arange(15) < np.array([[10], [0]])  # padding beside real tokens, and a row of padding alone
    nothing = where._replace(segments=where.segments * real)

    def total(heads):
        out = attention(*heads, query=nothing, key=nothing, window=None, implementation="pallas")
        return jnp.sum(jnp.cos(out)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(heads)
    assert not np.asarray(out)[~real].any() and np.asarray(out)[real].any(axis=(-1, -2)).all()
    for gradient in jax.device_get(gradients):
        assert np.isfinite(gradient).all() and not gradient[~real].any()


def _listed(lists) -> list[list[int]]:
    return [row[1 : 1 + row[0]].tolist() for row in np.asarray(lists)[0]]


def test_blocks_that_nobody_sees_are_not_visited():
    """[prompt 16 | chosen 16 | rejected 16 | dialogue 16] in blocks of 16: rejected skips chosen, the dialogue all.

    dk and dv of the prompt come from three query blocks, of every other block from its own.
    """
    positions, branches = np.r_[0:32, 16:32, 0:16], np.repeat([0, 1, 2, 0], 16)
    where = Coordinates(*(row.astype(np.int32)[None] for row in (positions, np.repeat([1, 2], [48, 16]), branches)))
    tile = Tile(16, 16, 4, 2)
    visits = find_visits(where, window=None, tiles=Tiles(tile, tile, tile))
    assert _listed(visits.forward) == _listed(visits.dq) == [[0], [0, 1], [0, 2], [3]]
    assert _listed(visits.dkv) == [[0, 1, 2], [1], [2], [3]]


def test_each_row_and_each_kernel_has_its_own_visits():
    """One text of 64 with window 2, and one of 20: queries by 32 and keys by 16; dkv queries by 16 and keys by 32."""
    visits = find_visits(plain_rows([64, 20], total=64), window=2, tiles=SMALL)
    assert _listed(visits.forward) == [[0, 1], [1, 2, 3]]
    assert _listed(visits.forward[1:]) == [[0, 1], []]
    assert _listed(visits.dq) == [[0], [0], [0, 1], [1]]
    assert _listed(visits.dkv) == [[0, 1, 2], [2, 3]]


def test_tiles_are_what_triton_takes():
    """Powers of two of 16 and more, and the row padded to what all of them divide."""
    for head_dim in (64, 128):
        for dtype in ("float32", "bfloat16"):
            tiles = tiles_for(head_dim, dtype)
            sizes = [size for tile in tiles for size in (tile.queries, tile.keys)]
            assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
            assert pallas_attention.row_multiple(tiles) == max(sizes)
