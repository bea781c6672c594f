"""Optax optimizers and learning-rate schedules, with torch's constants and Hugging Face's step counts.

Not here: clipping and accumulation (step.py). Optimizer state is float32, as the parameters are.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from zephyr_jax.recipe import StageOptions


def make_schedule(options: StageOptions, num_steps: int) -> optax.Schedule:
    """Learning rate of the update after `count` earlier ones, as Hugging Face's schedulers give it.

    Warm-up takes w = ceil(warmup_ratio * n) updates from 0: rate * count / w, so the first of them is 0. Then, with
    progress p = (count - w) / (n - w): cosine (1 + cos(pi p)) / 2, linear 1 - p, constant 1, between the rate and
    rate * min_learning_rate_ratio. p reaches 1 when the last update is done.

    Args:
      options: a stage's options; `schedule_steps` takes the place of the run's steps where it is given.
      num_steps: optimizer steps of the run.

    Returns:
      count -> learning rate, float32.
    """
    planned_steps = options.schedule_steps or num_steps
    warmup_steps = math.ceil(options.warmup_ratio * planned_steps)
    floor = options.min_learning_rate_ratio

    def schedule(count: jax.Array) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        progress = jnp.clip((count - warmup_steps) / max(1, planned_steps - warmup_steps), 0, 1)
        decay = {
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            "linear": 1 - progress,
            "constant": jnp.ones_like(progress),
        }[options.schedule]
        factor = jnp.where(count < warmup_steps, count / max(1, warmup_steps), floor + (1 - floor) * decay)
        return options.learning_rate * factor

    return schedule


def _decayed(params: optax.Params) -> optax.Params:
    """Weight decay spares the norm scales, as Hugging Face's trainer does."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key != "scale", params)


def make_optimizer(options: StageOptions, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101, decay apart from the gradient) or RMSprop (decay inside it), epsilon as in torch.

    Args:
      options: a stage's options: optimizer, adam_b1, adam_b2, adam_eps, weight_decay.
      schedule: learning rate by the number of earlier updates.

    Returns:
      The gradient transformation; its state has the parameters' paths, so one table shards both.
    """
    decay = optax.add_decayed_weights(options.weight_decay, mask=_decayed) if options.weight_decay else optax.identity()
    if options.optimizer == "adamw":
        scale = optax.scale_by_adam(b1=options.adam_b1, b2=options.adam_b2, eps=options.adam_eps)
        return optax.chain(scale, decay, optax.scale_by_learning_rate(schedule))
    assert options.optimizer == "rmsprop", options.optimizer
    # torch: decay rate 0.99, epsilon outside the square root, accumulator from 0; optax's defaults differ in all three.
    scale = optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False, initial_scale=0.0)
    return optax.chain(decay, scale, optax.scale_by_learning_rate(schedule))
