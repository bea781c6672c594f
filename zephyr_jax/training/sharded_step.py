"""The train step of a stage over a mesh: jitted, its state sharded by the model's table and updated in place.

What `train` runs and what `plan` compiles for a machine that is not there. Not here: what an update is (step.py),
running it (loop.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from zephyr_jax.model.mistral import PARTITION_RULES
from zephyr_jax.recipe import StageOptions
from zephyr_jax.sharding import replicated, tree_shardings
from zephyr_jax.training.objectives import Objective
from zephyr_jax.training.optimizer import make_optimizer, make_schedule
from zephyr_jax.training.step import TrainState, init_state, make_train_step


class ShardedStep(NamedTuple):
    """A train step and the state that it takes.

    Attributes:
      call: (state, batch) -> (state, metrics), jitted; the state given is used up, the metrics lie on every device.
      optimizer: the optimizer whose state is part of it.
      abstract_state: the state as jax.ShapeDtypeStruct leaves with their shardings.
    """

    call: jax.stages.Wrapped
    optimizer: optax.GradientTransformation
    abstract_state: TrainState

    def first_state(self, load_params: Callable[[Any], Any]) -> TrainState:
        """The state before the first update; `load_params` gives the parameters in the shardings that it is given."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        params = load_params(shardings.params)
        opt_state = jax.jit(self.optimizer.init, out_shardings=shardings.opt_state)(params)
        step = jax.make_array_from_callback((), shardings.step, lambda _: np.int32(0))
        return TrainState(step=step, params=params, opt_state=opt_state)


def make_sharded_step(
    objective: Objective,
    options: StageOptions,
    *,
    num_steps: int,
    abstract_params: Any,
    mesh: jax.sharding.Mesh,
    prepare: Callable[[Any], Any] = lambda params: params,
) -> ShardedStep:
    """Builds a stage's train step; nothing is allocated or compiled.

    Args:
      objective: (params, micro-batch) -> Totals.
      options: the stage's part of the recipe: optimizer, schedule, clipping.
      num_steps: optimizer steps of the whole stage, which the schedule is laid out over.
      abstract_params: shapes of the parameters.
      mesh: the device mesh, of devices that need not be there.
      prepare: as of `make_train_step`.
    """
    schedule = make_schedule(options, num_steps)
    optimizer = make_optimizer(options, schedule)
    abstract_state = jax.eval_shape(lambda params: init_state(params, optimizer), abstract_params)
    shardings = tree_shardings(abstract_state, PARTITION_RULES, mesh)
    call = jax.jit(
        make_train_step(objective, optimizer, schedule=schedule, max_grad_norm=options.max_grad_norm, prepare=prepare),
        in_shardings=(shardings, None),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_state,
        shardings,
    )
    return ShardedStep(call, optimizer, placed)
