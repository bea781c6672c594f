"""Which process of how many this one is, going by the environment: explicit settings, SLURM, Open MPI, Kubernetes, TPU.

    variable                      from
    JAX_COORDINATOR_ADDRESS       host:port of process 0, where the others meet it; JAX's own name for it
    JAX_NUM_PROCESSES             how many there are
    JAX_PROCESS_ID                this one's number, from 0
    JAX_LOCAL_DEVICE_IDS          which of its host's GPUs it takes: 0,1; JAX's own name for it

What is not given so is taken from the launcher: all of it from SLURM (srun), Open MPI (mpirun) and a TPU pod, the
number from a Kubernetes Indexed Job (a JobSet's pods too). JAX has a detection of its own and it is not used: under
SLURM it gives every process one GPU, also where one process has a whole node; it does not know Open MPI 5; in
Kubernetes it needs a package and the right to read the cluster's state.
Nothing is connected here, and no device is asked for.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping

from zephyr_jax.records import InputError

Environment = Mapping[str, str]

TPU_PORT = 8476
# Above the ports that Linux gives to connections of its own accord (32768 to 60999).
FIRST_PORT, NUM_PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True)
class Place:
    """A process's place in its job.

    Attributes:
      launcher: who started it, for people.
      index: its number, from 0.
      count: how many processes there are, 2 or more.
      address: host:port of process 0.
      device_ids: the GPUs of its host that it takes; None: all that it sees.
    """

    launcher: str
    index: int
    count: int
    address: str
    device_ids: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class _Launcher:
    """What a launcher says; None where it says nothing of it."""

    name: str
    index: int | None = None
    count: int | None = None
    find_address: Callable[[], str | None] = lambda: None
    local_index: int | None = None
    num_local: int | None = None


def find_place(environment: Environment) -> Place | None:
    """The place of this process, or None where it is the only one.

    Raises:
      InputError: the settings are incomplete, or no such thing as they should be.
    """
    launcher = _find_launcher(environment)
    count = _number(environment, "JAX_NUM_PROCESSES")
    index = _number(environment, "JAX_PROCESS_ID")
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    # A Kubernetes job does not tell its pods how many they are: only explicit settings make several of them one job.
    if count is None and launcher.count is None and address is None and index is None:
        return None
    count = launcher.count if count is None else count
    if count == 1:
        return None
    index = launcher.index if index is None else index
    if address is None and count is not None and index is not None:
        address = launcher.find_address()
    settings = {"JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": index, "JAX_COORDINATOR_ADDRESS": address}
    missing = [name for name, value in settings.items() if value is None]
    if missing:
        raise InputError(
            f"processes: {launcher.name} do not say all of where this process stands in its job; wanted "
            f"{' and '.join(missing)} in its environment"
        )
    assert count is not None and index is not None and address is not None
    if not 0 <= index < count:
        raise InputError(f"processes: got number {index} of {count}, wanted one from 0 to {count - 1}")
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:\[\]]+):\d+", address):
        raise InputError(f"JAX_COORDINATOR_ADDRESS: got {address!r}, wanted HOST:PORT of process 0")
    return Place(launcher.name, index, count, address, _device_ids(environment, launcher))


def tasks_without_srun(environment: Environment) -> int | None:
    """How many tasks a SLURM job was granted, in its batch script itself, where nothing has been started on them."""
    granted = _number(environment, "SLURM_NTASKS") or 1
    return granted if granted > 1 and "SLURM_STEP_NODELIST" not in environment else None


def _find_launcher(environment: Environment) -> _Launcher:
    """The innermost first: mpirun may run in a SLURM job, and everything in a container of Kubernetes."""
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return _open_mpi(environment)
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        return _slurm(environment)
    if "TPU_WORKER_ID" in environment and "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        hosts = environment["TPU_WORKER_HOSTNAMES"].split(",")
        return _Launcher("TPU pod", _number(environment, "TPU_WORKER_ID"), len(hosts), lambda: f"{hosts[0]}:{TPU_PORT}")
    if "JOB_COMPLETION_INDEX" in environment:
        return _Launcher("Kubernetes", _number(environment, "JOB_COMPLETION_INDEX"))
    return _Launcher("JAX_* variables")


def _slurm(environment: Environment) -> _Launcher:
    nodes = environment["SLURM_STEP_NODELIST"]

    def address() -> str:
        job, step = (_number(environment, name) or 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        return f"{_first_node(nodes)}:{FIRST_PORT + (job + step) % NUM_PORTS}"

    local_index = _number(environment, "SLURM_LOCALID")
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE"))
    return _Launcher(
        "SLURM",
        _number(environment, "SLURM_PROCID"),
        _number(environment, "SLURM_STEP_NUM_TASKS") or _number(environment, "SLURM_NTASKS"),
        address,
        local_index,
        None if tasks is None else _tasks_of_node(tasks, _number(environment, "SLURM_NODEID") or 0),
    )


def _first_node(nodes: str) -> str:
    """The first of a SLURM list of nodes.

    >>> _first_node("gpu[007-010,12],cpu1"), _first_node("a1,a2"), _first_node("rack[2-3]-n[1-4]")
    ('gpu007', 'a1', 'rack2-n1')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group())


