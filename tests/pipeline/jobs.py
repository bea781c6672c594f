"""`train` in several processes on this machine, each with fake devices of its own, met over loopback. Not a test."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.small_jobs import free_address

# The command, in which one process gets a signal from itself when it makes the batch of a step.
COMMAND = """
import os, sys, time
from zephyr_jax.data.loader import StepBatches
from zephyr_jax.train import main

number, victim, at_step, make_batch = *map(int, sys.argv[1:4]), StepBatches.batch

def batch(self, step, rows=None):
    if number and step == at_step and int(os.environ["JAX_PROCESS_ID"]) == victim and self.num_steps > 1:
        print("signalled at", time.time(), file=sys.__stderr__, flush=True)
        os.kill(os.getpid(), number)
    return make_batch(self, step, rows)

StepBatches.batch = batch
sys.exit(main(sys.argv[4:]))
"""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How one process ended: its exit status, what it said, and when (seconds since the epoch)."""

    status: int
    out: str
    err: str
    at: float


def run_job(
    *arguments: str,
    count: int,
    num_devices: int,
    signal_number: int = 0,
    victim: int = 0,
    at_step: int = 0,
    only: Mapping[int, Sequence[str]] | None = None,
) -> list[Ended]:
    """Runs `train` with these arguments in several processes, and waits for all of them.

    Args:
      *arguments: of the command.
      count: processes.
      num_devices: fake devices of each.
      signal_number: sent to one of the processes; 0: none is.
      victim: which one.
      at_step: when it makes the batch of this step, which is one to three steps before it takes it.
      only: further arguments of single processes.

    Returns:
      How each of them ended, by their numbers.
    """
    flags = os.environ["XLA_FLAGS"].replace("device_count=16", f"device_count={num_devices}")
    settings = {"JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": str(count), "XLA_FLAGS": flags}
    command = [sys.executable, "-c", COMMAND, str(int(signal_number)), str(victim), str(at_step), *arguments]
    processes = [
        subprocess.Popen(
            [*command, *(only or {}).get(index, ())],
            env=os.environ | settings | {"JAX_PROCESS_ID": str(index)},
            cwd=Path(__file__).resolve().parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]

    def wait_for(process: subprocess.Popen[str]) -> Ended:
        out, err = process.communicate(timeout=300)
        return Ended(process.returncode, out, err, time.time())

    try:
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(wait_for, processes))
    finally:
        for process in processes:
            process.kill()
