"""One optimizer update as a pure function, the same for both stages.

Not here: jit, shardings and donation (sharded_step.py), what the loss is (objectives.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from zephyr_jax.training.objectives import MicroBatch, Objective, Totals

Metrics = dict[str, jax.Array]


@chex.dataclass(frozen=True)
class TrainState:
    """Everything an update reads and writes.

    Attributes:
      step: number of updates done, int32 scalar.
      params: float32 parameters.
      opt_state: the optimizer's state, float32.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    max_grad_norm: float | None,
    prepare: Callable[[Any], Any] = lambda params: params,
) -> Callable[[TrainState, MicroBatch], tuple[TrainState, Metrics]]:
    """Builds train_step(state, batch) -> (state, metrics).

    Gradients of sums are added over the micro-batches in float32 and divided once by the step's count, so
    accumulation gives the big batch's gradient to rounding. Clipping is torch's: g * min(1, max / (norm + 1e-6)).

    Args:
      objective: (params, micro-batch) -> Totals.
      optimizer: the gradient transformation.
      schedule: learning rate by the number of earlier updates, for the metric.
      max_grad_norm: bound on the gradient's L2 norm; None: no clipping.
      prepare: parameters -> what the objective is given, once for all micro-batches: the cast to the compute dtype.

    Returns:
      A pure function of the state and a step batch, whose arrays have the micro-batches as leading axis A. Metrics
      are float32 scalars: loss, grad_norm (before clipping), learning_rate (the one used) and the objective's own.
    """

    def train_step(state: TrainState, batch: MicroBatch) -> tuple[TrainState, Metrics]:
        gradients, totals = _accumulate(objective, prepare(state.params), batch)
        count = jnp.maximum(totals.divisor, 1.0)
        gradients = jax.tree.map(lambda g: g / count, gradients)
        grad_norm = global_norm(gradients)
        if max_grad_norm is not None:
            factor = jnp.minimum(1.0, max_grad_norm / (grad_norm + 1e-6))
            gradients = jax.tree.map(lambda g: g * factor, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = finish(totals) | {"grad_norm": grad_norm, "learning_rate": schedule(state.step)}
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def global_norm(gradients: Any) -> jax.Array:
    """The L2 norm of all leaves together: sum(g * g) and not vdot, whose flattening gathers every sharded gradient."""
    return jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradients)))


def make_eval_step(objective: Objective) -> Callable[[Any, MicroBatch], Totals]:
    """Builds eval_step(params, batch) -> Totals of a step batch; the caller adds them up and calls `finish`."""

    def eval_step(params: Any, batch: MicroBatch) -> Totals:
        return _over_micro_batches(lambda micro_batch: objective(params, micro_batch), batch, add_totals)

    return eval_step


def add_totals(left: Totals, right: Totals) -> Totals:
    """Sums added, maxima maximised; works on arrays and on floats."""
    return Totals(
        left.loss + right.loss,
        left.divisor + right.divisor,
        jax.tree.map(lambda a, b: a + b, left.means, right.means),
        jax.tree.map(jnp.maximum, left.maxima, right.maxima),
    )


def finish(totals: Totals) -> Metrics:
    """Sums divided by their counts: {"loss": ..., every mean, every maximum}."""
    means = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in totals.means.items()}
    return {"loss": totals.loss / jnp.maximum(totals.divisor, 1.0)} | means | totals.maxima


def _accumulate(objective: Objective, params: Any, batch: MicroBatch) -> tuple[Any, Totals]:
    """Gradient of the summed loss, and the totals, over all micro-batches."""

    def loss_and_totals(params: Any, micro_batch: MicroBatch) -> tuple[jax.Array, Totals]:
        totals = objective(params, micro_batch)
        return totals.loss, totals

    def gradient(micro_batch: MicroBatch) -> tuple[Any, Totals]:
        gradients, totals = jax.grad(loss_and_totals, has_aux=True)(params, micro_batch)
        return jax.tree.map(lambda g: g.astype(jnp.float32), gradients), totals

    def add(left, right):
        return jax.tree.map(jnp.add, left[0], right[0]), add_totals(left[1], right[1])

    return _over_micro_batches(gradient, batch, add)


def _over_micro_batches(function: Callable, batch: MicroBatch, add: Callable) -> Any:
    """function of each micro-batch, added up in turn from zeros (every maximum is of absolute values)."""
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    if jax.tree.leaves(batch)[0].shape[0] == 1:
        return function(first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first))
    return jax.lax.scan(lambda carry, micro_batch: (add(carry, function(micro_batch)), None), zeros, batch)[0]
