"""A job of several processes from its start to its end: they meet, JAX is started in each, and they part in order.

Who is where comes from the environment (launchers.py). On CPU devices, as in the tests, collectives run over gloo.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping

import jax

from zephyr_jax import __version__
from zephyr_jax.hub import LOOPBACK, Hub
from zephyr_jax.launchers import Place, find_place, tasks_without_srun
from zephyr_jax.peers import ALONE, GRACE_SECONDS, Job, Peers, meet, quiet_unless_first
from zephyr_jax.records import InputError

# A process that JAX has not heard of for so long is dead to it. One that was killed is known before, by its connection;
# this is for a process that hangs as a whole (stopped, swapped out).
HEARTBEAT_SECONDS = 60


@contextlib.contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Peers]:
    """A block of work of all processes of this job; must stand before the first question for a device.

    In all but process 0 nothing is printed in it but errors. When one process ends early the others end too and say
    which one it was, see peers.py.

    Args:
      environment: where the launcher and the explicit settings are read.

    Yields:
      The processes.

    Raises:
      InputError: the settings are wrong, or some process did not come.
    """
    place = find_place(environment)
    if place is None:
        granted = tasks_without_srun(environment)
        if granted:
            print(f"SLURM has granted {granted} tasks, but this process was not started by srun: it goes on alone",
                  file=sys.stderr, flush=True)  # fmt: skip
        yield ALONE
        return
    print(f"process {place.index} of {place.count} ({place.launcher}): meeting the others at {place.address}",
          file=sys.stderr, flush=True)  # fmt: skip
    global _hub
    job, _hub = meet(index=place.index, count=place.count, address=place.address)
    try:
        _start_jax(job, place)
        with quiet_unless_first(job):
            yield job
            job.wait("the work done")
        jax.distributed.shutdown()
        job.close()
    except BaseException as error:
        job.fail(*_in_words(error), is_plain=isinstance(error, InputError | KeyboardInterrupt))
        raise
    if _hub is not None:
        _hub.close()


_hub: Hub | None = None  # of process 0


def leave(status: int) -> int:
    """The exit status, for the interpreter to end with; in one of several processes that failed, ends here instead.

    JAX would wait at the interpreter's end for processes that are gone, and then abort. Process 0 lets the others go
    first, which may be ending of the same cause.
    """
    if status and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if _hub is not None:
            _hub.close(seconds=GRACE_SECONDS + 2)
        os._exit(status)
    return status


def _in_words(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, InputError):
        return str(error), 2
    return f"{type(error).__name__}: {error}"[:2000], 1


def _start_jax(job: Job, place: Place) -> None:
    """Starts JAX's own service, at a port of its own on process 0's host; no device is asked for.

    Raises:
      InputError: the processes' versions differ.
    """
    job.check_same("versions", {"zephyr_jax": __version__, "jax": jax.__version__})
    host = place.address.rpartition(":")[0]
    is_local = host.strip("[]") in LOOPBACK
    port = job.first_says("JAX's port", _free_port)
    # It would catch SIGTERM for itself, and then nothing but the training loop could be stopped by it.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        f"{host}:{port}",
        job.count,
        job.index,
        local_device_ids=place.device_ids,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        coordinator_bind_address=f"{host}:{port}" if is_local else None,
    )


def _free_port() -> int:
    """A port that nobody listens at; JAX itself crashes where it gets one that is taken."""
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def describe_devices(peers: Peers) -> str:
    """The devices of every process, a line each; all processes must ask.

    Raises:
      InputError: some have more than others.
    """
    devices = jax.local_devices()
    peers.check_same("devices a process", len(devices))
    ids = ", ".join(str(device.id) for device in devices)
    lines = peers.gather("devices", f"{len(devices)} of {jax.device_count()} devices, {devices[0].device_kind} {ids}")
    return "\n".join(f"{peers.name(index)}: {line}" for index, line in enumerate(lines))
