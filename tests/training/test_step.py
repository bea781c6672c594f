"""One update: hand-made numbers for sums, counts and clipping; equal updates from equal rows in other arrangements."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from tests.training.small_stages import (
    SHAPE,
    assert_close,
    dpo,
    for_device,
    make_dialogues,
    make_pairs,
    make_params,
    pair_batches,
    run_steps,
    sft,
    sft_batches,
)
from zephyr_jax.model.mistral import ModelSettings, compute_params
from zephyr_jax.training.objectives import Totals, sft_objective
from zephyr_jax.training.step import add_totals, finish, init_state, make_eval_step, make_train_step


def _dot_objective(params, batch):
    """Sum of w . x over rows of weight 1: its gradient is the sum of their x."""
    weights_B = batch["weights"]
    values_B = batch["x"] @ params["w"]
    largest = jnp.max(jnp.abs(values_B) * weights_B)
    means = {"value": (jnp.sum(values_B * weights_B), jnp.sum(weights_B))}
    return Totals(jnp.sum(values_B * weights_B), jnp.sum(weights_B), means, {"largest": largest})


def _update(x, weights, *, max_grad_norm=None, rate=1.0):
    """w = (1, 1) after one descent step of length `rate`, and the metrics."""
    optimizer = optax.sgd(rate)
    state = init_state({"w": jnp.ones(2)}, optimizer)
    step = make_train_step(_dot_objective, optimizer, schedule=lambda n: 0.5 + n, max_grad_norm=max_grad_norm)
    batch = {"x": np.asarray(x, np.float32), "weights": np.asarray(weights, np.float32)}
    state, metrics = jax.jit(step)(state, batch)
    assert state.step == 1
    return state.params["w"].tolist(), {name: float(value) for name, value in metrics.items()}


def test_clipping_by_hand():
    """Gradient (3, 4), norm 5. Bound 1: a fifth of it; bound 10: all of it; none: all of it. The metric is before."""
    for bound, share in [(1.0, 1 / 5.000001), (10.0, 1.0), (None, 1.0)]:
        params, metrics = _update([[[3, 4]]], [[1]], max_grad_norm=bound)
        assert params == pytest.approx([1 - 3 * share, 1 - 4 * share], rel=1e-6)
        assert metrics["grad_norm"] == pytest.approx(5)


def test_micro_batches_weigh_by_their_counts():
    """Micro-batches of 3, 1 and 0 rows: w . x = 3, 5, 7 | 1 | nothing; mean 16 / 4 = 4, where means of means give 3.

    The gradient is the mean x: ((1+2+3) + 1) / 4 and ((2+3+4) + 0) / 4.
    """
    x = [[[1, 2], [2, 3], [3, 4]], [[1, 0], [9, 9], [9, 9]], [[9, 9]] * 3]
    params, metrics = _update(x, [[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert params == pytest.approx([1 - 7 / 4, 1 - 9 / 4])
    wanted = {"loss": 4, "value": 4, "largest": 7, "grad_norm": (49 + 81) ** 0.5 / 4, "learning_rate": 0.5}
    assert metrics == pytest.approx(wanted)


def test_a_step_without_any_row_changes_nothing():
    params, metrics = _update([[[3, 4]]], [[0]], max_grad_norm=1.0)
    assert params == [1, 1] and metrics["loss"] == 0 and metrics["grad_norm"] == 0


def test_totals_of_batches_add_up_to_those_of_all_rows():
    """The sums of a large and a small batch, not the mean of their means; on the host they may be plain floats."""
    evaluate = jax.jit(make_eval_step(_dot_objective))
    large = {"x": np.array([[[1.0, 2], [2, 3], [3, 4]]], np.float32), "weights": np.ones((1, 3), np.float32)}
    small = {"x": np.array([[[1.0, 0]]], np.float32), "weights": np.ones((1, 1), np.float32)}
    parts = [jax.device_get(evaluate({"w": jnp.ones(2)}, batch)) for batch in (large, small)]
    values = {name: float(value) for name, value in finish(add_totals(*parts)).items()}
    assert values == pytest.approx({"loss": 4, "value": 4, "largest": 7})


def _batches(make, rows, *, references, **options):
    made = make(rows, shuffle=False, **options)
    return [for_device(batch, references=references) for batch in made.batches()]


def _sft_steps(micro_batch_size):
    """12 rows of 8 and 4: the second step's later micro-batches are small or empty. Numbers of targets differ."""
    batches = _batches(
        sft_batches, make_dialogues(12), references=False, packing=False, micro_batch_size=micro_batch_size
    )
    return run_steps(sft(), batches, optimizer=optax.adam(0.01), max_grad_norm=0.5)


