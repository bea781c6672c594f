# shellcheck shell=bash
# Environment for training on GPUs: each setting with its reason and its source. To be sourced before Python starts:
#
#   . launch/xla_flags.sh
#
# What you have set yourself stays as it is. `plan` should be run under the same settings, since they change programs.
# Not measured here yet: no GPU has been at hand. XLA ends a process that is given a flag it does not know; a test
# (tests/launch/) holds these against the installed jax.
# Sources: [T] JAX-Toolbox, docs/GPU_performance.md; [X] openxla.org/xla/effort_levels; [J] docs.jax.dev,
# gpu_performance_tips and gpu_memory_allocation.

# The share of the card that JAX takes at its start: 0.75 by default. The rest is for the CUDA context, NCCL's buffers
# and cuDNN's workspace; 0.9 is what [T] sets, and what fits Zephyr-7B's larger steps. [T] [J]
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"

# Collectives run beside the arithmetic: the scheduler starts a gather before it is needed and ends it as late as
# possible. Compiled for 16 x A100 by `plan`, it leaves Zephyr-7B's steps their messages and costs under 0.1 GB of peak.
# [T] [J]
zephyr_flags="--xla_gpu_enable_latency_hiding_scheduler=true"

# Small gathers and scatters become one until so many bytes, at least the weights of one layer: links are at their best
# with large messages. A layer of Mistral-7B: 218 million weights x 2 bytes (bfloat16) = 436 MB. By `plan` its dDPO step
# gathers the same 28.4 GB in 80 messages instead of 400, its dSFT step 227.5 GB in 640 instead of 3200. [T] [J]
zephyr_flags="$zephyr_flags --xla_gpu_all_gather_combine_threshold_bytes=536870912"
zephyr_flags="$zephyr_flags --xla_gpu_reduce_scatter_combine_threshold_bytes=536870912"

for zephyr_flag in $zephyr_flags; do
  case " ${XLA_FLAGS:-} " in
    *" ${zephyr_flag%%=*}="*) ;; # yours
    *) export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }$zephyr_flag" ;;
  esac
done
unset zephyr_flag zephyr_flags

# One queue of work for the GPU, so that collectives start in the order that the scheduler chose: Ampere and Hopper
# overlap better with it, Blackwell (compute capability 10 and up) is slower. [T]
if [ -z "${CUDA_DEVICE_MAX_CONNECTIONS:-}" ] && command -v nvidia-smi > /dev/null; then
  zephyr_capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1) || zephyr_capability=""
  case "$zephyr_capability" in
    8.* | 9.*) export CUDA_DEVICE_MAX_CONNECTIONS=1 ;;
  esac
  unset zephyr_capability
fi

echo "xla_flags: XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION" \
  "CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-(not set)} XLA_FLAGS=$XLA_FLAGS" >&2

# Left alone, and why:
#   --xla_gpu_enable_pipelined_all_gather, _reduce_scatter: the next layer's gather falls into this one's turn of the
#     loop. Nobody has measured them here; they take 3.4 GB more in the dSFT step, and `plan` can no longer tell how
#     often its loop over micro-batches runs. To be tried on the machine. [T]
#   JAX_OPTIMIZATION_LEVEL=O1, with which [T] begins, sets those and turns loops twice at once. With attention:
#     blockwise the compilers of jax 0.10.2 and 0.11.2 end under it with a failed check of their own ("Call graph must
#     have been flattened"). [T] [X]
#   --xla_gpu_all_reduce_combine_threshold_bytes: under FSDP only scalars and norms are all-reduced; with mesh.data > 1
#     the gradients are, and the value must be found by trying (16 MB and up, by doubling). [T]
#   --xla_gpu_enable_command_buffer: CUDA graphs are on by default; on Blackwell try FUSION,CUSTOM_CALL. [T]
#   NCCL_NVLS_ENABLE: NCCL uses NVLink SHARP where it can; it takes memory beside JAX's share. [T]
#   NCCL_LAUNCH_MODE=GROUP: against hangs of one process that drives several GPUs; here each has its own. [T]
