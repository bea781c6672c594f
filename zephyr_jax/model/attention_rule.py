"""Which implementation of attention rows get: what each one can do, and the table that `auto` reads.

Names and sizes alone decide, so that a wrong wish is refused before anything is loaded. Not here: the implementations
(attention.py), saying what was chosen (stages/start.py).
"""

from __future__ import annotations

import jax

from zephyr_jax.model.blockwise_attention import MAX_BLOCK_TOKENS
from zephyr_jax.recipe import RowLayout
from zephyr_jax.records import InputError

OLD_GPU = "gpu<8.0"  # compute capability before Ampere's

# What `auto` takes, by platform and layout of the rows: the first that can run. Only the CPU's line was measured
# (benchmarks/LOG.md); the others are provisional, and this is the place to change once a device has been measured.
AUTO: dict[str, dict[RowLayout, tuple[str, ...]]] = {
    "cpu": {"plain": ("blockwise",), "dialogues": ("blockwise",), "pairs": ("blockwise",), "forks": ("blockwise",)},
    "gpu": {
        "plain": ("cudnn", "pallas", "blockwise"),
        "dialogues": ("pallas", "blockwise"),
        "pairs": ("pallas", "blockwise"),
        "forks": ("blockwise",),
    },
    OLD_GPU: {"plain": ("blockwise",), "dialogues": ("blockwise",), "pairs": ("blockwise",), "forks": ("blockwise",)},
    "tpu": {
        "plain": ("splash", "blockwise"),
        "dialogues": ("splash", "blockwise"),
        "pairs": ("blockwise",),
        "forks": ("blockwise",),
    },
}
MEASURED = ("cpu",)

IMPLEMENTATIONS = ("xla", "blockwise", "pallas", "cudnn", "splash")


def platform_here() -> str:
    """What JAX runs on here, as the table has it: cpu, gpu, OLD_GPU or tpu; another backend by JAX's name for it."""
    backend = jax.default_backend()
    if backend not in ("gpu", "cuda"):
        return backend
    capability = str(jax.devices()[0].compute_capability)  # "8.0"; "gfx942" on AMD's
    major = capability.split(".")[0]
    return "rocm" if not major.isdecimal() else "gpu" if int(major) >= 8 else OLD_GPU


def choose_attention(asked: str, num_tokens: int, *, platform: str, dtype: str, head_dim: int, rows: RowLayout) -> str:
    """The implementation that rows of `num_tokens` get; the caller logs it.

    Of what `auto` takes, only that on CPUs was measured.

    Args:
      asked: auto, or one of IMPLEMENTATIONS by name.
      num_tokens: row length T.
      platform: platform_here(), or what the program is for.
      dtype: compute dtype.
      head_dim: H.
      rows: how rows are laid out.

    Returns:
      One of IMPLEMENTATIONS.

    Raises:
      InputError: a named implementation cannot run there, or not for such rows.
    """

    def refusal(name: str) -> str | None:
        return _refusal(name, num_tokens, platform=platform, dtype=dtype, head_dim=head_dim, rows=rows)

    if asked == "auto":
        able = next(name for name in AUTO.get(platform, AUTO["cpu"])[rows] if refusal(name) is None)
        # one block: there is nothing to skip
        return "xla" if able == "blockwise" and num_tokens <= MAX_BLOCK_TOKENS else able
    reason = refusal(asked)
    if reason is not None:
        *others, last = ["auto", *(name for name in IMPLEMENTATIONS if refusal(name) is None)]
        raise InputError(f"model.attention: {asked} {reason}; use {', '.join(others)} or {last}")
    return asked


def _refusal(name: str, num_tokens: int, *, platform: str, dtype: str, head_dim: int, rows: RowLayout) -> str | None:
    """Why an implementation cannot do it, as the end of a sentence; None where it can."""
    if name in ("pallas", "cudnn") and platform != "gpu":
        return f"needs an NVIDIA GPU of compute capability 8.0 or more, this is {platform}"
    if name == "pallas":
        if head_dim not in (64, 128):
            return f"takes head sizes of 64 and 128, got {head_dim}"
        if rows == "forks":
            return "takes branches of one level, not prompts that share their beginning"
    if name == "splash":
        if platform != "tpu":
            return f"needs a TPU, this is {platform}"
        if rows in ("pairs", "forks"):
            return "takes plain rows and packed dialogues, not pairs that share their prompt (ddpo.layout: packed)"
    if name == "cudnn":
        if dtype != "bfloat16":
            return f"computes in bfloat16, got compute_dtype {dtype}"
        if head_dim > 128 or head_dim % 8:
            return f"takes head sizes of 8, 16, ... 128, got {head_dim}"
        if rows != "plain" and num_tokens % 2:
            return f"takes rows of an even number of tokens where they are packed, got {num_tokens}"
    return None
