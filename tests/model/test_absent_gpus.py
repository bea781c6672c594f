"""The kernels compiled for GPUs that are not here: they fit an A100 and an H100, over a mesh and with remat."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small_stages import dpo_options
from zephyr_jax import recipe
from zephyr_jax.model.attention import attention
from zephyr_jax.model.mistral import ModelSettings, abstract_params
from zephyr_jax.model.visibility import Coordinates
from zephyr_jax.planning.machine import open_machine
from zephyr_jax.recipe import ModelShape
from zephyr_jax.sharding import batch_shardings, replicated
from zephyr_jax.training.objectives import dpo_objective
from zephyr_jax.training.sharded_step import make_sharded_step

pytestmark = [pytest.mark.plan, pytest.mark.usefixtures("cuda_plugin")]

KERNELS = {
    "pallas": ["__gpu$xla.gpu.triton"] * 3,
    "cudnn": ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"],
}


def _custom_calls(program: jax.stages.Compiled) -> list[str]:
    return sorted(re.findall(r'custom_call_target="(__(?:gpu|cudnn)[^"]*(?:triton|fmha)[^"]*)"', program.as_text()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("gpu", ["a100-80gb", "h100"])
def test_every_tile_compiles_within_the_shared_memory_of_the_gpu(gpu, head_dim, dtype):
    """Forward, dq and dkv; XLA runs Triton to the end and refuses what asks for more than 163 kB or 227 kB."""
    mesh = open_machine(gpu, num_devices=1, num_hosts=1).mesh(recipe.Mesh())

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

    heads = [array((2, 1024, n, head_dim), dtype) for n in (8, 2, 2)]
    where = Coordinates(*(array((2, 1024), jnp.int32),) * 3)

    def total(heads, where):
        out = attention(*heads, query=where, key=where, window=512, implementation="pallas")
        return jnp.sum(out.astype(jnp.float32))

    with jax.set_mesh(mesh):  # by it Pallas knows the GPU
        program = jax.jit(jax.grad(total)).lower(heads, where).compile()
    assert _custom_calls(program) == KERNELS["pallas"]


@pytest.mark.parametrize("attention", ["pallas", "cudnn"])
def test_a_train_step_on_eight_gpus_runs_each_kernel_once_a_layer_with_its_results_kept(attention):
    """Mistral's heads, fsdp 4 x tensor 2, `remat: attention`: one forward kernel in the program, none for recomputing.

    The forward scan and the backward scan are each in the program once, whatever the number of layers.
    """
    machine = open_machine("a100-80gb", num_devices=8, num_hosts=1)
    if attention == "cudnn" and not machine.has_cudnn:
        pytest.skip("needs cuDNN: nvidia-cudnn-cu12")
    shape = ModelShape(
        hidden_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=128,
        intermediate_size=512,
        vocab_size=512,
        sliding_window=256,
    )
    mesh = machine.mesh(recipe.Mesh(data=1, fsdp=4, tensor=2))
    settings = ModelSettings("bfloat16", attention, "attention", "gpu", "plain")
    options = dpo_options()
    batch = {name: np.zeros((1, 4, 512), np.int32) for name in ("tokens", "positions", "segments", "branches")}
    batch |= {f"target_{name}": np.zeros((1, 4, 128), np.int32) for name in ("sources", "ids", "slots")}
    batch |= {"target_weights": np.zeros((1, 4, 128), np.float32)}
    batch |= {name: np.zeros((1, 2), np.float32) for name in ("pair_weights", "reference_chosen", "reference_rejected")}
    shardings = batch_shardings(batch, mesh)
    abstract = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=shardings[name]) for name, array in batch.items()
    }
    with jax.set_mesh(mesh):
        step = make_sharded_step(
            dpo_objective(options, shape=shape, settings=settings),
            options,
            num_steps=2,
            abstract_params=abstract_params(shape),
            mesh=mesh,
        )
        program = step.call.lower(step.abstract_state, abstract).compile()
    assert _custom_calls(program) == KERNELS[attention]
