"""The one loop of both stages: step, log, evaluate, save, go on after an interruption, stop cleanly.

Not here: what is learnt (objectives.py), which rows a step sees (data/loader.py), where results go in the end
(stages/).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from zephyr_jax.compilation import Program, bytes_per_device, bytes_text, compile_ahead, count_compilations
from zephyr_jax.data.loader import StepBatches, StepShape
from zephyr_jax.data.prefetch import prefetch
from zephyr_jax.peers import ALONE, Peers
from zephyr_jax.recipe import StageOptions
from zephyr_jax.records import InputError
from zephyr_jax.sharding import local_rows, place_batch, replicated
from zephyr_jax.training.activations import kept_activations
from zephyr_jax.training.checkpoint import Checkpoints
from zephyr_jax.training.metrics import MetricsLog, ProgressBar, SessionLog
from zephyr_jax.training.objectives import Objective, Totals
from zephyr_jax.training.programs import ShapePrograms, made_text
from zephyr_jax.training.sharded_step import make_sharded_step
from zephyr_jax.training.step import TrainState, add_totals, finish, make_eval_step

HOST_ARRAYS = ("num_tokens", "pair_rows")  # parts of a step batch that no device needs


@dataclasses.dataclass(frozen=True)
class StageTask:
    """What the loop is to do.

    Attributes:
      name: the stage, for the bar and messages.
      folder: the stage's folder: checkpoints/ and metrics.jsonl.
      options: the stage's part of the recipe.
      objective: (params, micro-batch) -> Totals.
      abstract_params: shapes of the parameters.
      load_params: (shardings) -> the parameters to start from; not called when a checkpoint is found.
      batches: step batches as a function of the step.
      complete: adds to a host batch what the objective needs beside the rows (reference log-probs).
      prepare: parameters -> what the objective is given, once a step (make_train_step).
      evaluate: (params, step) -> metrics without the `eval/` prefix; None: no evaluation data.
      check_first_step: called with the first step's metrics of a fresh run.
      trackers: see MetricsLog.
      data_fingerprint: hash of the training rows; a run does not go on with others.
      facts: what sessions.jsonl says of each sitting beside its times.
    """

    name: str
    folder: Path
    options: StageOptions
    objective: Objective
    abstract_params: Any
    load_params: Callable[[Any], Any]
    batches: StepBatches
    complete: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
    prepare: Callable[[Any], Any] = lambda params: params
    evaluate: Callable[[Any, int], Mapping[str, float]] | None = None
    check_first_step: Callable[[Mapping[str, float]], None] | None = None
    trackers: Sequence[str] = ()
    data_fingerprint: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class StageResult:
    """What came of it: final parameters, first and last metrics lines, tokens read and seconds taken (all sittings).

    Of the last sitting only: the share of its time spent waiting for data, and what it compiled (as JSON values).
    """

    params: Any
    first_metrics: dict[str, Any]
    metrics: dict[str, Any]
    eval_metrics: dict[str, Any]
    num_tokens: int
    seconds: float
    data_wait_share: float
    compilation: dict[str, Any]


def run_stage(task: StageTask, *, mesh: jax.sharding.Mesh, peers: Peers = ALONE) -> StageResult:
    """Trains from the start or from the newest checkpoint to the last step.

    Args:
      task: what to do.
      mesh: the device mesh.
      peers: the processes whose devices it is of, each of which calls this; process 0 writes the metrics.

    Returns:
      The result; the last step is always saved.

    Raises:
      KeyboardInterrupt: SIGINT or SIGTERM came, to any of the processes; the step under way was finished and saved.
      InputError: the training rows are not those of the steps done, or not the same in all processes.
      FloatingPointError: the loss is not finite.
    """
    sharded = make_sharded_step(
        task.objective,
        task.options,
        num_steps=task.batches.num_steps,
        abstract_params=task.abstract_params,
        mesh=mesh,
        prepare=task.prepare,
    )
    checkpoints = Checkpoints(task.folder / "checkpoints", keep=task.options.keep_checkpoints)
    peers.check_same(f"{task.name}: the training rows", task.data_fingerprint)
    peers.check_same(f"{task.name}: the newest checkpoint's step", checkpoints.latest_step())
    if checkpoints.latest_step() is None:
        state = sharded.first_state(task.load_params)
        progress: dict[str, Any] = {"step": 0, "num_tokens": 0, "seconds": 0.0}
    else:
        state, progress = checkpoints.restore(sharded.abstract_state)
        if progress["data"] != task.data_fingerprint:
            checkpoints.close()
            raise InputError(
                f"{task.name}: the training rows are no longer those that steps 1 to {progress['step']} saw; "
                f"put them back, take another name (name=...), or delete {task.folder} to begin the stage anew"
            )
        _say(f"{task.name}: going on after step {progress['step']} of {task.batches.num_steps}")
    return _Session(task, mesh, peers, sharded.call, checkpoints, progress).run(state)


def evaluate_batches(
    objective: Objective, batches: StepBatches, *, complete: Callable, mesh: jax.sharding.Mesh
) -> Callable[[Any], dict[str, float]]:
    """An evaluation over all of `batches`, compiled once: params -> metrics, sums over counts of all rows."""
    jitted = jax.jit(make_eval_step(objective), out_shardings=replicated(mesh))
    eval_step = ShapePrograms(jitted, name="held out", what="the evaluation")

    def evaluate(params: Any) -> dict[str, float]:
        parts: list[Totals] = []
        steps = range(1, batches.num_steps + 1)
        for step in tqdm(steps, "held out", leave=False, unit="batch", mininterval=0.5):
            _, placed = placed_step_batch(batches, step, complete=complete, mesh=mesh)
            parts.append(jax.tree.map(np.float64, jax.device_get(eval_step(params, placed))))
        totals = functools.reduce(add_totals, parts)
        return {name: float(value) for name, value in finish(totals).items()}

    return evaluate


def placed_step_batch(
    batches: StepBatches,
    step: int,
    *,
    mesh: jax.sharding.Mesh,
    complete: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda batch: batch,
) -> tuple[Mapping[str, np.ndarray], dict[str, jax.Array]]:
    """A step's batch, made and sent to the devices: every process makes the rows of its own devices.

    Args:
      batches: the batches.
      step: which one, counted from 1.
      mesh: the device mesh.
      complete: adds to the host batch what the objective needs beside the rows.

    Returns:
      The host arrays, those by rows with this process's rows; and the device's, without HOST_ARRAYS.
    """
    num_rows = batches.shape(step).num_rows
    batch = complete(batches.batch(step, local_rows(mesh, num_rows)))
    for_device = {name: array for name, array in batch.items() if name not in HOST_ARRAYS}
    return batch, place_batch(for_device, mesh, num_rows=num_rows)


class _Session:
    """One sitting at a stage: from where the state stands to the last step, or to an interruption."""

    def __init__(
        self,
        task: StageTask,
        mesh: jax.sharding.Mesh,
        peers: Peers,
        train_step: jax.stages.Wrapped,
        checkpoints: Checkpoints,
        progress: dict[str, Any],
    ):
        self._task, self._mesh, self._peers = task, mesh, peers
        self._train_step, self._checkpoints = train_step, checkpoints
        self._start, self._num_tokens = progress["step"], progress["num_tokens"]
        self._earlier_seconds, self._began = progress["seconds"], time.perf_counter()
        self._log = MetricsLog(task.folder, after_step=self._start, trackers=task.trackers, writes=peers.is_first)
        self._last_step = self._start
        self._sessions = SessionLog(
            task.folder,
            facts=task.facts,
            after_step=self._start,
            num_steps=task.batches.num_steps,
            writes=peers.is_first,
        )
        self._bar: ProgressBar | None = None
        self._programs: dict[tuple[int, ...], Program] = {}
        self._compilation: dict[str, Any] = {"train_steps": []}

    def run(self, state: TrainState) -> StageResult:
        task, num_steps = self._task, self._task.batches.num_steps
        if self._start >= num_steps:
            _say(f"{task.name}: all {num_steps} steps are done already")
        try:
            with count_compilations() as count:
                state, wait_share = self._train(state)
            steps = [record for record in self._log.records() if "loss" in record]
            evaluations = [record for record in self._log.records() if "eval/loss" in record]
        except BaseException as error:
            self._sessions.end(_how_ended(error), after_step=self._last_step)
            raise
        finally:
            self._close()  # whatever happened, the checkpoint being written is waited for
        self._sessions.end("done", after_step=self._last_step)
        return StageResult(
            params=state.params,
            first_metrics=steps[0],
            metrics=steps[-1],
            eval_metrics=evaluations[-1] if evaluations else {},
            num_tokens=self._num_tokens,
            seconds=self._seconds(),
            data_wait_share=wait_share,
            compilation={
                "programs": count.num_programs,
                "from_cache": count.num_from_cache,
                "seconds": round(count.seconds, 3),
            }
            | self._compilation,
        )

    def _train(self, state: TrainState) -> tuple[TrainState, float]:
        """Steps to the last one: the state there, and the share of the time spent waiting for data."""
        task, num_steps, options = self._task, self._task.batches.num_steps, self._task.options
        evaluated = {record["step"] for record in self._log.records() if "eval/loss" in record}
        if self._start not in evaluated and self._is_due(self._start, options.eval_every):
            self._evaluate(state, self._start)
        if self._start < num_steps:
            _say(f"{task.name}: {num_steps} steps of {_shapes_text(task.batches)}")
        self._compile_steps(state)
        self._bar = ProgressBar(task.name, total_steps=num_steps, done_steps=self._start)
        began, waited = time.perf_counter(), 0.0
        with _stop_requests() as stop, prefetch(self._placed_batches) as ready:
            for step, num_tokens, batch in ready:
                step_waited, waited = ready.waited_seconds - waited, ready.waited_seconds
                train_step = self._programs[batch["tokens"].shape].call
                step_began = time.perf_counter()
                state, metrics = train_step(state, batch)
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}  # waits for the step
                seconds = time.perf_counter() - step_began
                self._record(step, values, num_tokens=num_tokens, seconds=seconds, waited_seconds=step_waited)
                # Saved first: an evaluation that fails, or is cut off, must not cost the step.
                if self._is_due(step, options.save_every):
                    self._save(state, step)
                asked_to_stop = self._who_is_asked_to_stop(stop)
                if not asked_to_stop and self._is_due(step, options.eval_every):
                    self._evaluate(state, step)
                    asked_to_stop = self._who_is_asked_to_stop(stop)
                if asked_to_stop:
                    self._stop(state, step, asked=asked_to_stop)
            return state, ready.waited_seconds / max(time.perf_counter() - began, 1e-9)

    def _who_is_asked_to_stop(self, stop: _Stop) -> list[int]:
        """The processes that have got a signal. All are told at the same step, so that they save and stop together."""
        flags = self._peers.gather("asked to stop?", stop.requested)
        return [index for index, flag in enumerate(flags) if flag]

    def _stop(self, state: TrainState, step: int, *, asked: list[int]) -> None:
        self._save(state, step)
        self._checkpoints.wait_until_saved()
        self._peers.wait("saved")  # none may leave while another still needs it for that
        who = f", as {' and '.join(map(self._peers.name, asked))} was asked to" if self._peers.count > 1 else ""
        _say(f"{self._task.name}: stopped and saved after step {step}{who}; the same command goes on from there")
        raise KeyboardInterrupt

    def _is_due(self, step: int, every: int | None) -> bool:
        """Whether something is done after this step that is done at the start, at the end and every so many steps."""
        return step in (0, self._task.batches.num_steps) or (every is not None and step % every == 0)

    def _save(self, state: TrainState, step: int) -> None:
        counts = {"num_tokens": self._num_tokens, "seconds": self._seconds(), "data": self._task.data_fingerprint}
        self._checkpoints.save(state, step=step, progress=counts)

    def _placed_batches(self) -> Iterator[tuple[int, int, dict[str, jax.Array]]]:
        for step in range(self._start + 1, self._task.batches.num_steps + 1):
            batch, placed = placed_step_batch(self._task.batches, step, complete=self._task.complete, mesh=self._mesh)
            yield step, int(np.sum(batch["num_tokens"])), placed

    def _compile_steps(self, state: TrainState) -> None:
        """The train step for every shape that is still to come, so that nothing is compiled between two steps."""
        batches, first_steps = self._task.batches, dict[StepShape, int]()
        for step in range(self._start + 1, batches.num_steps + 1):
            first_steps.setdefault(batches.shape(step), step)
        for number, step in enumerate(first_steps.values(), start=1):
            _, batch = placed_step_batch(batches, step, complete=self._task.complete, mesh=self._mesh)
            shape = batch["tokens"].shape
            self._programs[shape] = compile_ahead(self._train_step, state, batch)
            self._report_program(
                self._programs[shape],
                shape,
                state_bytes=bytes_per_device(state),
                activations=kept_activations(self._task.objective, state.params, batch, self._mesh),
                first_step=step,
                place=f" (shape {number} of {len(first_steps)})" if len(first_steps) > 1 else "",
            )

    def _report_program(
        self,
        program: Program,
        shape: tuple[int, ...],
        *,
        state_bytes: int,
        activations: int,
        first_step: int,
        place: str,
    ) -> None:
        name, memory = self._task.name, program.memory
        text = made_text("the train step", shape, program) + place
        entry = {"shape": list(shape), "step": first_step, "seconds": round(program.seconds, 3)}
        entry |= {"from_cache": program.from_cache}
        if memory is None:
            text += "; this backend does not say what memory it needs, nor whether the state is updated in place"
        else:
            planned = {"state": state_bytes, "batch": memory.arguments - state_bytes, "temporaries": memory.temporaries}
            at_most = "at most " if self._mesh.shape["tensor"] > 1 else ""  # tensor splits some of them
            text += (
                f"; a device: state {bytes_text(state_bytes)}, batch {bytes_text(planned['batch'])}, "
                f"activations kept {at_most}{bytes_text(activations)}, with gradients and scratch "
                f"{bytes_text(memory.temporaries)}"
            )
            entry["bytes_per_device"] = planned | {"activations": activations, "updated_in_place": memory.in_place}
        self._compilation["train_steps"].append(entry)
        _say(f"{name}: {text}")
        if memory is not None and memory.in_place < state_bytes:
            _say(
                f"warning: {name}: the train step updates {bytes_text(memory.in_place)} of the state's "
                f"{bytes_text(state_bytes)} in place; {state_bytes - memory.in_place:,} bytes a device are copied at "
                "every step"
            )

    def _record(
        self, step: int, values: dict[str, float], *, num_tokens: int, seconds: float, waited_seconds: float
    ) -> None:
        task = self._task
        self._num_tokens += num_tokens
        self._last_step = step
        rate, wait_share = num_tokens / seconds, waited_seconds / (waited_seconds + seconds)
        assert self._bar is not None
        self._bar.advance(loss=values["loss"], tokens_per_second=rate, data_wait_share=wait_share)
        if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
            raise FloatingPointError(
                f"{task.name}: loss {values['loss']} and gradient norm {values['grad_norm']} at step {step}; the "
                f"newest checkpoint is of step {self._checkpoints.latest_step() or 0}; a lower learning rate or "
                "float32, under another name (name=...), are the first things to try"
            )
        if step == 1 and task.check_first_step is not None:
            task.check_first_step(values)
        if step in (1, task.batches.num_steps) or step % task.options.log_every == 0:
            record = {"step": step, "epoch": round(step / task.batches.num_steps_per_epoch, 6)} | values
            record |= {"num_tokens": self._num_tokens, "tokens_per_second": rate, "step_seconds": seconds}
            # Of the time that this step took with the wait for its batch before; not of evaluations and checkpoints.
            record["data_wait_share"] = round(wait_share, 5)
            self._log.write(record)

    def _evaluate(self, state: TrainState, step: int) -> None:
        if self._task.evaluate is None:
            return
        values = self._task.evaluate(state.params, step)
        self._log.write({"step": step} | {f"eval/{name}": value for name, value in values.items()})
        shown = {"loss": values["loss"]} | {n: v for n, v in values.items() if n in ("rewards/accuracies",)}
        text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        _say(f"{self._task.name}: step {step} of {self._task.batches.num_steps}, held out: {text}", bar=self._bar)

    def _seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._began

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._checkpoints.close()
        self._log.close()


def _how_ended(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _shapes_text(batches: StepBatches) -> str:
    """`2 shapes, compiled before the first step: 1 x 4 x 512, 1 x 5 x 1024 tokens`; micro-batches x rows x row."""
    shapes = [" x ".join(map(str, shape[:3])) for shape in batches.shapes]
    if len(shapes) == 1:
        return f"1 shape, compiled once: {shapes[0]} tokens"
    return f"{len(shapes)} shapes, compiled before the first step: {', '.join(shapes)} tokens"


def _say(text: str, *, bar: ProgressBar | None = None) -> None:
    if bar is None:
        print(text, file=sys.stderr, flush=True)
    else:
        bar.say(text)


@dataclasses.dataclass
class _Stop:
    requested: bool = False


@contextlib.contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """Turns SIGINT and SIGTERM into a request that the loop honours after the step under way; a second one is final."""
    stop = _Stop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def request(number: int, frame: Any) -> None:
        stop.requested = True
        signal.signal(number, previous[signal.Signals(number)])
        _say("stopping after this step; once more to stop at once")

    try:
        previous = {number: signal.signal(number, request) for number in signals}
    except ValueError:  # signals can be handled in the main thread only
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
