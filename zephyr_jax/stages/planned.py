"""A stage planned for a machine that is not here: its train step and reference pass, compiled and judged.

What is compiled is what `train` runs: the same step, objective, shardings and arrays of a batch. No data is read, no
weight is loaded and nothing is computed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from zephyr_jax.compilation import bytes_per_device
from zephyr_jax.model.mistral import ModelSettings, abstract_params, compute_params
from zephyr_jax.model.sources import open_weights
from zephyr_jax.planning.batches import AssumedBatch, assume_batch
from zephyr_jax.planning.estimate import Verdict, memory_fraction, memory_verdict, step_bounds
from zephyr_jax.planning.flops import count_flops
from zephyr_jax.planning.machine import Machine
from zephyr_jax.planning.programs import Program, make_program
from zephyr_jax.planning.soundness import find_faults, needed_traffic
from zephyr_jax.planning.stage_plan import StagePlan
from zephyr_jax.planning.sweep import Point
from zephyr_jax.planning.table import verdict_text
from zephyr_jax.recipe import Ddpo, Dsft, ModelShape, Recipe
from zephyr_jax.records import InputError
from zephyr_jax.sharding import batch_shardings, num_row_shards
from zephyr_jax.stages.ddpo import add_reference
from zephyr_jax.stages.reference import make_reference_step
from zephyr_jax.stages.start import chosen_attention, model_settings
from zephyr_jax.training.activations import activation_bytes
from zephyr_jax.training.loop import HOST_ARRAYS
from zephyr_jax.training.objectives import Objective, dpo_objective, sft_objective
from zephyr_jax.training.sharded_step import make_sharded_step

SCHEDULED_STEPS = 1000  # the schedule's constants hang on the steps of a run; nothing that is planned does


def plan_stage(
    recipe: Recipe,
    stage: str,
    machine: Machine,
    *,
    bandwidth: float | None = None,
    rows_per_step: int | None = None,
    with_reference: bool = True,
) -> StagePlan:
    """Plans a stage.

    Args:
      recipe: the recipe.
      stage: dsft or ddpo, which the recipe has a block for.
      machine: what to plan for.
      bandwidth: bytes per second of a ring of devices; None: the bounds that need it are left open.
      rows_per_step: see `assume_batch`.
      with_reference: whether a dDPO stage's reference pass is planned too.

    Raises:
      InputError: the mesh does not fit devices or model, the weights cannot be found, rows that are not open.
    """
    options = getattr(recipe, stage)
    shape, mesh = model_shape(recipe), machine.mesh(recipe.mesh)
    batch = assume_batch(options, row_multiple=num_row_shards(mesh), rows_per_step=rows_per_step)
    settings = model_settings(recipe, rows=options.row_layout)._replace(platform=machine.platform)
    attention = chosen_attention(settings, shape, batch.shape.row_length)
    can_be_compiled = attention != "cudnn" or machine.has_cudnn
    settings = settings._replace(attention=attention if can_be_compiled else "blockwise")
    objective = _objective(options, shape=shape, settings=settings)
    sharded = make_sharded_step(
        objective,
        options,
        num_steps=SCHEDULED_STEPS,
        abstract_params=abstract_params(shape),
        mesh=mesh,
        prepare=functools.partial(compute_params, settings=settings),
    )
    state, arrays = sharded.abstract_state, _abstract_batch(batch, options, mesh)
    step = make_program(sharded.call, state, arrays, mesh=mesh, machine=machine)
    # What follows is traced as one device would run it: nothing of it hangs on the mesh.
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params)
    micro_batch: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in arrays.items()
    }
    without_remat = _objective(options, shape=shape, settings=settings._replace(remat="none"))
    model_flops = batch.shape.num_micro_batches * _gradient_flops(without_remat, params, micro_batch)
    activations = None  # which of them the axis tensor splits is the compiler's choice
    if mesh.shape["tensor"] == 1:
        activations = activation_bytes(objective, params, micro_batch) // num_row_shards(mesh)
    reference = None
    if with_reference and isinstance(options, Ddpo):
        call = make_reference_step(shape=shape, settings=settings, mesh=mesh)
        # as stages/ddpo.py orders the pass's batches: a micro-batch of pairs at a time
        one = batch._replace(shape=batch.shape._replace(num_micro_batches=1))
        rows = _abstract_batch(one, options, mesh, complete=False)
        reference = make_program(call, state.params, rows, mesh=mesh, machine=machine)
    needed = needed_traffic(
        state.params,
        mesh_shape=mesh.shape,
        compute_dtype=settings.compute_dtype,
        num_micro_batches=batch.shape.num_micro_batches,
    )
    faults = []
    if step.compiled is not None and machine.chip is not None:
        faults = find_faults(step.compiled, state, needed, mesh_shape=mesh.shape, compute_dtype=settings.compute_dtype)
    chip, num_devices = machine.chip, machine.num_devices
    parameters = bytes_per_device(state.params)

    def judged(program: Program | None) -> Verdict | None:
        if program is None or program.compiled is None or chip is None:
            return None
        fraction = memory_fraction(os.environ)
        return memory_verdict(program.compiled.peak, chip=chip, attention=attention, memory_fraction=fraction)

    return StagePlan(
        recipe=recipe,
        stage=stage,
        machine=machine,
        shape=shape,
        mesh_shape=dict(mesh.shape),
        attention=attention,
        compiled_attention=settings.attention,
        batch=batch,
        num_parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params)),
        parameters=parameters,
        optimizer_state=bytes_per_device(state.opt_state),
        gradients=parameters,  # float32 and sharded, as the parameters are
        activations=activations,
        batch_bytes=bytes_per_device(arrays),
        step=step,
        needed=needed,
        faults=faults,
        model_flops=model_flops,
        verdict=judged(step),
        bounds=step_bounds(
            flops_per_device=step.flops.flops / num_devices,
            model_flops_per_device=model_flops / num_devices,
            num_positions=batch.num_positions,
            peak_flops=None if chip is None else chip.peak_flops[recipe.model.compute_dtype],
            traffic=None if step.compiled is None else step.compiled.traffic,
            bandwidth=bandwidth,
            link_bandwidth=None if chip is None else chip.link_bandwidth,
        ),
        reference=reference,
        reference_verdict=judged(reference),
    )


def plan_point(
    load: Callable[[], Recipe], overrides: tuple[str, ...], stage: str, machine: Machine, **options: Any
) -> Point:
    """Plans one point of a sweep; what makes it impossible becomes its reason.

    Args:
      load: gives the recipe with the overrides, or raises InputError.
      overrides: the point's.
      stage: see `plan_stage`, as the rest.
    """
    try:
        plan = plan_stage(load(), stage, machine, with_reference=False, **options)
    except InputError as error:
        return Point(overrides, None, str(error).replace("\n", " "))
    except jax.errors.JaxRuntimeError as error:
        return Point(overrides, None, f"the compiler refuses it: {str(error).splitlines()[0]}")
    finally:
        jax.clear_caches()  # else every point's programs stay in memory
    too_large = plan.verdict is not None and plan.verdict.margin < 0
    return Point(overrides, plan, verdict_text(plan.verdict) if plan.verdict and too_large else None)


def model_shape(recipe: Recipe) -> ModelShape:
    """The model's shape: what the recipe says, else what its weights say; no tensor is read.

    Raises:
      InputError: the weights cannot be found.
    """
    if recipe.model.shape is not None:
        return recipe.model.shape
    assert recipe.model.weights is not None  # the recipe's own check
    return open_weights(recipe.model.weights).shape


def _objective(options: Dsft | Ddpo, *, shape: ModelShape, settings: ModelSettings) -> Objective:
    if isinstance(options, Ddpo):
        return dpo_objective(options, shape=shape, settings=settings)
    return sft_objective(shape=shape, settings=settings)


def _abstract_batch(
    batch: AssumedBatch, options: Dsft | Ddpo, mesh: Mesh, *, complete: bool = True
) -> dict[str, jax.ShapeDtypeStruct]:
    arrays: Mapping[str, Any] = batch.arrays()
    if complete and isinstance(options, Ddpo):
        nothing = np.zeros(1, np.float32)
        arrays = add_reference({"chosen": nothing, "rejected": nothing}, arrays)
    arrays = {name: array for name, array in arrays.items() if name not in HOST_ARRAYS}
    shardings = batch_shardings(arrays, mesh)
    return {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=shardings[name]) for name, array in arrays.items()
    }


def _gradient_flops(objective: Objective, params: Any, micro_batch: Mapping[str, Any]) -> float:
    gradient = jax.grad(lambda params, batch: objective(params, batch).loss)
    return count_flops(jax.make_jaxpr(gradient)(params, micro_batch)).flops
