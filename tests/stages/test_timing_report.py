"""The figures of `bench`: rates, shares and the table, on steps made up so that they can be worked out by hand."""

from __future__ import annotations

import json

import pytest

from zephyr_jax.compilation import ProgramMemory
from zephyr_jax.planning.flops import FlopCount
from zephyr_jax.planning.model_flops import model_flops
from zephyr_jax.recipe import ModelShape
from zephyr_jax.stages.timing import CompiledShape, StepWork, Timing
from zephyr_jax.stages.timing_report import report_json, report_table, stage_figures

SHAPE = ModelShape(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=32, head_dim=4
)
WORK = StepWork(
    shape=(1, 2, 64), num_tokens=100, num_row_tokens=80, num_targets=30, num_positions=128, num_visible=1000
)


def _timing(name: str, **changes) -> Timing:
    """Three steps of 1, 2 and 6 s: 300 tokens in 9 s."""
    fields = {
        "name": name,
        "programs": (
            CompiledShape((1, 2, 64), 5.0, False, ProgramMemory(1100, 1000, 300), "cudnn", FlopCount(4e9)),
            CompiledShape((1, 1, 64), 2.0, True, ProgramMemory(1050, 1000, 900), "cudnn", FlopCount(2e9), 700),
        ),
        "step_seconds": (1.0, 2.0, 6.0),
        "works": (WORK,) * 3,
        "losses": (0.7, 0.6, 0.5),
        "num_stage_steps": 100,
        "waited_seconds": 1.0,
        "state_bytes": 1000,
        "peak_bytes": 5_000_000_000,
        "peak_is_own": True,
    }
    return Timing(**(fields | changes))


def test_rates_are_sums_over_sums():
    figures = stage_figures(_timing("ddpo"), SHAPE, ceiling=1e6, peak=2e6)
    assert figures["step_seconds"] == {"median": 2.0, "least": 1.0, "most": 6.0, "all": [1.0, 2.0, 6.0]}
    assert figures["tokens_per_second"] == pytest.approx(300 / 9)
    assert figures["target_tokens_per_second"] == pytest.approx(90 / 9)
    assert figures["padding_share"] == pytest.approx(1 - 80 / 128)
    assert figures["data_wait_share"] == pytest.approx(0.1)
    assert figures["whole_stage_seconds"] == pytest.approx(300)
    assert figures["compile_seconds"] == 7.0
    flops = model_flops(SHAPE, num_tokens=240, num_targets=90, num_visible=3000)
    assert figures["model_flops_per_step"] == flops / 3
    assert figures["computed_flops_per_step"] == 4e9  # all three of the first program's shape
    assert figures["mfu"] == pytest.approx(flops / 9 / 2e6)
    assert figures["share_of_matmul_ceiling"] == pytest.approx(flops / 9 / 1e6)


def test_the_planned_bytes_are_of_the_program_that_needs_most():
    planned = stage_figures(_timing("dsft"), SHAPE, ceiling=1.0, peak=None)["planned_bytes_per_device"]
    of_step = {"state": 1000, "batch": 50, "temporaries": 900, "activations": 700, "not_in_place": 0, "total": 1950}
    assert planned == of_step
    unsaid = _timing("dsft", programs=(CompiledShape((1, 2, 64), 5.0, False, None, "xla", FlopCount(1e9, 1)),))
    assert stage_figures(unsaid, SHAPE, ceiling=1.0, peak=None)["planned_bytes_per_device"] is None


def test_a_reference_pass_has_no_backward_pass():
    training, forward = (
        stage_figures(_timing(name), SHAPE, ceiling=1e6, peak=None)["model_flops_per_step"]
        for name in ("ddpo", "reference")
    )
    assert training == 3 * forward


def _report(**changes) -> dict:
    peak = 2e6
    report = {
        "config": "configs/x.yaml",
        "name": "x",
        "platform": "gpu",
        "device_kind": "NVIDIA H100 80GB HBM3",
        "num_devices": 2,
        "mesh": {"data": 1, "fsdp": 2, "tensor": 1},
        "compute_dtype": "bfloat16",
        "attention": "auto",
        "remat": "full",
        "num_parameters": 7_000_000,
        "flops_formula": "a formula",
        "peak_flops_per_second": peak,
        "peak_source": "a data sheet",
        "matmul_ceiling_flops_per_second": 1e6,
        "memory_measured": "of the device's allocator",
        "stages": {
            "reference": stage_figures(_timing("reference"), SHAPE, ceiling=2e6, peak=2 * peak),
            "ddpo": stage_figures(_timing("ddpo", peak_is_own=False), SHAPE, ceiling=2e6, peak=2 * peak),
        },
        "versions": {"jax": "0.0"},
    }
    return report | changes


def test_the_table_has_a_column_for_each_and_prints_the_formula():
    text = report_table(_report())
    assert " reference pass |" in text and "a formula" in text and "a data sheet" in text
    assert "2 (1 to 6), 3 steps" in text and "7.0 s (2 shapes, 1 out of the cache)" in text
    assert "<= 5.00 GB" in text and "100 in 5 min" in text


def test_an_unknown_chip_has_a_ceiling_and_no_mfu():
    stages = {"dsft": stage_figures(_timing("dsft"), SHAPE, ceiling=1e6, peak=None)}
    report = _report(device_kind="cpu", peak_flops_per_second=None, stages=stages)
    text = report_table(report)
    assert "No peak is known for cpu, so no MFU is given" in text and "unknown" in text
    assert json.loads(report_json(report))["stages"]["dsft"]["mfu"] is None
