"""The machine that a plan is for, as a mesh of devices that are not here.

With the CUDA plugin's wheels a mesh of compile-only devices, without them an abstract one: enough for shapes, state
bytes and FLOPs. `cpu` is fake CPU devices. Nothing here needs a GPU, a driver or any other NVIDIA library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
from typing import cast

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType, Mesh

from zephyr_jax import recipe
from zephyr_jax.planning.chips import CHIPS, CPU, Chip
from zephyr_jax.records import InputError
from zephyr_jax.sharding import make_mesh

PLUGIN = "jax-cuda12-plugin"


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices to plan for.

    Attributes:
      target: the name that `--target` took.
      chip: what each device is; None: a fake CPU device.
      num_devices: of all hosts together.
      num_hosts: machines that share them evenly.
      missing: why nothing can be compiled for it here, and how to change that; None: it can.
      devices: to compile for; none where that cannot be.
    """

    target: str
    chip: Chip | None
    num_devices: int
    num_hosts: int
    missing: str | None
    devices: tuple[jax.Device, ...]

    @property
    def platform(self) -> str:
        """What the model's code is told that it runs on."""
        return CPU if self.chip is None else "gpu"

    @property
    def has_cudnn(self) -> bool:
        """Whether cuDNN's attention can be compiled for it here."""
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.util.find_spec("nvidia.cudnn") is not None
        return False

    def mesh(self, sizes: recipe.Mesh) -> Mesh:
        """The recipe's mesh over the devices; an AbstractMesh where nothing can be compiled.

        Raises:
          InputError: the devices cannot fill it.
        """
        if self.devices:
            return make_mesh(sizes, self.devices)
        resolved = recipe.resolve_mesh(sizes, self.num_devices)
        abstract = AbstractMesh(tuple(resolved.values()), tuple(resolved), axis_types=(AxisType.Auto,) * len(resolved))
        return cast(Mesh, abstract)  # what shardings and traces ask of a mesh it can do too


def open_machine(target: str, *, num_devices: int, num_hosts: int) -> Machine:
    """The machine of that many devices; says what is missing instead of failing.

    Raises:
      InputError: the hosts cannot share the devices evenly.
    """
    if num_devices < 1 or num_hosts < 1 or num_devices % num_hosts:
        raise InputError(
            f"--hosts: got {num_hosts} for {num_devices} devices, wanted a number of hosts that divides --devices"
        )
    chip = None if target == CPU else CHIPS[target]
    missing = None if chip is None else _missing_plugin()
    devices = [] if missing else _devices(chip, num_devices=num_devices, num_hosts=num_hosts)
    return Machine(target, chip, num_devices, num_hosts, missing, tuple(devices))


def _devices(chip: Chip | None, *, num_devices: int, num_hosts: int) -> list[jax.Device]:
    if chip is None:
        return jax.devices(CPU)[:num_devices]
    shape = f"1x{num_hosts}x{num_devices // num_hosts}"  # partitions x hosts x devices of a host
    topology = topologies.get_topology_desc(platform="cuda", target_config=chip.target_config, topology=shape)
    return topology.devices


def _missing_plugin() -> str | None:
    wanted = f"{PLUGIN}=={jax.__version__}"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        there = importlib.metadata.version(PLUGIN)
        return None if there == jax.__version__ else f"{PLUGIN} is {there}, which jax refuses: pip install {wanted}"
    return f"the CUDA plugin is not here (200 MB of wheels, no driver needed): `make plan`, or pip install {wanted}"
