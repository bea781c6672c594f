"""How long the steps of a recipe's stages take on the devices at hand, and what memory they need.

The programs are those that `train` runs, compiled ahead of time, on the recipe's own rows: the train step with its
state updated in place, and the reference pass. Nothing is written to the run's folder; what is learnt is thrown away.
Not here: the table and what the figures are compared with (timing_report.py), how FLOPs are counted (planning/).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zephyr_jax.compilation import Program, ProgramMemory, bytes_per_device, compile_ahead
from zephyr_jax.data.loader import StepBatches
from zephyr_jax.data.prefetch import prefetch
from zephyr_jax.host_memory import peak_memory
from zephyr_jax.model.mistral import ModelSettings, abstract_params, compute_params
from zephyr_jax.planning.flops import FlopCount, count_flops
from zephyr_jax.recipe import StageOptions
from zephyr_jax.stages.ddpo import DdpoData, add_reference, ddpo_batches, ddpo_options, load_ddpo_data, ordered_batches
from zephyr_jax.stages.dsft import dsft_batches, dsft_options, load_dsft_data
from zephyr_jax.stages.reference import make_reference_step
from zephyr_jax.stages.start import Run, StartModel, base_model, chosen_attention, model_settings, say, say_attention
from zephyr_jax.training.activations import kept_activations
from zephyr_jax.training.loop import placed_step_batch
from zephyr_jax.training.objectives import Objective, dpo_objective, sft_objective
from zephyr_jax.training.programs import made_text
from zephyr_jax.training.sharded_step import make_sharded_step

HostBatch = Mapping[str, np.ndarray]
NUM_PROFILED_STEPS = 2


@dataclasses.dataclass(frozen=True)
class CompiledShape:
    """One shape of step batch, [micro-batches, rows, tokens], and the program made for it.

    Attributes:
      shape: of the batch's tokens.
      seconds: tracing, lowering and compiling it, or reading it from the cache instead.
      from_cache: whether it was read.
      memory: what the compiler plans with; None where the backend does not say.
      attention: the implementation that its rows get.
      flops: matmul FLOPs of a step, all devices together, counted in the program before it is compiled.
      activations: bytes kept for the backward pass on a device, of the memory's temporaries; at most so many where the
        axis tensor splits some of them. None: there is no backward pass.
    """

    shape: tuple[int, ...]
    seconds: float
    from_cache: bool
    memory: ProgramMemory | None
    attention: str
    flops: FlopCount
    activations: int | None = None


@dataclasses.dataclass(frozen=True)
class StepWork:
    """What is in one step batch.

    Attributes:
      shape: of its tokens, [micro-batches, rows, tokens].
      num_tokens: input tokens without padding, a shared prompt counted twice, as in metrics.jsonl.
      num_row_tokens: tokens that stand in rows, a shared prompt once.
      num_targets: target (dSFT) or response (dDPO) tokens.
      num_positions: places in rows, padding included.
      num_visible: (query, key) pairs that attention may see, in one layer and head.
    """

    shape: tuple[int, ...]
    num_tokens: int
    num_row_tokens: int
    num_targets: int
    num_positions: int
    num_visible: int


@dataclasses.dataclass(frozen=True)
class Timing:
    """What was measured of one kind of step.

    Attributes:
      name: dsft, reference or ddpo.
      programs: in the order in which their shapes came.
      step_seconds: of every measured step.
      works: of every measured step.
      losses: of every measured step; of the reference pass none.
      num_stage_steps: steps (batches) of the whole stage.
      waited_seconds: time spent waiting for the batches of the measured steps, but for the first.
      state_bytes: what the program is given beside the batch (state or parameters), on one device.
      peak_bytes: see `peak_memory`, after these steps; of the whole process so far, not of these steps alone.
      peak_is_own: whether these steps raised it; else they needed at most this.
    """

    name: str
    programs: tuple[CompiledShape, ...]
    step_seconds: tuple[float, ...]
    works: tuple[StepWork, ...]
    losses: tuple[float, ...]
    num_stage_steps: int
    waited_seconds: float
    state_bytes: int
    peak_bytes: int
    peak_is_own: bool

    @property
    def is_training(self) -> bool:
        """Whether a step has a backward pass and an update."""
        return self.name != "reference"

    @property
    def seconds(self) -> float:
        """Of all measured steps together."""
        return sum(self.step_seconds)

    def total(self, field: str) -> int:
        """A field of StepWork, over all measured steps."""
        return sum(getattr(work, field) for work in self.works)


def time_stages(run: Run, *, num_steps: int, profile: Path | None = None) -> Iterator[Timing]:
    """Measures the steps of every stage of the recipe; a ddpo stage's reference pass comes before it.

    A stage starts from the recipe's own weights, also where `train` would start from what an earlier stage has learnt;
    and dDPO's reference log-probs are zeros: the work of a step depends on neither.

    Args:
      run: the run; its mesh is set.
      num_steps: measured steps of each, after one of every shape that does not count.
      profile: a folder: two more steps of each are traced into a folder of its name in it.

    Raises:
      InputError: the stage's data cannot be read, or the attention asked for cannot run here.
      FloatingPointError: a loss is not finite.
    """
    bench = _Bench(run, base_model(run), num_steps, profile)
    for stage in run.recipe.stages:
        if stage == "dsft":
            yield bench.dsft()
        else:
            yield from bench.ddpo(load_ddpo_data(run))


@dataclasses.dataclass(frozen=True)
class _Bench:
    run: Run
    start: StartModel
    num_steps: int
    profile: Path | None

    def dsft(self) -> Timing:
        batches = dsft_batches(self.run, load_dsft_data(self.run))
        options = dsft_options(self.run)
        settings = model_settings(self.run.recipe, rows=options.row_layout)
        say_attention(settings, self.start.shape, (shape.row_length for shape in batches.shapes))
        objective = sft_objective(shape=self.start.shape, settings=settings)
        return self._training("dsft", objective, options, batches, settings)

    def ddpo(self, data: DdpoData) -> Iterator[Timing]:
        ordered, dealt = ordered_batches(self.run, data.train), ddpo_batches(self.run, data.train)
        settings = model_settings(self.run.recipe, rows=ddpo_options(self.run).row_layout)
        say_attention(settings, self.start.shape, (shape.row_length for shape in (*ordered.shapes, *dealt.shapes)))
        yield self._measure(
            "reference",
            make_reference_step(shape=self.start.shape, settings=settings, mesh=self.run.mesh),
            lambda: self.start.load_on(self.run.mesh),
            ordered,
            settings,
            advance=lambda call, params, batch: (params, call(params, batch)),
        )
        objective = dpo_objective(ddpo_options(self.run), shape=self.start.shape, settings=settings)
        zeros = np.zeros(len(data.train), np.float32)
        complete = functools.partial(add_reference, {"chosen": zeros, "rejected": zeros})
        yield self._training("ddpo", objective, ddpo_options(self.run), dealt, settings, complete)

    def _training(
        self,
        name: str,
        objective: Objective,
        options: StageOptions,
        batches: StepBatches,
        settings: ModelSettings,
        complete: Callable[[HostBatch], HostBatch] = lambda batch: batch,
    ) -> Timing:
        sharded = make_sharded_step(
            objective,
            options,
            num_steps=batches.num_steps,
            abstract_params=abstract_params(self.start.shape),
            mesh=self.run.mesh,
            prepare=functools.partial(compute_params, settings=settings),
        )
        return self._measure(
            name,
            sharded.call,
            lambda: sharded.first_state(self.start.load_params),
            batches,
            settings,
            advance=lambda call, state, batch: call(state, batch),
            complete=complete,
            count_activations=lambda state, batch: kept_activations(objective, state.params, batch, self.run.mesh),
        )

    def _measure(
        self,
        name: str,
        function: jax.stages.Wrapped,
        load: Callable[[], Any],
        batches: StepBatches,
        settings: ModelSettings,
        *,
        advance: Callable[[jax.stages.Compiled, Any, Any], tuple[Any, Mapping[str, jax.Array]]],
        complete: Callable[[HostBatch], HostBatch] = lambda batch: batch,
        count_activations: Callable[[Any, Any], int | None] = lambda kept, batch: None,
    ) -> Timing:
        """Compiles, warms up and times steps; `advance` runs one on (what it keeps, batch) and gives both anew."""
        earlier_peak, _ = peak_memory()
        kept = load()
        state_bytes = bytes_per_device(kept)
        steps = [1 + index % batches.num_steps for index in range(self.num_steps)]
        programs: dict[tuple[int, ...], Program] = {}
        flops: dict[tuple[int, ...], FlopCount] = {}
        activations: dict[tuple[int, ...], int | None] = {}
        for batch in self._placed(batches, complete, steps):
            shape = batch["tokens"].shape
            if shape not in programs:
                programs[shape] = compile_ahead(function, kept, batch)
                say(f"{name}: {made_text('the step', shape, programs[shape])}")
                jaxpr = function.trace(kept, batch).jaxpr  # traced already: JAX keeps it
                flops[shape] = count_flops(jaxpr, num_devices=self.run.mesh.size)
                activations[shape] = count_activations(kept, batch)
                kept, values = advance(programs[shape].call, kept, batch)
                jax.block_until_ready(values)
        seconds: list[float] = []
        losses: list[float] = []
        with prefetch(lambda: self._placed(batches, complete, steps)) as ready:
            for batch in ready:
                if not seconds:
                    first_wait = ready.waited_seconds  # nothing was under way to make it during
                began = time.perf_counter()
                kept, values = advance(programs[batch["tokens"].shape].call, kept, batch)
                numbers = jax.device_get(values)  # waits for the step, as the training loop does
                seconds.append(time.perf_counter() - began)
                if "loss" in numbers:
                    losses.append(float(numbers["loss"]))
                    if not math.isfinite(losses[-1]):
                        raise FloatingPointError(f"{name}: loss {losses[-1]} at step {len(losses)}")
            waited = ready.waited_seconds - first_wait
        peak, _ = peak_memory()
        if self.profile is not None:
            self._trace(name, steps[:NUM_PROFILED_STEPS], batches, complete, programs, kept, advance)
        return Timing(
            name=name,
            programs=tuple(
                CompiledShape(
                    shape=shape,
                    seconds=program.seconds,
                    from_cache=program.from_cache,
                    memory=program.memory,
                    attention=chosen_attention(settings, self.start.shape, shape[2]),
                    flops=flops[shape],
                    activations=activations[shape],
                )
                for shape, program in programs.items()
            ),
            step_seconds=tuple(seconds),
            works=tuple(step_work(batches.batch(step), window=self.start.shape.sliding_window) for step in steps),
            losses=tuple(losses),
            num_stage_steps=batches.num_steps,
            waited_seconds=waited,
            state_bytes=state_bytes,
            peak_bytes=peak,
            peak_is_own=peak > earlier_peak,
        )

    def _placed(
        self, batches: StepBatches, complete: Callable[[HostBatch], HostBatch], steps: Sequence[int]
    ) -> Iterator[dict[str, jax.Array]]:
        for step in steps:
            yield placed_step_batch(batches, step, complete=complete, mesh=self.run.mesh)[1]

    def _trace(self, name, steps, batches, complete, programs, kept, advance) -> None:
        """Two steps under the profiler, process 0's; apart from the others, since it slows them."""
        assert self.profile is not None
        items = list(self._placed(batches, complete, steps))
        with jax.profiler.trace(self.profile / name) if self.run.peers.is_first else contextlib.nullcontext():
            for number, batch in enumerate(items, start=1):
                with jax.profiler.StepTraceAnnotation(name, step_num=number):
                    kept, values = advance(programs[batch["tokens"].shape].call, kept, batch)
                    jax.block_until_ready(values)
        say(f"{name}: a trace of {len(items)} steps is in {self.profile / name}")


def step_work(batch: HostBatch, *, window: int | None) -> StepWork:
    """Counts what is in a step batch, arrays [A, B, T] and [A, B, N].

    A token sees itself and everything before its own position: so many keys as its position says, and one; in the row
    of a pair both answers go on from the prompt's end and see the prompt.
    """
    real_ABT = batch["segments"] > 0
    visible_ABT = np.minimum(batch["positions"].astype(np.int64) + 1, window or np.iinfo(np.int64).max)
    return StepWork(
        shape=batch["tokens"].shape,
        num_tokens=int(np.sum(batch["num_tokens"])),
        num_row_tokens=int(np.sum(real_ABT)),
        num_targets=int(np.sum(batch["target_weights"])),
        num_positions=real_ABT.size,
        num_visible=int(np.sum(visible_ABT, where=real_ABT)),
    )
