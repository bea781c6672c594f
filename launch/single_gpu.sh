#!/bin/bash
# Trains a recipe on one GPU, all weights or adapters, after a look at whether it can fit.
#
#   launch/single_gpu.sh full --config configs/smollm2.yaml
#   launch/single_gpu.sh --dry-run full --config configs/smollm2.yaml model.compute_dtype=bfloat16
#
# Training all weights takes 16 bytes a parameter beside activations: float32 parameters, two moments, gradients.
#
#   card     of it for JAX (0.9)   parameters at most, before activations
#   24 GB    22 GB                 1.3 billion
#   40 GB    36 GB                 2.2 billion
#   80 GB    72 GB                 4.5 billion
#   141 GB   127 GB                7.9 billion (Zephyr-7B: 116 GB of state; short rows, micro-batches of 1)
#
# So Zephyr-7B whole is for launch/slurm.sbatch. ZEPHYR_PYTHON names another Python than .venv/bin/python.

set -euo pipefail

usage="wanted: launch/single_gpu.sh [--dry-run] full|lora --config FILE [key=value ...]"
dry_run=""
if [ "${1:-}" = "--dry-run" ]; then
  dry_run=1
  shift
fi
mode=${1:-}
case "$mode" in
  full) shift ;;
  lora)
    echo "single_gpu.sh: got lora, but training adapters is not built yet; take full, on a smaller model" >&2
    exit 2
    ;;
  *)
    echo "single_gpu.sh: got '$mode'; $usage" >&2
    exit 2
    ;;
esac
if [ $# -eq 0 ]; then
  echo "single_gpu.sh: got no recipe; $usage" >&2
  exit 2
fi
if ! command -v nvidia-smi > /dev/null; then
  echo "single_gpu.sh: no nvidia-smi on the PATH, so no NVIDIA GPU here; on a CPU: python -m zephyr_jax.train $*" >&2
  exit 2
fi

export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
# The rest is for the CUDA context and cuDNN's workspace (launch/xla_flags.sh, whose other settings are for many GPUs).
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
python=${ZEPHYR_PYTHON:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python}

# Exact and without a GPU: what parameters, moments and gradients of this recipe take on one device.
card_mib=$(nvidia-smi --id="$CUDA_VISIBLE_DEVICES" --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)
planned=()
for argument in "$@"; do
  case "$argument" in
    --new-run | --dry-run) ;; # of train alone
    *) planned+=("$argument") ;;
  esac
done
plan=$("$python" -m zephyr_jax.plan --devices 1 --json "${planned[@]}")
"$python" - "$card_mib" "$XLA_PYTHON_CLIENT_MEM_FRACTION" "$plan" << 'PYTHON'
import json
import sys

card_bytes, fraction, plan = int(sys.argv[1]) * 2**20, float(sys.argv[2]), json.loads(sys.argv[3])
parts = plan["bytes_per_device"]
needed = parts["peak"] or sum(parts[part] for part in ("parameters", "optimizer_state", "gradients"))
what = "the compiled step's peak" if parts["peak"] else "with moments and gradients, activations not counted"
there = card_bytes * fraction
text = f"{plan['num_parameters'] / 1e9:.2f} billion parameters take {needed / 1e9:.1f} GB ({what})"
text += f"; JAX has {there / 1e9:.1f} GB of this card's {card_bytes / 1e9:.1f}"
if needed >= there:
    sys.exit(f"single_gpu.sh: {text}: take a smaller model, or more GPUs (launch/slurm.sbatch)")
print(f"single_gpu: {text}, so {(there - needed) / 1e9:.1f} GB are left", file=sys.stderr)
PYTHON

command=("$python" -m zephyr_jax.train "$@")
if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
