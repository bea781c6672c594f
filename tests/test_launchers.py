"""A process's place in its job, from the environments of SLURM, Open MPI, Kubernetes and TPU pods, and from our own."""

from __future__ import annotations

import pytest

from zephyr_jax.launchers import Place, find_place, tasks_without_srun
from zephyr_jax.records import InputError

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "node1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SRUN = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "gpu[007-008],cpu1",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
MPIRUN = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
ORTE = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
POD = {"JOB_COMPLETION_INDEX": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def test_without_any_setting_a_process_is_alone():
    assert find_place({}) is None
    assert find_place(POD) is None  # an Indexed Job whose pods do not know of each other
    assert find_place(SRUN | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert find_place(EXPLICIT | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None


def test_explicit_settings():
    assert find_place(EXPLICIT) == Place("JAX_* variables", 3, 4, "node1:1234", None)
    assert find_place(EXPLICIT | {"JAX_LOCAL_DEVICE_IDS": "2,3"}).device_ids == (2, 3)


def test_srun_with_a_process_a_gpu():
    """Port 61440 + (4097 + 2) mod 4096 on the first node; the GPU of the process's number on its node."""
    assert find_place(SRUN) == Place("SLURM", 9, 16, "gpu007:61443", (1,))


def test_srun_with_a_process_a_node_takes_all_its_gpus():
    """JAX's own detection would take GPU 0 alone."""
    one_each = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
    place = find_place(SRUN | one_each | {"SLURM_LOCALID": "0"})
    assert (place.index, place.count, place.device_ids) == (1, 2, None)


def test_srun_with_unlike_nodes():
    """Three nodes with 8, 8 and 1 tasks: the last one's task has its node's GPUs for itself."""
    unlike = {"SLURM_STEP_TASKS_PER_NODE": "8(x2),1", "SLURM_NODEID": "2", "SLURM_LOCALID": "0"}
    assert find_place(SRUN | unlike).device_ids is None
    assert find_place(SRUN | unlike | {"SLURM_NODEID": "1"}).device_ids == (0,)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node001", "node001"), ("node001,host2", "node001"), ("node[001-015],host2", "node001"),
     ("node[001,007-015]", "node001"), ("rack[2-3]-n[1-4]", "rack2-n1")],
)  # fmt: skip
def test_the_first_of_slurm_s_nodes_is_where_all_meet(nodes, first):
    assert find_place(SRUN | {"SLURM_STEP_NODELIST": nodes}).address == f"{first}:61443"


def test_a_gpu_that_the_launcher_has_bound_to_the_process_is_its_only_one():
    """--gpus-per-task=1: each process sees one GPU, which is number 0 to it."""
    assert find_place(SRUN | {"CUDA_VISIBLE_DEVICES": "5"}).device_ids is None


def test_visible_gpus_are_shared_out_in_order():
    few = {"SLURM_STEP_TASKS_PER_NODE": "4(x4)", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    assert find_place(SRUN | few).device_ids == (2, 3)
    with pytest.raises(InputError, match="4 on this host share 6 GPUs .* do not share out evenly"):
        find_place(SRUN | few | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5"})


def test_a_batch_script_that_forgot_srun_is_alone_and_told_so():
    batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert find_place(batch) is None and tasks_without_srun(batch) == 16
    assert tasks_without_srun(SRUN) is None and tasks_without_srun({}) is None


def test_mpirun_of_open_mpi_4_says_where_it_runs():
    place = find_place(MPIRUN | ORTE)
    assert (place.launcher, place.index, place.count, place.device_ids) == ("Open MPI", 1, 4, (1,))
    host, _, port = place.address.partition(":")
    assert host == "10.96.0.1" and 61440 <= int(port) < 65536
    assert find_place(MPIRUN | ORTE | {"OMPI_COMM_WORLD_RANK": "2"}).address == place.address
    other_job = {"OMPI_MCA_orte_hnp_uri": ORTE["OMPI_MCA_orte_hnp_uri"].replace("1531", "1532")}
    assert find_place(MPIRUN | other_job).address != place.address


def test_mpirun_over_ipv6():
    uri = {"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[fe80::b9b:ac5d,2620:10d::2]:43370"}
    assert find_place(MPIRUN | uri).address.startswith("[fe80::b9b:ac5d]:")


def test_open_mpi_5_needs_to_be_told_where_process_0_is_unless_all_are_on_one_host():
    with pytest.raises(InputError, match="Open MPI do not say all .* wanted JAX_COORDINATOR_ADDRESS"):
        find_place(MPIRUN)
    assert find_place(MPIRUN | {"JAX_COORDINATOR_ADDRESS": "a:1"}).address == "a:1"
    alone = MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-a-7@1"}
    assert find_place(alone).address.startswith("127.0.0.1:")


def test_mpirun_within_a_slurm_job_counts():
    assert find_place(SRUN | MPIRUN | ORTE).launcher == "Open MPI"


def test_pods_of_a_job_set_need_their_number_and_the_place_of_the_first():
    said = {"JAX_COORDINATOR_ADDRESS": "zephyr-workers-0-0.zephyr:1234", "JAX_NUM_PROCESSES": "2"}
    assert find_place(POD | said) == Place("Kubernetes", 1, 2, "zephyr-workers-0-0.zephyr:1234", None)
    with pytest.raises(InputError, match="Kubernetes do not say all .* wanted JAX_NUM_PROCESSES in its environment"):
        find_place(POD | {"JAX_COORDINATOR_ADDRESS": "zephyr-workers-0-0.zephyr:1234"})


def test_a_tpu_pod_says_all():
    tpu = {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3"}
    assert find_place(tpu) == Place("TPU pod", 2, 4, "t0:8476", None)
    assert find_place({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}) is None


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"JAX_PROCESS_ID": "4"}, "got number 4 of 4, wanted one from 0 to 3"),
        ({"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID: got 'one', wanted a number"),
        ({"JAX_COORDINATOR_ADDRESS": "node1"}, "got 'node1', wanted HOST:PORT of process 0"),
        ({"JAX_LOCAL_DEVICE_IDS": "all"}, "JAX_LOCAL_DEVICE_IDS: got 'all', wanted numbers such as 0,1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, wanted):
    with pytest.raises(InputError, match=wanted):
        find_place(EXPLICIT | change)


def test_an_incomplete_setting_says_what_is_missing():
    with pytest.raises(InputError, match="wanted JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS in its environment"):
        find_place({"JAX_NUM_PROCESSES": "4"})
