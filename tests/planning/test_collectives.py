"""Collectives are found in the program's text, with their bytes, axes and turns."""

from __future__ import annotations

import pytest

from zephyr_jax.planning.collectives import Collective, Traffic, read_traffic

MESH = {"data": 2, "fsdp": 4, "tensor": 1}

# Two hosts of four devices. A loop of 3 turns gathers twice in one instruction, and calls a loop of 5 that scatters.
PROGRAM = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %rs = ((f32[8,16]{1,0}), f32[2,16]{1,0}) reduce-scatter-start(%x), replica_groups=[2,4]<=[8], to_apply=%add
}

%inner_condition (p: (s32[], f32[8,16])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (p: (s32[], bf16[2,16])) -> (s32[], bf16[2,16]) {
  %ag = ((bf16[2,16]{1,0}, s32[1]{0}), (bf16[8,16]{1,0}, /*index=1*/s32[4]{0})) all-gather-start(%w, %v), \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  %done = (bf16[8,16]{1,0}, s32[4]{0}) all-gather-done(%ag)
  %loop = (s32[], f32[8,16]{1,0}) while(%t), condition=%inner_condition, body=%inner_body, \
backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
}

%condition (p: (s32[], bf16[2,16])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: bf16[2,16]) -> bf16[2,16] {
  %loop = (s32[], bf16[2,16]{1,0}) while(%t), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %ar = f32[10]{0} all-reduce(%g), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %nothing = f32[10]{0} all-reduce(%g), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %all = f32[] all-reduce-start(%n), replica_groups={}, to_apply=%add
  %cp = (f32[6]{0}, f32[6]{0}) collective-permute-start(%h), source_target_pairs={{0,1},{1,0}}
}
"""


def _read(text: str) -> Traffic:
    return read_traffic(text, mesh_shape=MESH, devices_per_host=4)


def test_every_collective_is_counted_with_the_turns_of_the_loops_around_it():
    """A gather of 8 x 16 bf16 and 4 s32, 3 times; a scatter of 8 x 16 f32, 3 x 5 times; 10 f32 and 1 f32 reduced."""
    assert set(_read(PROGRAM).collectives) == {
        Collective("all-gather", "bf16", "fsdp", 4, 0, 3, 3 * 256, 256),
        Collective("all-gather", "s32", "fsdp", 4, 0, 3, 3 * 16, 16),
        Collective("reduce-scatter", "f32", "fsdp", 4, 0, 15, 15 * 512, 512),
        Collective("all-reduce", "f32", "data", 2, 4, 1, 40, 40),
        Collective("all-reduce", "f32", "data+fsdp", 8, 1, 1, 4, 4),
        Collective("collective-permute", "f32", "devices", 2, 0, 1, 24, 24),
    }


def test_a_loop_of_unknown_length_is_said():
    assert _read(PROGRAM).unknown_loops == 0
    without = PROGRAM.replace('{"known_trip_count":{"n":"3"}}', "{}")
    traffic = _read(without)
    assert traffic.unknown_loops == 1
    assert next(c.count for c in traffic.collectives if c.kind == "reduce-scatter") == 5


@pytest.mark.parametrize(
    "groups, axes",
    [
        ("{{0,1,2,3},{4,5,6,7}}", "fsdp"),
        ("[2,4]<=[8]", "fsdp"),
        ("[4,2]<=[2,4]T(1,0)", "data"),
        ("mesh['a'=2,'b'=4] {'a'}", "data"),
        ("mesh['a'=8] {'a':(2)4}", "fsdp"),
        ("mesh['a'=8] {'a':(1)2}", "data"),
        ("mesh['a'=4,'b'=2], device_ids=(0,4,1,5,2,6,3,7) {'b'}", "data"),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}", "fsdp"),
        ("mesh['a'=2,'b'=4] {'a','b'}", "data+fsdp"),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", "devices"),
    ],
)
def test_groups_are_named_by_mesh_axes_in_every_form_that_xla_writes(groups, axes):
    line = f"ENTRY %main (p: f32[4]) -> f32[4] {{\n  %r = f32[4]{{0}} all-reduce(%p), replica_groups={groups}\n}}\n"
    assert [found.axes for found in _read(line).collectives] == [axes]


def test_a_ring_of_n_sends_n_minus_1_parts_and_an_all_reduce_twice_that():
    ring = {"dtype": "f32", "axes": "fsdp", "num_rings": 0, "count": 1, "num_bytes": 800, "largest_bytes": 800}
    sent = {kind: Collective(kind, group_size=4, **ring).wire_bytes for kind in ("all-gather", "all-reduce")}
    assert sent == {"all-gather": 600, "all-reduce": 1200}
