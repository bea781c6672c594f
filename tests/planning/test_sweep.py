"""The points of a sweep, what becomes of those that cannot be run, and which are called best."""

from __future__ import annotations

import dataclasses

import pytest

from zephyr_jax.planning.chips import CHIPS
from zephyr_jax.planning.collectives import Traffic
from zephyr_jax.planning.estimate import Bounds, memory_verdict
from zephyr_jax.planning.machine import Machine
from zephyr_jax.planning.programs import Compiled
from zephyr_jax.planning.stage_plan import StagePlan
from zephyr_jax.planning.sweep import Point, best_points, parse_sweep, point_row, rule_text, sweep_json, sweep_text
from zephyr_jax.recipe import load_recipe
from zephyr_jax.records import InputError
from zephyr_jax.stages.planned import plan_point, plan_stage

A100S = Machine("a100-80gb", CHIPS["a100-80gb"], 16, 2, "the plugin is not here", ())


@pytest.fixture(scope="module")
def plan(repository) -> StagePlan:
    return plan_stage(load_recipe(repository / "configs/tiny.yaml"), "dsft", A100S)


def _point(name: str, plan: StagePlan, *, seconds: float, peak: float, batch_size: int = 6) -> Point:
    assert plan.recipe.dsft is not None
    options = plan.recipe.dsft.model_copy(update={"batch_size": batch_size})
    compiled = Compiled(1.0, 0, 0, int(peak), Traffic((), 0), (), ())
    verdict = memory_verdict(int(peak), chip=CHIPS["a100-80gb"], attention="xla", memory_fraction=0.75)
    changed = dataclasses.replace(
        plan,
        recipe=plan.recipe.model_copy(update={"dsft": options}),
        step=dataclasses.replace(plan.step, compiled=compiled),
        verdict=verdict,
        bounds=Bounds(seconds, seconds, seconds, 1.0, 1.0),
    )
    return Point((f"name={name}",), changed, "too large" if verdict.margin < 0 else None)


def test_a_sweep_is_every_combination_and_commas_within_brackets_part_nothing():
    assert parse_sweep(["mesh={data: 1, fsdp: 2},{fsdp: 4}", "a.b=1, null"]) == [
        ("mesh={data: 1, fsdp: 2}", "a.b=1"),
        ("mesh={data: 1, fsdp: 2}", "a.b=null"),
        ("mesh={fsdp: 4}", "a.b=1"),
        ("mesh={fsdp: 4}", "a.b=null"),
    ]
    with pytest.raises(InputError, match="--sweep: got 'remat', wanted key=value,value"):
        parse_sweep(["remat"])


def test_the_best_have_the_shortest_bound_for_a_row_of_those_that_fit(plan):
    """10 s for 6 rows are longer than 12 s for 12; 1 s does not fit; of equals the lower peak is first."""
    points = [
        _point("slow", plan, seconds=10, peak=1e9),
        _point("large", plan, seconds=1, peak=90e9),
        _point("twice", plan, seconds=12, peak=2e9, batch_size=12),
        _point("lean", plan, seconds=6, peak=1e9),
        _point("tight", plan, seconds=2, peak=63e9),
    ]
    assert [point.name for point in best_points(points)] == ["name=lean", "name=twice", "name=slow"]
    assert rule_text(points).startswith("of those that fit, the shortest bound of compute and network for a row")
    text = sweep_text(points)
    assert "1. name=lean" in text and "too large" in text and "90.00 GB" in text


def test_points_that_cannot_be_run_stay_with_their_reason(repository):
    config = repository / "configs/tiny.yaml"

    def planned(*overrides: str) -> Point:
        return plan_point(lambda: load_recipe(config, overrides), overrides, "dsft", A100S)

    points = [planned("mesh.fsdp=4"), planned("mesh.data=2"), planned("dsft.micro_batch_size=4")]
    assert "mesh: got {data: 1, fsdp: 4, tensor: 1}, which takes 4 devices" in (points[0].reason or "")
    assert points[1].reason is None and points[1].plan is not None
    assert "wanted a divisor of batch_size (6)" in (points[2].reason or "")
    text = sweep_text(points)
    assert all(point.name in text and (point.reason or "not compiled") in text for point in points)
    found = sweep_json(points, str(config))
    assert [each["plan"] is None for each in found["points"]] == [True, False, True]
    assert found["best"] == [["mesh.data=2"]]


def test_the_page_shows_every_point(plan):
    pytest.importorskip("matplotlib", reason="pictures need the extra [report]")
    from zephyr_jax.planning.sweep_page import sweep_page

    points = [_point("a", plan, seconds=1, peak=1e9), Point(("mesh.fsdp=5",), None, "cannot be filled")]
    text = sweep_page(points, title="two points", subtitle="16 x A100")
    assert text.count("<svg") == 1 and "cannot be filled" in text and "name=a" in text


def test_a_point_compiled_for_cpus_has_no_verdict_and_is_not_said_to_be_uncompiled(plan):
    point = _point("cpu", plan, seconds=1, peak=1e9)
    unjudged = dataclasses.replace(point, plan=dataclasses.replace(point.plan, verdict=None))
    assert point_row(unjudged)[-1] == "compiled" and point_row(Point((), plan, None))[-1] == "not compiled"
