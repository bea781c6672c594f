#!/bin/bash
# Trains a recipe on all GPUs of this host, one process per GPU (why: slurm.sbatch); of several hosts, if each runs it.
#
#   launch/all_gpus.sh --config configs/zephyr_7b/paper.yaml
#   NUM_HOSTS=2 HOST_INDEX=0 JAX_COORDINATOR_ADDRESS=host0:61440 launch/all_gpus.sh --config ...    # and on the other:
#   NUM_HOSTS=2 HOST_INDEX=1 JAX_COORDINATOR_ADDRESS=host0:61440 launch/all_gpus.sh --config ...
#   launch/all_gpus.sh --dry-run --config ...     # shows every process with its place in the job
#
# In a Kubernetes Indexed Job (launch/gke.yaml) HOST_INDEX is the pod's own index. GPUS: how many of this host's are
# taken, by default all; ZEPHYR_PYTHON: another Python than .venv/bin/python.
# SIGTERM is passed on: every process ends its step, saves and stops. One that fails ends the others.

set -euo pipefail

dry_run=""
if [ "${1:-}" = "--dry-run" ]; then
  dry_run=1
  shift
fi
if [ $# -eq 0 ]; then
  echo "all_gpus.sh: got no arguments, wanted those of train: launch/all_gpus.sh --config FILE [key=value ...]" >&2
  exit 2
fi
num_hosts=${NUM_HOSTS:-1}
host_index=${HOST_INDEX:-${JOB_COMPLETION_INDEX:-0}}
for given in "NUM_HOSTS=$num_hosts" "HOST_INDEX=$host_index" "GPUS=${GPUS:-1}"; do
  case "${given#*=}" in
    "" | *[!0-9]*)
      echo "all_gpus.sh: got $given, wanted a whole number" >&2
      exit 2
      ;;
  esac
done
if [ "$num_hosts" -gt 1 ] && [ -z "${JAX_COORDINATOR_ADDRESS:-}" ]; then
  echo "all_gpus.sh: NUM_HOSTS is $num_hosts; wanted JAX_COORDINATOR_ADDRESS=HOST:PORT of the first host, on all" >&2
  exit 2
fi
if [ "$host_index" -ge "$num_hosts" ]; then
  echo "all_gpus.sh: got HOST_INDEX $host_index of NUM_HOSTS $num_hosts, wanted one from 0 to $((num_hosts - 1))" >&2
  exit 2
fi
if [ -z "${GPUS:-}" ]; then
  if ! command -v nvidia-smi > /dev/null; then
    echo "all_gpus.sh: no nvidia-smi on the PATH to count the GPUs with; wanted GPUS=8, or how many there are" >&2
    exit 2
  fi
  GPUS=$(nvidia-smi --list-gpus | wc -l)
fi
if [ "$GPUS" -eq 0 ] || [ "$num_hosts" -eq 0 ]; then
  echo "all_gpus.sh: got GPUS $GPUS and NUM_HOSTS $num_hosts, wanted at least one of each" >&2
  exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/xla_flags.sh
. "$root/launch/xla_flags.sh"
python=${ZEPHYR_PYTHON:-$root/.venv/bin/python}
export JAX_NUM_PROCESSES=$((num_hosts * GPUS))
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-127.0.0.1:61440}

processes=()
stop() {
  for process in "${processes[@]}"; do
    kill -TERM "$process" 2> /dev/null || true
  done
}
trap stop TERM INT

for ((gpu = 0; gpu < GPUS; gpu++)); do
  place=(JAX_PROCESS_ID=$((host_index * GPUS + gpu)) JAX_LOCAL_DEVICE_IDS="$gpu")
  if [ -n "$dry_run" ]; then
    printf '%q ' env "${place[@]}" JAX_NUM_PROCESSES="$JAX_NUM_PROCESSES" \
      JAX_COORDINATOR_ADDRESS="$JAX_COORDINATOR_ADDRESS" "$python" -m zephyr_jax.train "$@"
    echo
    continue
  fi
  env "${place[@]}" "$python" -m zephyr_jax.train "$@" &
  processes+=("$!")
done

# A signal ends `wait` early: then it is asked again, until no process is left.
status=0
while [ -n "$(jobs -pr)" ]; do
  wait -n && one=0 || one=$?
  if [ "$one" -ne 0 ] && [ "$status" -eq 0 ]; then
    status=$one
    stop
  fi
done
# Those that ended between two looks.
for process in "${processes[@]}"; do
  wait "$process" && one=0 || one=$?
  if [ "$one" -ne 0 ] && [ "$one" -ne 127 ] && [ "$status" -eq 0 ]; then
    status=$one
  fi
done
exit "$status"
