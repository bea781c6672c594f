"""The ceiling is a rate that a matmul of those sizes has here."""

from __future__ import annotations

import pytest

from zephyr_jax.planning import matmul_ceiling


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fastest_form_counts(dtype, monkeypatch):
    """2 x 4 x 3 x 5 FLOPs in the shortest of the times: 120 / 0.5."""
    seconds = iter([4.0, 0.5, 2.0, 8.0, 1.0, 3.0])
    monkeypatch.setattr(matmul_ceiling, "_median_seconds", lambda *_: next(seconds))
    assert matmul_ceiling.matmul_ceiling(dtype, num_tokens=4, width=3, num_features=5) == 240


def test_a_ceiling_is_measured_here():
    assert 1e6 < matmul_ceiling.matmul_ceiling("float32", num_tokens=64, width=32, num_features=32) < 1e16
