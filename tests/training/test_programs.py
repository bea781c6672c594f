"""Programs by shape: one each, said when it is made, and nothing compiled in silence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zephyr_jax.training.programs import ShapePrograms


def _batch(num_rows: int, dtype: type = np.int32) -> dict[str, jax.Array]:
    return {"tokens": jnp.ones((1, num_rows, 8), dtype)}


def test_a_shape_is_compiled_once_and_said_with_its_time(capsys):
    double = ShapePrograms(jax.jit(lambda params, batch: params * batch["tokens"].sum()), name="eval", what="the sum")
    assert [int(double(jnp.int32(2), _batch(num_rows))) for num_rows in (2, 3, 2, 3)] == [32, 48, 32, 48]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in lines] == [
        "eval: compiled the sum for 1 x 2 x 8 tokens",
        "eval: compiled the sum for 1 x 3 x 8 tokens",
    ]


def test_another_dtype_of_a_shape_that_was_compiled_is_an_error_and_no_second_program():
    double = ShapePrograms(jax.jit(lambda params, batch: batch["tokens"] + params), name="eval", what="the sum")
    double(jnp.int32(2), _batch(2))
    with pytest.raises(TypeError, match="int32"):
        double(jnp.int32(2), _batch(2, np.int16))