def _dpo_steps(micro_batch_size, *, layout="packed", optimizer=None, **changes):
    """11 pairs, 8 and 3 a step."""
    batches = _batches(pair_batches, make_pairs(11), references=True, micro_batch_size=micro_batch_size, layout=layout)
    return run_steps(dpo(**changes), batches, optimizer=optimizer or optax.adam(0.01), max_grad_norm=0.5)


@pytest.mark.parametrize("train", [_sft_steps, _dpo_steps], ids=["dsft", "ddpo"])
def test_accumulation_equals_the_big_batch(train):
    """Losses, every metric and the parameters after two clipped updates, from 1 and 4 micro-batches a step."""
    state, metrics = train(8)
    assert metrics[0]["grad_norm"] > 0.5 and len(metrics) == 2
    other_state, other_metrics = train(2)
    assert_close(other_metrics, metrics, tolerance=2e-5)
    # Adam's m / sqrt(v) turns rounding of a gradient near 0 into a visible part of the step of 0.01.
    assert_close(other_state.params, state.params, tolerance=2e-4)


def test_packed_pairs_equal_padded_rows():
    """Losses, metrics and gradients (plain descent shows them) of two steps; the prompts' states are shared or not.

    By ipo, which reads the answers' lengths too.
    """
    packed_state, packed = _dpo_steps(8, layout="packed", optimizer=optax.sgd(1.0), loss="ipo")
    padded_state, padded = _dpo_steps(8, layout="padded", optimizer=optax.sgd(1.0), loss="ipo")
    assert_close(packed, padded, tolerance=2e-5)
    changes = [
        jax.tree.map(lambda new, old: new - old, jax.device_get(state.params), make_params())
        for state in (packed_state, padded_state)
    ]
    assert_close(*changes, tolerance=2e-4)


def test_preference_metrics_are_those_of_the_loss():
    """Means over the step's pairs of beta times the log-ratios, from metrics that the step gives beside each other."""
    batches = _batches(pair_batches, make_pairs(8), references=True)
    reference = {side: float(batches[0][f"reference_{side}"].mean()) for side in ("chosen", "rejected")}
    _, (metrics,) = run_steps(dpo(beta=0.5), batches, optimizer=optax.sgd(0.0))
    for side in ("chosen", "rejected"):
        wanted = 0.5 * (metrics[f"logps/{side}"] - reference[side])
        assert metrics[f"rewards/{side}"] == pytest.approx(wanted, rel=1e-4)
    assert metrics["rewards/margins"] == pytest.approx(
        metrics["rewards/chosen"] - metrics["rewards/rejected"], rel=1e-4
    )
    assert metrics["rewards/accuracies"] in np.arange(9) / 8
    assert 0 <= metrics["mean_token_accuracy"] < 0.5 and 1 < metrics["entropy"] < np.log(64)


def _casts(jaxpr, shape: tuple[int, ...]) -> int:
    """How many conversions of an array of a shape to bfloat16 a program holds, those in loops among them."""
    here = sum(
        eqn.primitive.name == "convert_element_type"
        and (eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype) == (shape, jnp.bfloat16)
        for eqn in jaxpr.eqns
    )
    inner = [sub for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params)]
    return here + sum(_casts(sub, shape) for sub in inner)


def test_weights_are_cast_once_a_step_however_many_micro_batches_and_to_the_same_bits():
    """The program for GPUs, bfloat16, 4 micro-batches: the layers' weights are cast outside of the loop over them."""
    settings = ModelSettings("bfloat16", "xla", "full", "gpu")
    objective, optimizer = sft_objective(shape=SHAPE, settings=settings), optax.sgd(0.5)
    made = sft_batches(make_dialogues(20), shuffle=False, packing=False, batch_size=16, micro_batch_size=4)
    batch, state = for_device(next(made.batches())), init_state(make_params(), optimizer)
    states = []
    for prepare in (functools.partial(compute_params, settings=settings), lambda params: params):
        step = make_train_step(objective, optimizer, schedule=lambda n: n, max_grad_norm=1.0, prepare=prepare)
        states.append(jax.jit(step)(state, batch)[0].params)
        (loop,) = [eqn for eqn in jax.make_jaxpr(step)(state, batch).eqns if eqn.primitive.name == "scan"]
        in_loop = _casts(loop.params["jaxpr"].jaxpr, state.params["layers"]["mlp"]["gate"].shape)
        assert in_loop == (0 if len(states) == 1 else 2)  # gate and up
    jax.tree.map(np.testing.assert_array_equal, *states)
