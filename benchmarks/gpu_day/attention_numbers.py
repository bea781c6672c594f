"""Attention on its own: every implementation's numbers against float32 on the host, and its time by row length.

The host's side is written out in numpy, forward and backward, from the mask that visibility.py gives: it shares nothing
with the kernels but who sees whom.

Dimensions: B rows, T query, S key, N heads, K key/value heads, H head size.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_day.sizes import Sizes
from zephyr_jax.model.attention import attention
from zephyr_jax.model.attention_rule import IMPLEMENTATIONS, choose_attention
from zephyr_jax.model.visibility import Coordinates, visible
from zephyr_jax.recipe import RowLayout
from zephyr_jax.records import InputError

Record = Callable[[dict[str, Any]], None]
# ||ours - host|| / ||host||. bfloat16 rounds weights and results to 8 bits; float32 may go through TF32's 11.
TOLERANCE = {"bfloat16": 2e-2, "float32": 2e-3}
NUM_TIMED_CALLS = 10


def coordinates(layout: RowLayout, num_rows: int, num_tokens: int) -> Coordinates:
    """Rows of a layout, int32 [B, T] numpy arrays: parts of unequal length and padding at the end.

    Args:
      layout: plain, dialogues or pairs.
      num_rows: B, all alike.
      num_tokens: T.
    """
    used = num_tokens - num_tokens // 16
    positions, segments, branches = (np.zeros(num_tokens, np.int32) for _ in range(3))
    if layout == "plain":
        positions[:used], segments[:used] = np.arange(used), 1
    else:
        ends = [0, *(int(used * share) for share in (0.15, 0.5, 0.6, 1.0))]
        for segment, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True), start=1):
            positions[start:end], segments[start:end] = np.arange(end - start), segment
            if layout == "pairs":  # prompt, chosen, rejected, each a third or so; rejected begins where the prompt ends
                chosen, rejected = start + (end - start) // 3, start + 3 * (end - start) // 5
                branches[chosen:rejected], branches[rejected:end] = 1, 2
                positions[rejected:end] = np.arange(end - rejected) + chosen - start
    return Coordinates(*(np.tile(part, (num_rows, 1)) for part in (positions, segments, branches)))


def host_attention(
    q_TNH: np.ndarray, k_SKH: np.ndarray, v_SKH: np.ndarray, dout_TNH: np.ndarray, mask_TS: np.ndarray
) -> dict[str, np.ndarray]:
    """Attention of one row and the gradients of sum(out * dout), float32: out, dq [T, N, H]; dk, dv [S, K, H]."""
    num_heads, num_kv_heads, scale = q_TNH.shape[1], k_SKH.shape[1], q_TNH.shape[2] ** -0.5
    result = {"out": np.zeros_like(q_TNH), "dq": np.zeros_like(q_TNH)}
    result |= {"dk": np.zeros_like(k_SKH), "dv": np.zeros_like(v_SKH)}
    sees_T1 = mask_TS.any(axis=1, keepdims=True)
    for head in range(num_heads):
        kv = head // (num_heads // num_kv_heads)
        q_TH, k_SH, v_SH, dout_TH = q_TNH[:, head], k_SKH[:, kv], v_SKH[:, kv], dout_TNH[:, head]
        scores_TS = np.where(mask_TS, scale * (q_TH @ k_SH.T), -np.inf)
        largest_T1 = np.max(scores_TS, axis=1, keepdims=True, where=mask_TS, initial=-1e30)
        odds_TS = np.exp(scores_TS - largest_T1)
        weights_TS = np.where(sees_T1, odds_TS / np.maximum(odds_TS.sum(axis=1, keepdims=True), 1e-30), 0)
        dweights_TS = dout_TH @ v_SH.T
        dscores_TS = weights_TS * (dweights_TS - np.sum(dweights_TS * weights_TS, axis=1, keepdims=True))
        result["out"][:, head] = weights_TS @ v_SH
        result["dq"][:, head] = scale * (dscores_TS @ k_SH)
        result["dk"][:, kv] += scale * (dscores_TS.T @ q_TH)
        result["dv"][:, kv] += weights_TS.T @ dout_TH
    return result


def check_numbers(sizes: Sizes, record: Record) -> None:
    """Rows of every layout by every implementation that takes them; records the errors of all results."""
    window = sizes.checked_window
    cases: list[tuple[RowLayout, int | None, str]] = [
        ("pairs", window, "bfloat16"),
        ("dialogues", window, "bfloat16"),
        ("plain", window, "bfloat16"),
        ("plain", None, "bfloat16"),
        ("pairs", None, "bfloat16"),
        ("pairs", window, "float32"),
    ]
    for layout, case_window, dtype in cases:
        where = coordinates(layout, 1, sizes.checked_tokens)
        mask_TS = np.asarray(visible(where, where, window=case_window))[0]
        heads = _heads(sizes, 1, sizes.checked_tokens)
        heads[3] *= (where.segments > 0)[:, :, None, None]  # nobody reads what padding gives
        rounded = [np.asarray(jnp.asarray(part, dtype).astype(jnp.float32)) for part in heads]
        host = host_attention(*(part[0] for part in rounded), mask_TS)
        for implementation in IMPLEMENTATIONS:
            entry = {"layout": layout, "window": case_window, "dtype": dtype, "implementation": implementation}
            record(entry | _compare(implementation, layout, case_window, where, rounded, dtype, host))


def _heads(sizes: Sizes, num_rows: int, num_tokens: int) -> list[np.ndarray]:
    """q, k, v and the gradient of the result, float32 of standard deviation 1."""
    random = np.random.RandomState(7)
    counts = (sizes.num_heads, sizes.num_kv_heads, sizes.num_kv_heads, sizes.num_heads)
    return [random.standard_normal((num_rows, num_tokens, n, sizes.head_dim)).astype(np.float32) for n in counts]


def _refusal(implementation: str, num_tokens: int, *, dtype: str, head_dim: int, layout: RowLayout) -> str | None:
    try:
        choose_attention(
            implementation, num_tokens, platform=jax.default_backend(), dtype=dtype, head_dim=head_dim, rows=layout
        )
    except InputError as error:
        return str(error)
    return None


def _compare(implementation, layout, window, where, heads, dtype, host) -> dict[str, Any]:
    num_tokens, head_dim = heads[0].shape[1], heads[0].shape[3]
    refusal = _refusal(implementation, num_tokens, dtype=dtype, head_dim=head_dim, layout=layout)
    if refusal is not None:
        return {"refused": refusal}
    run = _program(implementation, layout, window)
    try:
        out, gradients = jax.device_get(run(_placed(where), *(jnp.asarray(part, dtype) for part in heads)))
    except Exception as error:  # one kernel that fails must not take the others with it
        return {"ok": False, "failed": f"{type(error).__name__}: {str(error)[:400]}"}
    real_T = where.segments[0] > 0
    ours = dict(zip(("out", "dq", "dk", "dv"), (out, *gradients), strict=True))
    errors = {}
    for name, value in ours.items():
        difference = value[0].astype(np.float32)[real_T] - host[name][real_T]
        errors[name] = float(np.linalg.norm(difference) / np.linalg.norm(host[name][real_T]))
    return {"errors": errors, "ok": all(error <= TOLERANCE[dtype] for error in errors.values())}  # a NaN is not <=


def _placed(where: Coordinates) -> Coordinates:
    return Coordinates(*map(jnp.asarray, where))


def _program(implementation: str, layout: RowLayout, window: int | None) -> Callable:
    """(coordinates, q, k, v, dout) -> (out, gradients of q, k, v), jitted.

    The coordinates are no constants of the program, or XLA would spend its time on computing their masks beforehand.
    """

    def run(where: Coordinates, q, k, v, dout):
        forward = functools.partial(
            attention,
            query=where,
            key=where,
            window=window,
            implementation=implementation,
            rows=layout,
        )
        out, backward = jax.vjp(forward, q, k, v)
        return out, backward(dout)

    return jax.jit(run)


def time_kernels(sizes: Sizes, record: Record, *, dtype: str = "bfloat16") -> None:
    """Milliseconds of forward and backward pass by row length and implementation, the trained length first."""
    layouts: tuple[RowLayout, ...] = ("pairs", "dialogues", "plain")
    for num_tokens in sizes.timed_lengths:
        for layout in layouts:
            for entry in _timed(sizes, layout, num_tokens, dtype):
                record({"layout": layout, "row_length": num_tokens, "dtype": dtype} | entry)


def _timed(sizes: Sizes, layout: RowLayout, num_tokens: int, dtype: str) -> Iterator[dict[str, Any]]:
    num_rows = max(1, sizes.timed_tokens // num_tokens)
    where = coordinates(layout, num_rows, num_tokens)
    heads = _heads(sizes, num_rows, num_tokens)
    arguments = (_placed(where), *(jnp.asarray(part, dtype) for part in heads))
    real = where.segments > 0
    num_visible = int(np.sum(where.positions.astype(np.int64) + 1, where=real))
    # 4 forward and 8 backward a visible key, head and dimension; what is recomputed or masked is no work
    flops = 12 * sizes.num_heads * sizes.head_dim * num_visible
    rule = {"platform": jax.default_backend(), "dtype": dtype, "head_dim": sizes.head_dim, "rows": layout}
    auto = choose_attention("auto", num_tokens, **rule)
    for implementation in IMPLEMENTATIONS:
        entry = {"implementation": implementation, "is_auto": implementation == auto, "rows": num_rows}
        refusal = _refusal(implementation, num_tokens, dtype=dtype, head_dim=sizes.head_dim, layout=layout)
        if refusal is not None:
            yield entry | {"refused": refusal}
            continue
        try:
            seconds, compile_seconds = _time(_program(implementation, layout, None), arguments)
        except Exception as error:  # out of memory, or a kernel that does not compile: the next one is tried
            yield entry | {"failed": f"{type(error).__name__}: {str(error)[:400]}"}
            continue
        yield entry | {
            "milliseconds": 1e3 * seconds,
            "visible_flops_per_second": flops / seconds,
            "compile_seconds": compile_seconds,
        }


def _time(run: Callable, arguments: tuple) -> tuple[float, float]:
    """Median seconds of a call, and of its compilation."""
    began = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    compile_seconds = time.perf_counter() - began
    seconds = []
    for _ in range(NUM_TIMED_CALLS):
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), compile_seconds
