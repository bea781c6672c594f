"""The environment that a plan needs, and machines with and without the CUDA plugin."""

from __future__ import annotations

import os
import sys

import jax
import pytest

from tests.training.small_stages import SHAPE
from zephyr_jax.compilation import bytes_per_device
from zephyr_jax.model.mistral import PARTITION_RULES, abstract_params
from zephyr_jax.planning import environment, machine
from zephyr_jax.recipe import Mesh
from zephyr_jax.records import InputError
from zephyr_jax.sharding import tree_shardings


def test_jax_is_kept_from_the_devices_of_this_machine_and_the_user_is_told():
    for given, told in [({}, False), ({"JAX_PLATFORMS": "cpu"}, False), ({"JAX_PLATFORMS": "cuda"}, True)]:
        said = environment.prepare_environment(given, target="h100", num_devices=16)
        assert given["JAX_PLATFORMS"] == "cpu" and "XLA_FLAGS" not in given
        assert bool(said) == told and (not told or "JAX_PLATFORMS=cuda" in said)


def test_the_target_cpu_fakes_devices_and_keeps_other_flags():
    given = {"XLA_FLAGS": "--xla_some_flag=1"}
    environment.prepare_environment(given, target="cpu", num_devices=4)
    assert given["XLA_FLAGS"] == "--xla_some_flag=1 --xla_force_host_platform_device_count=4"


def test_lines_about_the_missing_driver_are_held_back_and_no_others(capfd):
    with environment.without_driver_lines():
        os.write(2, b"I0000 cudart_stub.cc:31] Could not find cuda drivers\nsomething else\n")
        print("from python", file=sys.stderr)
    assert sorted(capfd.readouterr().err.splitlines()) == ["from python", "something else"]


def test_without_the_plugin_state_bytes_are_those_of_real_devices(monkeypatch):
    """An abstract mesh of 8 GPUs against 8 fake CPU devices."""
    monkeypatch.setattr(machine, "_missing_plugin", lambda: "it is not here")
    sizes, found = Mesh(data=1, fsdp=4, tensor=2), []
    for target in ("a100-80gb", "cpu"):
        opened = machine.open_machine(target, num_devices=8, num_hosts=1)
        assert bool(opened.missing) == (target != "cpu")
        params = abstract_params(SHAPE)
        shardings = tree_shardings(params, PARTITION_RULES, opened.mesh(sizes))
        found.append(
            bytes_per_device(
                jax.tree.map(lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s), params, shardings)
            )
        )
    assert found[0] == found[1]


def test_hosts_must_share_the_devices_evenly():
    with pytest.raises(InputError, match="--hosts: got 3 for 16 devices"):
        machine.open_machine("cpu", num_devices=16, num_hosts=3)
