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

from zephyr_jax.data.loader import StepBatches
from zephyr_jax.data.prefetch import prefetch
from zephyr_jax.model.mistral import PARTITION_RULES
from zephyr_jax.recipe import StageOptions
from zephyr_jax.records import InputError
from zephyr_jax.sharding import place_batch, replicated, tree_shardings
from zephyr_jax.training.checkpoint import Checkpoints
from zephyr_jax.training.metrics import MetricsLog, ProgressBar
from zephyr_jax.training.objectives import Objective, Totals
from zephyr_jax.training.optimizer import make_optimizer, make_schedule
from zephyr_jax.training.step import (
    Metrics,
    TrainState,
    add_totals,
    finish,
    init_state,
    make_eval_step,
    make_train_step,
)

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
      evaluate: (params, step) -> metrics without the `eval/` prefix; None: no evaluation data.
      check_first_step: called with the first step's metrics of a fresh run.
      trackers: see MetricsLog.
      data_fingerprint: hash of the training rows; a run does not go on with others.
    """

    name: str
    folder: Path
    options: StageOptions
    objective: Objective
    abstract_params: Any
    load_params: Callable[[Any], Any]
    batches: StepBatches
    complete: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
    evaluate: Callable[[Any, int], Mapping[str, float]] | None = None
    check_first_step: Callable[[Mapping[str, float]], None] | None = None
    trackers: Sequence[str] = ()
    data_fingerprint: str = ""


@dataclasses.dataclass
class StageResult:
    """What came of it: final parameters, first and last metrics lines, tokens read and seconds taken (all sittings)."""

    params: Any
    first_metrics: dict[str, Any]
    metrics: dict[str, Any]
    eval_metrics: dict[str, Any]
    num_tokens: int
    seconds: float
    data_wait_share: float


def run_stage(task: StageTask, *, mesh: jax.sharding.Mesh) -> StageResult:
    """Trains from the start or from the newest checkpoint to the last step.

    Args:
      task: what to do.
      mesh: the device mesh.

    Returns:
      The result; the last step is always saved.

    Raises:
      KeyboardInterrupt: SIGINT or SIGTERM came; the step under way was finished and saved.
      FloatingPointError: the loss is not finite.
    """
    schedule = make_schedule(task.options, task.batches.num_steps)
    optimizer = make_optimizer(task.options, schedule)
    abstract_state = jax.eval_shape(lambda params: init_state(params, optimizer), task.abstract_params)
    shardings = tree_shardings(abstract_state, PARTITION_RULES, mesh)
    train_step = jax.jit(
        make_train_step(task.objective, optimizer, schedule=schedule, max_grad_norm=task.options.max_grad_norm),
        in_shardings=(shardings, None),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    checkpoints = Checkpoints(task.folder / "checkpoints", keep=task.options.keep_checkpoints)
    if checkpoints.latest_step() is None:
        params = task.load_params(shardings.params)
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
        state = TrainState(step=jax.device_put(np.int32(0), shardings.step), params=params, opt_state=opt_state)
        progress: dict[str, Any] = {"step": 0, "num_tokens": 0, "seconds": 0.0}
    else:
        placed = jax.tree.map(
            lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), abstract_state, shardings
        )
        state, progress = checkpoints.restore(placed)
        if progress["data"] != task.data_fingerprint:
            checkpoints.close()
            raise InputError(
                f"{task.name}: the training rows are no longer those that steps 1 to {progress['step']} saw; "
                f"put them back, take another name (name=...), or delete {task.folder} to begin the stage anew"
            )
        _say(f"{task.name}: going on after step {progress['step']} of {task.batches.num_steps}")
    return _Session(task, mesh, train_step, checkpoints, progress).run(state)


def evaluate_batches(
    objective: Objective, batches: StepBatches, *, complete: Callable, mesh: jax.sharding.Mesh
) -> Callable[[Any], dict[str, float]]:
    """An evaluation over all of `batches`, compiled once: params -> metrics, sums over counts of all rows."""
    eval_step = jax.jit(make_eval_step(objective), out_shardings=replicated(mesh))

    def evaluate(params: Any) -> dict[str, float]:
        parts: list[Totals] = []
        for batch in tqdm(batches.batches(), "held out", batches.num_steps, leave=False, unit="batch", mininterval=0.5):
            placed = place_batch(_for_device(complete(batch)), mesh)
            parts.append(jax.tree.map(np.float64, jax.device_get(eval_step(params, placed))))
        totals = functools.reduce(add_totals, parts)
        return {name: float(value) for name, value in finish(totals).items()}

    return evaluate


class _Session:
    """One sitting at a stage: from where the state stands to the last step, or to an interruption."""

    def __init__(
        self,
        task: StageTask,
        mesh: jax.sharding.Mesh,
        train_step: jax.stages.Wrapped,
        checkpoints: Checkpoints,
        progress: dict[str, Any],
    ):
        self._task, self._mesh, self._train_step, self._checkpoints = task, mesh, train_step, checkpoints
        self._start, self._num_tokens = progress["step"], progress["num_tokens"]
        self._earlier_seconds, self._began = progress["seconds"], time.perf_counter()
        self._log = MetricsLog(task.folder, after_step=self._start, trackers=task.trackers)
        self._bar: ProgressBar | None = None
        self._compiled: dict[tuple[int, ...], Callable[..., tuple[TrainState, Metrics]]] = {}

    def run(self, state: TrainState) -> StageResult:
        task, num_steps = self._task, self._task.batches.num_steps
        if self._start >= num_steps:
            _say(f"{task.name}: all {num_steps} steps are done already")
        try:
            state, wait_share = self._train(state)
            steps = [record for record in self._log.records() if "loss" in record]
            evaluations = [record for record in self._log.records() if "eval/loss" in record]
        finally:
            self._close()  # whatever happened, the checkpoint being written is waited for
        return StageResult(
            params=state.params,
            first_metrics=steps[0],
            metrics=steps[-1],
            eval_metrics=evaluations[-1] if evaluations else {},
            num_tokens=self._num_tokens,
            seconds=self._seconds(),
            data_wait_share=wait_share,
        )

    def _train(self, state: TrainState) -> tuple[TrainState, float]:
        """Steps to the last one: the state there, and the share of the time spent waiting for data."""
        task, num_steps, options = self._task, self._task.batches.num_steps, self._task.options
        evaluated = {record["step"] for record in self._log.records() if "eval/loss" in record}
        if self._start not in evaluated and self._is_due(self._start, options.eval_every):
            self._evaluate(state, self._start)
        self._bar = ProgressBar(task.name, total_steps=num_steps, done_steps=self._start)
        began = time.perf_counter()
        with _stop_requests() as stop, prefetch(self._placed_batches) as ready:
            for step, num_tokens, batch in ready:
                compiled = self._compiled_for(state, batch)
                step_began = time.perf_counter()
                state, metrics = compiled(state, batch)
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}  # waits for the step
                self._record(step, values, num_tokens=num_tokens, seconds=time.perf_counter() - step_began)
                # Saved first: an evaluation that fails, or is cut off, must not cost the step.
                if self._is_due(step, options.save_every):
                    self._save(state, step)
                if not stop.requested and self._is_due(step, options.eval_every):
                    self._evaluate(state, step)
                if stop.requested:
                    self._save(state, step)
                    _say(f"{task.name}: stopped and saved after step {step}; the same command goes on from there")
                    raise KeyboardInterrupt
            return state, ready.waited_seconds / max(time.perf_counter() - began, 1e-9)

    def _is_due(self, step: int, every: int | None) -> bool:
        """Whether something is done after this step that is done at the start, at the end and every so many steps."""
        return step in (0, self._task.batches.num_steps) or (every is not None and step % every == 0)

    def _save(self, state: TrainState, step: int) -> None:
        counts = {"num_tokens": self._num_tokens, "seconds": self._seconds(), "data": self._task.data_fingerprint}
        self._checkpoints.save(state, step=step, progress=counts)

    def _placed_batches(self) -> Iterator[tuple[int, int, dict[str, jax.Array]]]:
        for step in range(self._start + 1, self._task.batches.num_steps + 1):
            batch = self._task.complete(self._task.batches.batch(step))
            yield step, int(np.sum(batch["num_tokens"])), place_batch(_for_device(batch), self._mesh)

    def _compiled_for(self, state: TrainState, batch: dict[str, jax.Array]) -> Callable:
        """The train step for this batch's shape, compiled ahead of time so that step times hold no compilation."""
        shape = batch["tokens"].shape
        if shape not in self._compiled:
            began = time.perf_counter()
            self._compiled[shape] = self._train_step.lower(state, batch).compile()
            rows = " x ".join(map(str, shape))
            seconds = time.perf_counter() - began
            _say(f"{self._task.name}: compiled the train step for {rows} tokens in {seconds:.1f} s", bar=self._bar)
        return self._compiled[shape]

    def _record(self, step: int, values: dict[str, float], *, num_tokens: int, seconds: float) -> None:
        task = self._task
        self._num_tokens += num_tokens
        rate = num_tokens / seconds
        assert self._bar is not None
        self._bar.advance(loss=values["loss"], tokens_per_second=rate)
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


def _for_device(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in batch.items() if name not in HOST_ARRAYS}


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
