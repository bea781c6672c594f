"""A jitted function traced, and compiled for devices that are not here, with what the compiler says of it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from zephyr_jax.planning.collectives import Traffic, read_traffic
from zephyr_jax.planning.flops import FlopCount, count_flops
from zephyr_jax.planning.machine import Machine


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program; sizes are bytes of one device.

    Attributes:
      seconds: lowering and compiling.
      arguments: all that the program is given.
      temporaries: what it needs beside its arguments and results, in one planned area.
      peak: the most at any time, arguments included.
      traffic: what it sends between devices.
      input_shardings: of every argument leaf, in order.
      output_shardings: of every result leaf, in order.
    """

    seconds: float
    arguments: int
    temporaries: int
    peak: int
    traffic: Traffic
    input_shardings: tuple[Any, ...]
    output_shardings: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A program: what its trace says, and what the compiler says where there is one for the machine."""

    flops: FlopCount
    compiled: Compiled | None


def make_program(function: jax.stages.Wrapped, *arguments: Any, mesh: Mesh, machine: Machine) -> Program:
    """Traces a jitted function and compiles it for the machine where that can be done.

    Args:
      function: the function, as the run itself would call it.
      arguments: its arguments, arrays as jax.ShapeDtypeStruct leaves with shardings.
      mesh: the machine's mesh.
      machine: what it is for.
    """
    num_devices = machine.num_devices
    if isinstance(mesh, AbstractMesh):
        with jax.sharding.use_abstract_mesh(mesh):
            return Program(count_flops(function.trace(*arguments).jaxpr, num_devices=num_devices), None)
    with jax.set_mesh(mesh):
        traced = function.trace(*arguments)
        flops = count_flops(traced.jaxpr, num_devices=num_devices)
        began = time.perf_counter()
        executable = traced.lower().compile()
    seconds = time.perf_counter() - began
    memory, text = executable.memory_analysis(), executable.as_text()
    assert memory is not None and text is not None
    traffic = read_traffic(text, mesh_shape=mesh.shape, devices_per_host=num_devices // machine.num_hosts)
    compiled = Compiled(
        seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        traffic=traffic,
        input_shardings=tuple(jax.tree.leaves(executable.input_shardings)),
        output_shardings=tuple(jax.tree.leaves(executable.output_shardings)),
    )
    return Program(flops, compiled)
