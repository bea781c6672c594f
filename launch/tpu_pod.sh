#!/bin/bash
# Trains a recipe on all hosts of a Cloud TPU slice.
#
#   TPU_NAME=my-slice ZONE=us-east5-a launch/tpu_pod.sh --config configs/zephyr_7b/paper.yaml output_dir=gs://b/runs
#   launch/tpu_pod.sh --dry-run --config ...        # shows the command that would be sent
#
# Sends one command to every host of the slice by ssh: each runs one process that drives all chips of its host, and JAX
# finds the others by the slice's own metadata (docs.jax.dev, multi_process). REPOSITORY is where this repository lies
# on the hosts, with its environment made by: pip install -e '.[tpu]'.
# Recipes are for GPUs so far: no TPU has run one. Attention there is splash, for packed pairs blockwise.

set -euo pipefail

dry_run=""
if [ "${1:-}" = "--dry-run" ]; then
  dry_run=1
  shift
fi
if [ $# -eq 0 ]; then
  echo "tpu_pod.sh: got no arguments, wanted those of train: launch/tpu_pod.sh --config FILE [key=value ...]" >&2
  exit 2
fi
for name in TPU_NAME ZONE; do
  if [ -z "${!name:-}" ]; then
    echo "tpu_pod.sh: $name is not set; wanted the slice's name and zone, such as TPU_NAME=my-slice ZONE=us-east5-a" >&2
    exit 2
  fi
done

remote="cd $(printf '%q' "${REPOSITORY:-zephyr_jax}") && .venv/bin/python -m zephyr_jax.train"
for argument in "$@"; do
  remote+=" $(printf '%q' "$argument")"
done
command=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$remote")
if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
