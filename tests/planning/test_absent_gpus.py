"""A step is compiled for GPUs that are not here."""

from __future__ import annotations

import pytest

from zephyr_jax.planning.machine import open_machine
from zephyr_jax.recipe import load_recipe
from zephyr_jax.stages.planned import plan_stage

pytestmark = [pytest.mark.plan, pytest.mark.usefixtures("cuda_plugin")]


@pytest.mark.parametrize("target, stage", [("a100-80gb", "ddpo"), ("a100-40gb", "dsft"), ("h100", "dsft")])
def test_every_gpu_can_be_compiled_for(target, stage, repository):
    machine = open_machine(target, num_devices=4, num_hosts=2)
    assert machine.missing is None and len({device.process_index for device in machine.devices}) == 2
    plan = plan_stage(load_recipe(repository / "configs/tiny.yaml"), stage, machine, bandwidth=1e9)
    assert plan.verdict is not None and plan.verdict.text == "fits"
    assert plan.step.compiled is not None and plan.step.compiled.traffic.num_bytes("all-gather") > 0
    assert plan.bounds.step_seconds is not None and (plan.reference_verdict is not None) == (stage == "ddpo")
