"""`train` as a process of its own, asked to stop and killed outright: the same command ends with the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.pipeline.small_recipes import write_config

NUM_STEPS = 14
# The command, which gets a signal from itself when it makes the batch of a step: two or three steps before it takes it.
COMMAND = """
import os, sys
from zephyr_jax.data.loader import StepBatches
from zephyr_jax.train import main

number, at_step, make_batch = int(sys.argv[1]), int(sys.argv[2]), StepBatches.batch

def batch(self, step, rows=None):
    if step == at_step:
        os.kill(os.getpid(), number)
    return make_batch(self, step, rows)

StepBatches.batch = batch
sys.exit(main(sys.argv[3:]))
"""


def _train(config: str, *, signal_number: int = 0, at_step: int = 0) -> subprocess.CompletedProcess[str]:
    """On one device, which is enough here and compiles several times faster than sixteen."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=16", "device_count=1")
    overrides = ["stages=[dsft]", f"dsft.max_steps={NUM_STEPS}", "dsft.save_every=2", "dsft.eval_every=4"]
    overrides += ["dsft.micro_batch_size=2", "samples={num_prompts: 0, num_exact: 0}"]
    return subprocess.run(
        [sys.executable, "-c", COMMAND, str(int(signal_number)), str(at_step), "--config", config, *overrides],
        env=os.environ | {"XLA_FLAGS": flags},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )


def _outcome(folder: Path) -> tuple[list[dict], bytes]:
    """All lines but for the times, and the final weights as they lie on disk."""
    stage = folder / "runs" / "whole" / "dsft"
    times = ("tokens_per_second", "step_seconds", "data_wait_share")
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if name not in times} for line in lines]
    return lines, (stage / "model" / "model.safetensors").read_bytes()


def _logged_steps(folder: Path) -> list[int]:
    lines = (folder / "runs" / "whole" / "dsft" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines if '"loss"' in line]


def test_killed_stopped_killed_and_then_ended_is_the_same_as_never_disturbed(tmp_path):
    """SIGTERM: what is done is saved, status not 0. SIGKILL: no goodbye. Then once more: all lines and bytes equal.

    The first kill comes before anything is saved: the run starts anew.
    """
    untouched, disturbed = tmp_path / "untouched", tmp_path / "disturbed"
    for folder in (untouched, disturbed):
        folder.mkdir()
    done = _train(write_config(untouched))
    assert done.returncode == 0, done.stderr

    config = write_config(disturbed)
    killed = _train(config, signal_number=signal.SIGKILL, at_step=1)
    assert killed.returncode == -signal.SIGKILL

    stopped = _train(config, signal_number=signal.SIGTERM, at_step=6)
    assert stopped.returncode == 130 and "going on after step" not in stopped.stderr, stopped.stderr
    assert "the same command goes on from there" in stopped.stderr and "Traceback" not in stopped.stderr
    steps = _logged_steps(disturbed)
    assert 1 <= len(steps) < NUM_STEPS
    saved = disturbed / "runs" / "whole" / "dsft" / "checkpoints"
    assert (saved / str(steps[-1])).is_dir()
    assert not (saved.parent / "summary.json").exists() and not (saved.parent / "model").exists()

    killed = _train(config, signal_number=signal.SIGKILL, at_step=12)
    assert killed.returncode == -signal.SIGKILL
    assert f"going on after step {steps[-1]} of {NUM_STEPS}" in killed.stderr
    assert steps[-1] < len(_logged_steps(disturbed)) < NUM_STEPS

    ended = _train(config)
    assert ended.returncode == 0, ended.stderr
    assert "going on after step" in ended.stderr
    assert _outcome(disturbed) == _outcome(untouched)
