"""Checkpoints of a stage: Orbax, written in the background, with the position in the data.

Not here: when to save (loop.py) and Hugging Face folders (model/hf_folder.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from zephyr_jax.records import InputError
from zephyr_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints under one folder, the newest `keep` of them.

    Parameters and optimizer state are separate items, so that exporting a model reads only the first.
    """

    def __init__(self, folder: Path, *, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, *, step: int, progress: dict[str, Any]) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
          state: the state after `step` updates.
          step: number of updates done; the batches are a function of it, so it is the data position too.
          progress: counts that go on where they stood (JSON).
        """
        if step in self._manager.all_steps():
            return
        items = {
            "params": ocp.args.StandardSave(state.params),
            "opt_state": ocp.args.StandardSave(state.opt_state),
            "progress": ocp.args.JsonSave({"step": step} | progress),
        }
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, each leaf straight to its sharding, whatever mesh it was written on.

        Args:
          abstract_state: jax.ShapeDtypeStruct leaves with shardings.

        Returns:
          The state and the progress saved with it.
        """
        items = {
            "params": ocp.args.StandardRestore(abstract_state.params),
            "opt_state": ocp.args.StandardRestore(abstract_state.opt_state),
            "progress": ocp.args.JsonRestore(),
        }
        restored = self._manager.restore(self.latest_step(), args=ocp.args.Composite(**items))
        step = abstract_state.step
        count = jax.make_array_from_callback(
            (), step.sharding, lambda _: np.asarray(restored.progress["step"], step.dtype)
        )
        return TrainState(step=count, params=restored.params, opt_state=restored.opt_state), restored.progress

    def wait_until_saved(self) -> None:
        """Waits for what is being written, by all processes."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written, and writes no more."""
        self._manager.wait_until_finished()
        self._manager.close()


def saved_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints under a stage's `checkpoints` folder, in order; [] where there are none."""
    if not folder.is_dir():
        return []
    with ocp.CheckpointManager(folder.absolute()) as manager:
        return sorted(manager.all_steps())


def load_params(folder: Path, *, step: int | None, abstract_params: Any) -> tuple[Any, int]:
    """The parameters of one checkpoint, without its optimizer state.

    Args:
      folder: a stage's `checkpoints` folder.
      step: which one; None: the newest.
      abstract_params: jax.ShapeDtypeStruct leaves with shardings.

    Returns:
      The parameters and the step they are of.

    Raises:
      InputError: there is no such checkpoint.
    """
    steps = saved_steps(folder)
    if not steps:
        raise InputError(f"{folder}: holds no checkpoint; wanted the checkpoints folder of a stage that has saved one")
    if step is not None and step not in steps:
        raise InputError(f"{folder}: no checkpoint of step {step}; there are steps {', '.join(map(str, steps))}")
    chosen = steps[-1] if step is None else step
    with ocp.CheckpointManager(folder.absolute()) as manager:
        restored = manager.restore(chosen, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params)))
    return restored.params, chosen
