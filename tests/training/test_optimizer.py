"""Learning rates at every step, and AdamW's and RMSprop's first updates, all worked out by hand in torch's formulas."""

from __future__ import annotations

import math

import jax
import numpy as np
import optax
import pytest

from zephyr_jax.recipe import Dsft
from zephyr_jax.training.optimizer import make_optimizer, make_schedule


def _options(**changes) -> Dsft:
    return Dsft.model_validate({"data": {"train": ["rows.jsonl"]}, "learning_rate": 1.0, **changes})


def _rates(num_steps: int, **changes) -> list[float]:
    """The learning rate of steps 1 to num_steps: that of the update after 0 to num_steps - 1 others."""
    return jax.vmap(make_schedule(_options(**changes), num_steps))(np.arange(num_steps)).tolist()


def test_linear_by_hand():
    """10 steps, ratio 0.2: two of warm-up (0, 1/2), then 8/8 down to 1/8; 0 would be the eleventh's."""
    wanted = [0, 1 / 2, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert _rates(10, schedule="linear", warmup_ratio=0.2) == pytest.approx(wanted, abs=1e-7)


def test_cosine_by_hand():
    """6 steps, warm-up of 2, then (1 + cos(pi k / 4)) / 2 for k = 0 to 3."""
    half = math.sqrt(0.5)
    wanted = [0, 1 / 2, 1, (1 + half) / 2, 1 / 2, (1 - half) / 2]
    assert _rates(6, schedule="cosine", warmup_ratio=1 / 3) == pytest.approx(wanted, abs=1e-6)


def test_constant_by_hand():
    assert _rates(5, schedule="constant", warmup_ratio=0.4) == pytest.approx([0, 1 / 2, 1, 1, 1])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_without_warm_up_the_first_step_has_the_full_rate(schedule):
    assert _rates(5, schedule=schedule, warmup_ratio=0.0)[0] == 1.0


def test_warm_up_steps_are_rounded_up_as_hugging_face_does():
    """0.1 of 11 steps: ceil(1.1) = 2. Of 1 step: ceil(0.1) = 1, so a run of one step learns nothing."""
    assert _rates(11, schedule="constant", warmup_ratio=0.1) == pytest.approx([0, 0.5] + [1] * 9)
    assert _rates(1, warmup_ratio=0.1) == [0.0]


def test_a_warm_up_of_the_whole_run_never_reaches_the_rate():
    assert _rates(4, schedule="linear", warmup_ratio=1.0) == pytest.approx([0, 0.25, 0.5, 0.75])


def test_floor_is_a_share_of_the_rate():
    """Hugging Face's cosine_with_min_lr: factor (1 - m) + m after the warm-up; 4 steps of linear, m = 0.2."""
    rates = _rates(4, schedule="linear", warmup_ratio=0.0, min_learning_rate_ratio=0.2, learning_rate=10.0)
    assert rates == pytest.approx([10, 10 * (0.75 * 0.8 + 0.2), 10 * (0.5 * 0.8 + 0.2), 10 * (0.25 * 0.8 + 0.2)])
    assert _rates(3, schedule="linear", warmup_ratio=1 / 3, min_learning_rate_ratio=0.5)[0] == 0  # not in the warm-up


def test_a_schedule_may_be_planned_for_another_number_of_steps():
    """Planned for 10, run for 4: the first 4 of the 10. Planned for 2, run for 4: the floor from the third on."""
    planned = _rates(10, schedule="linear", warmup_ratio=0.2)
    assert _rates(4, schedule="linear", warmup_ratio=0.2, schedule_steps=10) == pytest.approx(planned[:4])
    assert _rates(4, schedule="linear", warmup_ratio=0.0, schedule_steps=2) == pytest.approx([1, 0.5, 0, 0])


PARAMS = {"matrix": np.array([1.0, -2.0, 3.0], np.float32), "norm": {"scale": np.array([1.0, 2.0, -1.0], np.float32)}}
GRADIENTS = [
    {"matrix": np.array([0.5, -1.0, 0.0], np.float32), "norm": {"scale": np.array([1e-9, 4.0, -2.0], np.float32)}},
    {"matrix": np.array([-2.0, 0.25, 1.0], np.float32), "norm": {"scale": np.array([1.0, -4.0, 0.5], np.float32)}},
]


def _updated(num_updates: int, schedule, **changes):
    optimizer = make_optimizer(_options(**changes), schedule)
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradients in GRADIENTS[:num_updates]:
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get(params)


def _adamw(params, gradients, *, rates, decay, b1, b2, eps):
    """torch.optim.AdamW: p *= 1 - lr wd; p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)."""
    params, m, v = params.astype(np.float64), 0.0, 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = g.astype(np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        params = params * (1 - rate * decay) - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return params


def _rmsprop(params, gradients, *, rates, decay):
    """torch.optim.RMSprop: g += wd p; v = 0.99 v + 0.01 g^2; p -= lr g / (sqrt(v) + 1e-8)."""
    params, v = params.astype(np.float64), 0.0
    for g, rate in zip(gradients, rates, strict=True):
        g = g + decay * params
        v = 0.99 * v + 0.01 * g**2
        params = params - rate * g / (np.sqrt(v) + 1e-8)
    return params


def _schedule(count):
    return 0.1 / (1 + count)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("num_updates", [1, 2])
@pytest.mark.parametrize("constants", [(0.9, 0.999, 1e-8), (0.8, 0.5, 1e-3)], ids=["torchs", "others"])
def test_adamw_is_torchs_and_decay_spares_norm_scales(num_updates, decay, constants):
    b1, b2, eps = constants
    given = {"adam_b1": b1, "adam_b2": b2, "adam_eps": eps, "weight_decay": decay}
    updated = _updated(num_updates, _schedule, optimizer="adamw", **given)
    exact = {"rates": [0.1, 0.05][:num_updates], "b1": b1, "b2": b2, "eps": eps}
    steps = GRADIENTS[:num_updates]
    matrix = _adamw(PARAMS["matrix"], [g["matrix"] for g in steps], decay=decay, **exact)
    scale = _adamw(PARAMS["norm"]["scale"], [g["norm"]["scale"] for g in steps], decay=0.0, **exact)
    np.testing.assert_allclose(updated["matrix"], matrix, rtol=1e-5)
    np.testing.assert_allclose(updated["norm"]["scale"], scale, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("num_updates", [1, 2])
def test_rmsprop_is_torchs_and_decay_spares_norm_scales(num_updates, decay):
    """The gradient of 1e-9 tells where epsilon stands: inside the root its update would be a thousandth of this."""
    updated = _updated(num_updates, _schedule, optimizer="rmsprop", weight_decay=decay)
    rates, steps = [0.1, 0.05][:num_updates], GRADIENTS[:num_updates]
    matrix = _rmsprop(PARAMS["matrix"], [g["matrix"] for g in steps], decay=decay, rates=rates)
    scale = _rmsprop(PARAMS["norm"]["scale"], [g["norm"]["scale"] for g in steps], decay=0.0, rates=rates)
    np.testing.assert_allclose(updated["matrix"], matrix, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updated["norm"]["scale"], scale, rtol=1e-5, atol=1e-6)


def test_first_adamw_update_by_hand():
    """Whatever the gradient's size, m / sqrt(v) is its sign at the first update: p - lr sign(g), 1e-9 against eps 1e-8.

    1 - 0.1, -2 + 0.1, 3 - 0; and 1 - 0.1 (1e-9 / (1e-9 + 1e-8)) = 1 - 0.1 / 11.
    """
    updated = _updated(1, _schedule, optimizer="adamw")
    np.testing.assert_allclose(updated["matrix"], [0.9, -1.9, 3.0], rtol=1e-6)
    np.testing.assert_allclose(updated["norm"]["scale"][0], 1 - 0.1 / 11, rtol=1e-6)


def test_a_step_at_rate_zero_leaves_parameters_but_not_moments():
    """As in torch: the first step of a warm-up changes nothing, and is in the moments of the second all the same."""
    updated = _updated(1, lambda count: 0.0 * count, optimizer="adamw", weight_decay=0.3)
    jax.tree.map(np.testing.assert_array_equal, updated, PARAMS)
    second = _updated(2, lambda count: 0.1 * count, optimizer="adamw")
    steps = [g["matrix"] for g in GRADIENTS]
    wanted = _adamw(PARAMS["matrix"], steps, rates=[0.0, 0.1], decay=0.0, b1=0.9, b2=0.999, eps=1e-8)
    np.testing.assert_allclose(second["matrix"], wanted, rtol=1e-5)