def _tasks_of_node(tasks: str, node: int) -> int:
    """How many tasks a node has, by SLURM's short form of the list of all.

    >>> [_tasks_of_node("8(x2),4", node) for node in range(3)]
    [8, 8, 4]
    """
    for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", tasks):
        node -= int(times or 1)
        if node < 0:
            return int(count)
    raise InputError(f"SLURM_STEP_TASKS_PER_NODE: got {tasks!r}, which has too few nodes")


def _open_mpi(environment: Environment) -> _Launcher:
    count = _number(environment, "OMPI_COMM_WORLD_SIZE")
    num_local = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE")

    def address() -> str | None:
        # Open MPI 4 has mpirun's own address here, which is process 0's host where mpirun runs on the first one.
        uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
        there = re.search(r"tcp://([^,:;]+)|tcp6://\[([^,\]]+)", uri)
        job = zlib.crc32(environment.get("PMIX_NAMESPACE", uri).encode()) % NUM_PORTS
        if num_local == count:
            return f"127.0.0.1:{FIRST_PORT + job}"
        if there is None:
            return None
        host = there.group(1) or f"[{there.group(2)}]"
        return f"{host}:{FIRST_PORT + job}"

    return _Launcher(
        "Open MPI",
        _number(environment, "OMPI_COMM_WORLD_RANK"),
        count,
        address,
        _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK"),
        num_local,
    )


def _device_ids(environment: Environment, launcher: _Launcher) -> tuple[int, ...] | None:
    """GPUs for this process: those of its own, else all where it is alone on its host, else its share or its one."""
    given = environment.get("JAX_LOCAL_DEVICE_IDS")
    if given:
        if not re.fullmatch(r"\d+(,\d+)*", given):
            raise InputError(f"JAX_LOCAL_DEVICE_IDS: got {given!r}, wanted numbers such as 0,1")
        return tuple(map(int, given.split(",")))
    local_index, num_local = launcher.local_index, launcher.num_local
    if local_index is None or num_local in (None, 1):
        return None
    visible = [entry for entry in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry]
    if len(visible) == 1:  # the launcher has given each process one of its own
        return None
    if visible and len(visible) % num_local:
        raise InputError(
            f"processes: {num_local} on this host share {len(visible)} GPUs (CUDA_VISIBLE_DEVICES), which do not share "
            "out evenly; start another number of them, or give each its own JAX_LOCAL_DEVICE_IDS"
        )
    each = len(visible) // num_local if visible else 1
    return tuple(range(local_index * each, (local_index + 1) * each))


def _number(environment: Environment, name: str) -> int | None:
    text = environment.get(name)
    if text is None or text == "":
        return None
    if not re.fullmatch(r"\d+", text):
        raise InputError(f"{name}: got {text!r}, wanted a number")
    return int(text)
