"""The command `plan`: its JSON, its text, and what it says where nothing can be compiled."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from zephyr_jax import plan
from zephyr_jax.planning import machine

ROOT = Path(__file__).resolve().parent.parent
TINY, PAPER = str(ROOT / "configs/tiny.yaml"), str(ROOT / "configs/zephyr_7b/paper.yaml")


@pytest.fixture(autouse=True)
def _environment_of_its_own(monkeypatch):
    jax.devices()  # those of this session, for the tests that come after, before the command asks for others
    monkeypatch.setenv("XLA_FLAGS", "")  # put back afterwards, whatever the command sets
    monkeypatch.setattr(machine, "_missing_plugin", lambda: "the plugin is not here")


def _json(capsys, *arguments: str):
    assert plan.main(["--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_json_has_what_the_interface_names(capsys):
    found = _json(capsys, "--config", TINY, "--target", "cpu", "--devices", "4", "--stage", "ddpo", "--bandwidth", "1")
    assert {"config", "stage", "target", "devices", "hosts", "mesh", "num_parameters", "verdict"} <= set(found)
    assert {"margin_bytes", "flops", "collectives", "bounds", "compile_seconds", "assumptions"} <= set(found)
    sizes = found["bytes_per_device"]
    assert set(sizes) == {
        *("parameters", "optimizer_state", "gradients", "activations", "batch"),
        *("temporaries", "arguments", "peak", "available"),
    }
    assert set(found["flops"]) == {"per_device", "per_token", "remat_share"}
    assert set(found["bounds"]) == {
        *("compute_seconds", "network_seconds", "step_seconds", "tokens_per_second", "mfu"),
    }
    assert {"kind", "dtype", "count", "bytes", "axis"} <= set(found["collectives"][0])
    assert found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    # what the compiler is given is what arithmetic says: state, batch, and the step count and Adam's of 4 bytes
    assert sizes["arguments"] == sizes["parameters"] + sizes["optimizer_state"] + sizes["batch"] + 4
    assert any("smoke test" in sentence for sentence in found["assumptions"])


def test_without_the_plugin_arithmetic_is_given_and_the_way_to_the_rest(capsys):
    """Mistral-7B has 7,241,732,096 parameters: 4 bytes each and twice that for Adam, over 16 devices. Norm scales,
    266,240 of them, lie on every device whole."""
    assert plan.main(["--config", PAPER, "--stage", "dsft"]) == 0
    out, err = capsys.readouterr()
    assert "the plugin is not here" in err and "7,241,732,096 parameters" in out and "arithmetic alone" in out
    found = _json(capsys, "--config", PAPER, "--stage", "dsft")
    parameters = ((7_241_732_096 - 266_240) // 16 + 266_240) * 4
    assert found["bytes_per_device"]["parameters"] == parameters
    assert found["bytes_per_device"]["optimizer_state"] == 2 * parameters + 8
    assert found["verdict"] is None and found["collectives"] == [] and found["bounds"]["step_seconds"] is None
    # 6 FLOPs a parameter of a matrix, a third more for what is recomputed less the last product, and attention
    assert 6 * 7.1e9 < (1 - found["flops"]["remat_share"]) * found["flops"]["per_token"] < 6.5 * 7.1e9


def test_a_model_on_the_hub_needs_no_network_where_the_recipe_has_its_shape(capsys, monkeypatch):
    monkeypatch.setattr("zephyr_jax.stages.planned.open_weights", lambda name: pytest.fail("asked for the weights"))
    assert _json(capsys, "--config", PAPER, "--devices", "8")["hosts"] == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--page", "sweep.html"], "--page: is the page of a sweep"),
        (["--sweep", "remat"], "--sweep: got 'remat', wanted key=value,value"),
        (["--devices", "0"], "--devices: got 0, wanted more than 0"),
        (["--hosts", "3"], "--hosts: got 3 for 16 devices"),
        (["--rows-per-step", "4", "--stage", "dsft"], "--rows-per-step: got 4, but only ddpo"),
        (["mesh.fsdp=5"], "mesh: got {data: 1, fsdp: 5, tensor: 1}, which takes 5 devices, but there are 16"),
        (["--stage", "dsft", "stages=[ddpo]", "dsft=null"], "--stage: got dsft, but the recipe has no block dsft"),
    ],
)
def test_a_wrong_argument_is_one_message(arguments, message, capsys):
    assert plan.main(["--config", PAPER, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_is_a_table_with_the_best(capsys):
    assert plan.main(["--config", TINY, "--stage", "dsft", "--sweep", "model.remat=none,full", "mesh.fsdp=5,16"]) == 0
    out, err = capsys.readouterr()
    assert "4 of 4: model.remat=full mesh.fsdp=16" in err
    assert out.count("which takes 5 devices") == 2 and "1. remat=none, fsdp=16" in out


def test_hosts_are_filled_by_eight_where_they_are_not_given():
    assert [plan.default_hosts(devices) for devices in (1, 8, 9, 16, 20)] == [1, 1, 3, 2, 4]


def test_a_sweep_of_a_mistyped_key_is_an_error_not_a_table(capsys):
    assert plan.main(["--config", TINY, "--target", "cpu", "--devices", "1", "--sweep", "model.remaat=full,none"]) == 2
    assert "--sweep: none of the 2 points is a recipe" in capsys.readouterr().err


def test_activations_are_left_open_where_the_axis_tensor_splits_some_of_them(capsys):
    changes = ("mesh.tensor=2", "model.shape.vocab_size=260")
    assert _json(capsys, "--config", TINY, "--devices", "4", *changes)["bytes_per_device"]["activations"] is None
