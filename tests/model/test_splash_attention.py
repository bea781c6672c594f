"""JAX's splash attention as we call it, interpreted: dense attention's numbers, on one device and on four."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.model.packed_heads import random_heads
from zephyr_jax import recipe
from zephyr_jax.model import splash_attention
from zephyr_jax.model.attention import attention
from zephyr_jax.model.visibility import Coordinates
from zephyr_jax.sharding import make_mesh


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setattr(splash_attention, "INTERPRET", True)


def _dialogues(lengths: list[int], *, total: int) -> Coordinates:
    """Two rows: the dialogues, and the first of them alone."""
    positions, segments = np.zeros((2, total), np.int32), np.zeros((2, total), np.int32)
    start = 0
    for index, length in enumerate(lengths, start=1):
        positions[0, start : start + length], segments[0, start : start + length] = np.arange(length), index
        start += length
    positions[1, : lengths[0]], segments[1, : lengths[0]] = positions[0, : lengths[0]], 1
    return Coordinates(positions, segments, np.zeros_like(segments))


def _values_and_gradients(heads, where, *, window, implementation):
    real_BT11 = (where.segments > 0)[:, :, None, None]

    def total(heads):
        out = attention(*heads, query=where, key=where, window=window, implementation=implementation)
        return jnp.sum(jnp.sin(out) * real_BT11), out * real_BT11

    (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(heads)
    return out, gradients


def test_splash_equals_dense_attention_in_values_and_gradients():
    """Dialogues of 150, 30 and 10 tokens in rows of 200, padded to two blocks of 128; window 40, 4 heads on 2."""
    heads, where = random_heads(200, num_heads=4, num_kv_heads=2, size=16), _dialogues([150, 30, 10], total=200)
    dense, splash = (_values_and_gradients(heads, where, window=40, implementation=name) for name in ("xla", "splash"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), dense, splash)


def test_each_device_does_its_own_rows_and_heads():
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=16")
    heads, where = random_heads(128, num_heads=4, num_kv_heads=2, size=16), _dialogues([100, 20], total=128)
    dense = _values_and_gradients(heads, where, window=None, implementation="xla")
    mesh = make_mesh(recipe.Mesh(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = jax.device_put(heads, NamedSharding(mesh, PartitionSpec("fsdp", None, "tensor", None)))
        splash = _values_and_gradients(placed, where, window=None, implementation="splash")
    assert splash[0].sharding.shard_shape(splash[0].shape) == (1, 128, 2, 16)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), *map(jax.device_get, (dense, splash)))
