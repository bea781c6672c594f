"""A plan as text, for people."""

from __future__ import annotations

from collections.abc import Iterable

from zephyr_jax.compilation import bytes_text
from zephyr_jax.planning.estimate import CONTEXT_BYTES, NCCL_BYTES, Verdict
from zephyr_jax.planning.programs import Program
from zephyr_jax.planning.stage_plan import StagePlan


def plan_text(plan: StagePlan) -> str:
    """The plan in some forty lines."""
    parts = [_heading(plan), _memory(plan), _flops(plan), _wires(plan), _bounds(plan), _reference(plan)]
    return "\n".join([*(line for part in parts for line in part), *_list("assumed", plan.assumptions())])


def verdict_text(verdict: Verdict) -> str:
    """`fits: 52.10 GB to spare`, or what is missing."""
    if verdict.margin < 0:
        return f"{verdict.text}: {bytes_text(-verdict.margin)} too much"
    return f"{verdict.text}: {bytes_text(verdict.margin)} to spare"


def _heading(plan: StagePlan) -> Iterable[str]:
    machine, shape = plan.machine, plan.batch.shape
    device = "fake CPU device" if machine.chip is None else machine.chip.label
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh_shape.items())
    hosts = f"{machine.num_hosts} host{'s' if machine.num_hosts > 1 else ''}"
    model = plan.recipe.model
    yield f"{plan.recipe.name}, {plan.stage}: {machine.num_devices} x {device} in {hosts}; mesh {mesh}"
    yield f"  model        {plan.num_parameters:,} parameters; {model.compute_dtype}, remat {model.remat}"
    other = "" if plan.compiled_attention == plan.attention else f" ({plan.compiled_attention} compiled here)"
    yield f"  attention    {plan.attention}{other}"
    pairs = f", {shape.num_pairs} pairs each" if shape.num_pairs else ""
    yield (
        f"  step         {shape.num_micro_batches} micro-batch{'es' * (shape.num_micro_batches > 1)} of "
        f"{shape.num_rows} rows x {shape.row_length} positions{pairs}"
    )
    if machine.missing is not None:
        yield f"  not compiled: {machine.missing}. What follows is arithmetic alone."


def _memory(plan: StagePlan) -> Iterable[str]:
    compiled, verdict = plan.step.compiled, plan.verdict
    yield "memory of a device"
    yield f"  parameters            {bytes_text(plan.parameters):>12}   exact: float32, sharded"
    yield f"  optimizer state       {bytes_text(plan.optimizer_state):>12}   exact"
    yield f"  batch                 {bytes_text(plan.batch_bytes):>12}"
    yield f"  gradients             {bytes_text(plan.gradients):>12}   float32; of the temporaries"
    if plan.activations is not None:
        kept = bytes_text(plan.activations)
        yield f"  activations           {kept:>12}   kept for the backward pass; of the temporaries"
    if compiled is None:
        return
    yield f"  temporaries           {bytes_text(compiled.temporaries):>12}   with gathered weights and scratch"
    yield f"  peak                  {bytes_text(compiled.peak):>12}   the compiler's"
    if verdict is None or plan.machine.chip is None:
        return
    card = plan.machine.chip.memory_bytes
    share = f"{verdict.available / card:.2f} of {bytes_text(card)}"
    yield f"  for the allocator     {bytes_text(verdict.available):>12}   {share}"
    reserve = ", ".join(f"{bytes_text(size)} for {what}" for what, size in verdict.reserve.items())
    yield f"  {verdict_text(verdict)}, of which {reserve} should stay free"
    beside = f"{bytes_text(NCCL_BYTES)} for NCCL, {bytes_text(CONTEXT_BYTES)} for the CUDA context"
    yield f"  beside the allocator's: {beside}"


def _flops(plan: StagePlan) -> Iterable[str]:
    flops = plan.step.flops.flops
    yield "matmul FLOPs of a step"
    yield f"  per device            {_flops_number(flops / plan.machine.num_devices):>12}"
    yield f"  per position          {_flops_number(flops / plan.batch.num_positions):>12}"
    yield f"  recomputed            {100 * plan.remat_share:>10.1f} %"


def _flops_number(flops: float) -> str:
    unit, factor = ("T", 1e12) if flops >= 1e11 else ("G", 1e9) if flops >= 1e8 else ("M", 1e6)
    return f"{flops / factor:,.1f} {unit}"


def _wires(plan: StagePlan) -> Iterable[str]:
    if plan.step.compiled is None:
        return
    traffic = plan.step.compiled.traffic
    yield "sent between devices in a step (bytes of the full buffer)"
    for found in traffic.collectives:
        hosts = "across hosts" if found.crosses_hosts else "within a host"
        yield (
            f"  {found.kind:<19} {found.dtype:<5} {bytes_text(found.num_bytes):>10}   {found.count:>6} x over "
            f"{found.axes}, {hosts}"
        )
    if plan.machine.chip is not None:
        gathered, scattered = map(bytes_text, plan.needed)
        yield f"  the weights' sizes say {gathered} gathered and {scattered} scattered over fsdp"
    yield from (f"  FAULT: {fault}" for fault in plan.faults)
    yield f"  a device sends        {bytes_text(traffic.wire_bytes):>12}   where devices form rings"


def _bounds(plan: StagePlan) -> Iterable[str]:
    bounds, chip = plan.bounds, plan.machine.chip
    if chip is None or bounds.compute_seconds is None:
        return
    peak = chip.peak_flops[plan.recipe.model.compute_dtype]
    yield "lower bounds of the time of this step, padding included"
    yield f"  compute               {bounds.compute_seconds:>9.3f} s   at {peak / 1e12:,.0f} TFLOP/s a device"
    if bounds.network_seconds is None:
        yield "  network               not known: --bandwidth GBPS (what nccl-tests calls busbw) was not given"
        return
    yield f"  network               {bounds.network_seconds:>9.3f} s"
    if bounds.step_seconds is not None and bounds.tokens_per_second is not None and bounds.mfu is not None:
        yield (
            f"  step                  {bounds.step_seconds:>9.3f} s   so at most {bounds.tokens_per_second:,.0f} "
            f"positions/s and an MFU of {100 * bounds.mfu:.0f} %: bounds, not a forecast"
        )


def _reference(plan: StagePlan) -> Iterable[str]:
    program: Program | None = plan.reference
    if program is None:
        return
    flops = f"{_flops_number(program.flops.flops / plan.machine.num_devices)}FLOPs a device and batch"
    if program.compiled is None or plan.reference_verdict is None:
        yield f"reference pass: {flops}"
        return
    yield (
        f"reference pass: peak {bytes_text(program.compiled.peak)}, {verdict_text(plan.reference_verdict)}; {flops}, "
        f"a device sends {bytes_text(program.compiled.traffic.wire_bytes)}"
    )


def _list(title: str, lines: Iterable[str]) -> Iterable[str]:
    yield title
    for line in lines:
        yield f"  - {line}"
