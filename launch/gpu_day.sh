#!/bin/bash
# Everything that one GPU can check, in one command and under nine minutes: attention kernels' numbers and times, SFT
# and dDPO steps of a 2.2 B Mistral shape with MFU and peak memory beside what `plan` predicted, the reference pass,
# decoding, TRL on the same pairs where it is there. Results: FOLDER/gpu_day.{json,md,log}, written after every part.
#
#   launch/gpu_day.sh FOLDER            # or FOLDER in $OUT; made for one H100, Python 3.12, jax 0.11.2 with CUDA 13
#   launch/gpu_day.sh --toy FOLDER      # toy sizes on a CPU
#   launch/gpu_day.sh --dry-run FOLDER  # shows what would run
#   launch/gpu_day.sh --wheels .whl     # on a machine with a network: the wheels that the other one lacks, 5 MB
#
# The GPU machine needs no network. What is asked of its Python: jax and its CUDA plugin, flax, optax, orbax-checkpoint,
# chex, einops, filelock, huggingface_hub, jinja2, ml_dtypes, numpy, pyarrow, safetensors, tokenizers, tqdm; for TRL's
# side torch, transformers, accelerate. What such a machine commonly lacks is in the folder that `--wheels` makes:
# pydantic and ruamel.yaml (recipes), trl and datasets with what they need. A folder .whl beside this repository's
# README is installed for the run alone, into a temporary folder; WHEELS names another one. ZEPHYR_PYTHON: another
# Python than python3.

set -euo pipefail

here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${ZEPHYR_PYTHON:-python3}
wheels=${WHEELS:-.whl}

if [ "${1:-}" = "--wheels" ]; then
  folder=${2:-.whl}
  target=(--no-deps --only-binary=:all: --python-version 3.12 --implementation cp)
  for platform in manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
    target+=(--platform "$platform")
  done
  "$python" -m pip download "${target[@]}" --dest "$folder" \
    pydantic==2.14.4 pydantic_core==2.50.5 annotated_types==0.8.0 typing_inspection==0.4.5 ruamel.yaml==0.19.1 \
    trl==1.16.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19
  du -sh "$folder"
  exit 0
fi

options=()
dry_run=""
while [ $# -gt 0 ]; do
  case "$1" in
    --toy) options+=(--toy) ;;
    --dry-run) dry_run=1 ;;
    -*)
      echo "gpu_day.sh: got $1, wanted [--toy] [--dry-run] FOLDER, or --wheels [FOLDER]" >&2
      exit 2
      ;;
    *) OUT=$1 ;;
  esac
  shift
done
if [ -z "${OUT:-}" ]; then
  echo "gpu_day.sh: got no folder for the results, wanted launch/gpu_day.sh FOLDER, or its name in OUT" >&2
  exit 2
fi

case "$OUT" in
  /*) ;;
  *) OUT="$here/$OUT" ;;
esac

export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
# The rest of the card is for the CUDA context and cuDNN's workspace (launch/xla_flags.sh); no more of that file's
# settings, which are for many GPUs.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
command=("$python" -m benchmarks.gpu_day --out "$OUT" "${options[@]}")
if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
if compgen -G "$wheels/*.whl" > /dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"${command[@]}"
