"""All that was found of a stage planned for a machine, and the JSON object of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from zephyr_jax.planning.batches import AssumedBatch
from zephyr_jax.planning.estimate import Bounds, Verdict
from zephyr_jax.planning.machine import Machine
from zephyr_jax.planning.programs import Program
from zephyr_jax.planning.soundness import NeededTraffic
from zephyr_jax.recipe import ModelShape, Recipe


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """All that was found of a stage; sizes are bytes of one device.

    Attributes:
      recipe: the recipe.
      stage: dsft or ddpo.
      machine: what it was planned for.
      shape: the model's shape.
      mesh_shape: sizes of the mesh's axes.
      attention: the implementation that its rows get there.
      compiled_attention: the one compiled here.
      batch: the step batch assumed.
      num_parameters: of the whole model.
      parameters: exact, by arithmetic.
      optimizer_state: exact, by arithmetic.
      gradients: in float32, as the optimizer reads them; a part of the temporaries.
      activations: what a micro-batch's forward pass keeps for its backward pass; a part of the temporaries. None: not
        known, as the axis tensor splits some of them.
      batch_bytes: the batch's arrays.
      step: the train step's program.
      needed: what its weights' sizes say that it sends.
      faults: what is wrong with it, a sentence each; empty too where nothing was compiled for a GPU.
      model_flops: of all devices, without recomputation.
      verdict: of the train step; None where nothing was compiled for a GPU.
      bounds: of the train step.
      reference: the reference pass's program, of a dDPO stage.
      reference_verdict: of it.
    """

    recipe: Recipe
    stage: str
    machine: Machine
    shape: ModelShape
    mesh_shape: dict[str, int]
    attention: str
    compiled_attention: str
    batch: AssumedBatch
    num_parameters: int
    parameters: int
    optimizer_state: int
    gradients: int
    activations: int | None
    batch_bytes: int
    step: Program
    needed: NeededTraffic
    faults: list[str]
    model_flops: float
    verdict: Verdict | None
    bounds: Bounds
    reference: Program | None
    reference_verdict: Verdict | None

    @property
    def remat_share(self) -> float:
        """The share of the step's FLOPs that is recomputation."""
        return 1 - self.model_flops / self.step.flops.flops

    def assumptions(self) -> list[str]:
        """What was taken for granted, and what is not known; a sentence each."""
        said = [*self.batch.assumptions]
        said.append(
            "FLOPs are those of matmuls; attention's are of all that causal order allows, or of all pairs (xla)"
        )
        if self.machine.chip is None:
            said.append(
                "fake CPU devices are a smoke test: the CPU's compiler says nothing of a GPU's memory, sends bfloat16 "
                "as float32 and reduces whole arrays where a GPU reduces and scatters"
            )
        loops = self.step.flops.unknown_loops
        loops += self.step.compiled.traffic.unknown_loops if self.step.compiled else 0
        if loops:
            said.append(f"{loops} loops do not tell their number of turns: what is in them is counted once")
        said += [f"the kernel {name} has no formula: it is not counted" for name in self.step.flops.unknown_kernels]
        if self.compiled_attention != self.attention:
            said.append(
                f"attention: {self.attention} there, but {self.compiled_attention} was compiled here, as cuDNN is "
                "missing (pip install --no-deps nvidia-cudnn-cu12, 700 MB)"
            )
        elif self.attention == "cudnn":
            said.append(
                "cuDNN's workspace is not in the peak: the compiler holds no place for it; it is in the reserve"
            )
        if self.verdict is not None:
            said.append(
                "what should stay free, and what NCCL and the CUDA context take, are estimates: none was measured"
            )
        said.append("not known: the run's throughput, kernels' own speed, NCCL's, whether traffic hides behind compute")
        return said

    def to_json(self, config: str) -> dict[str, Any]:
        """The plan as JSON values; null is what is not known.

        Args:
          config: the recipe's file.
        """
        compiled, verdict, num_devices = self.step.compiled, self.verdict, self.machine.num_devices
        flops = self.step.flops.flops
        found: dict[str, Any] = {
            "config": config,
            "stage": self.stage,
            "target": self.machine.target,
            "devices": num_devices,
            "hosts": self.machine.num_hosts,
            "mesh": self.mesh_shape,
            "num_parameters": self.num_parameters,
            "bytes_per_device": {
                "parameters": self.parameters,
                "optimizer_state": self.optimizer_state,
                "gradients": self.gradients,
                "activations": self.activations,
                "batch": self.batch_bytes,
                "temporaries": compiled and compiled.temporaries,
                "arguments": compiled.arguments if compiled else self.state_bytes + self.batch_bytes,
                "peak": compiled and compiled.peak,
                "available": verdict and verdict.available,
            },
            "verdict": verdict and verdict.text,
            "margin_bytes": verdict and verdict.margin,
            "reserve_bytes": verdict and verdict.reserve,
            "flops": {
                "per_device": flops / num_devices,
                "per_token": flops / self.batch.num_positions,
                "remat_share": self.remat_share,
            },
            "collectives": _collectives(self.step),
            "bounds": dataclasses.asdict(self.bounds),
            "compile_seconds": compiled and round(compiled.seconds, 2),
            "assumptions": self.assumptions(),
            "faults": self.faults,
            "batch": self.batch.shape._asdict(),
            "attention": self.attention,
            "compiled_attention": self.compiled_attention,
            "not_compiled": self.machine.missing,
        }
        if self.reference is not None:
            program, judged = self.reference.compiled, self.reference_verdict
            found["reference"] = {
                "peak": program and program.peak,
                "verdict": judged and judged.text,
                "flops_per_device": self.reference.flops.flops / num_devices,
                "collectives": _collectives(self.reference),
            }
        return found

    @property
    def state_bytes(self) -> int:
        """Parameters and optimizer state of a device."""
        return self.parameters + self.optimizer_state


def _collectives(program: Program) -> list[dict[str, Any]]:
    if program.compiled is None:
        return []
    return [
        {
            "kind": found.kind,
            "dtype": found.dtype,
            "count": found.count,
            "bytes": found.num_bytes,
            "axis": found.axes,
            "largest_bytes": found.largest_bytes,
            "crosses_hosts": found.crosses_hosts,
        }
        for found in program.compiled.traffic.collectives
    ]
