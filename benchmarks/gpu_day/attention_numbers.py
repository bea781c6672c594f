"""Attention on its own: every implementation's numbers against float32 on the host, and its time by row length.

The host's side is written out in numpy, forward and backward, from the mask that visibility.py gives: it shares nothing
with the kernels but who sees whom.

Dimensions: B rows, T query, S key, N heads, K key/value heads, H head size.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_day.sizes import Sizes
from zephyr_jax.model.attention import attention
from zephyr_jax.model.attention_rule import IMPLEMENTATIONS, choose_attention, platform_here
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


class Case(NamedTuple):
    """One program: rows of a layout, [num_rows, num_tokens], through an implementation, forward and backward."""

    layout: RowLayout
    window: int | None
    dtype: str
    implementation: str
    num_rows: int
    num_tokens: int


def check_numbers(sizes: Sizes, record: Record) -> None:
    """Rows of every layout by every implementation that takes them; records the errors of all results."""
    window = sizes.checked_window
    wanted: tuple[tuple[RowLayout, int | None, str], ...] = (
        ("pairs", window, "bfloat16"),
        ("dialogues", window, "bfloat16"),
        ("plain", window, "bfloat16"),
        ("plain", None, "bfloat16"),
        ("pairs", None, "bfloat16"),
        ("pairs", window, "float32"),
    )
    cases = [Case(*case, name, 1, sizes.checked_tokens) for case in wanted for name in IMPLEMENTATIONS]
    host, hosts_case = {}, None
    for case, program in zip(cases, compile_cases(sizes, cases), strict=True):
        where = coordinates(case.layout, 1, case.num_tokens)
        heads = _heads(sizes, 1, case.num_tokens)
        heads[3] *= (where.segments > 0)[:, :, None, None]  # nobody reads what padding gives
        if hosts_case != case[:3]:
            hosts_case = case[:3]
            rounded = [np.asarray(jnp.asarray(part, case.dtype).astype(jnp.float32))[0] for part in heads]
            host = host_attention(*rounded, np.asarray(visible(where, where, window=case.window))[0])
        entry = {"layout": case.layout, "window": case.window, "dtype": case.dtype}
        record(entry | {"implementation": case.implementation} | _compare(program, case, where, heads, host))


def compile_cases(sizes: Sizes, cases: Sequence[Case]) -> list[jax.stages.Compiled | dict[str, Any]]:
    """Programs of the cases, several compiled at once; in the place of one that cannot be: why, for its entry."""

    def lower(case: Case) -> jax.stages.Lowered | dict[str, Any]:
        try:
            choose_attention(
                case.implementation,
                case.num_tokens,
                platform=platform_here(),
                dtype=case.dtype,
                head_dim=sizes.head_dim,
                rows=case.layout,
            )
            where = Coordinates(*(jax.ShapeDtypeStruct((case.num_rows, case.num_tokens), jnp.int32),) * 3)
            heads = _head_shapes(sizes, case.num_rows, case.num_tokens)
            return _program(case).lower(where, *(jax.ShapeDtypeStruct(shape, case.dtype) for shape in heads))
        except InputError as error:
            return {"refused": str(error)}
        except Exception as error:  # one kernel that fails must not take the others with it
            return _failure(error)

    def compiled(lowered: jax.stages.Lowered | dict[str, Any]) -> jax.stages.Compiled | dict[str, Any]:
        try:
            return lowered if isinstance(lowered, dict) else lowered.compile()
        except Exception as error:
            return _failure(error)

    lowered = [lower(case) for case in cases]
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(compiled, lowered))


def _failure(error: Exception) -> dict[str, Any]:
    return {"failed": f"{type(error).__name__}: {str(error)[:400]}"}


def _head_shapes(sizes: Sizes, num_rows: int, num_tokens: int) -> list[tuple[int, ...]]:
    """Of q, k, v and the gradient of the result."""
    counts = (sizes.num_heads, sizes.num_kv_heads, sizes.num_kv_heads, sizes.num_heads)
    return [(num_rows, num_tokens, count, sizes.head_dim) for count in counts]


def _heads(sizes: Sizes, num_rows: int, num_tokens: int) -> list[np.ndarray]:
    """q, k, v and the gradient of the result, float32 of standard deviation 1."""
    random = np.random.RandomState(7)
    return [random.standard_normal(shape).astype(np.float32) for shape in _head_shapes(sizes, num_rows, num_tokens)]


def _compare(program, case: Case, where: Coordinates, heads: list[np.ndarray], host) -> dict[str, Any]:
    """Errors of a program's results; `heads` as they are given to it, rounded to the case's dtype."""
    if isinstance(program, dict):
        return program | ({"ok": False} if "failed" in program else {})
    try:
        arguments = (jnp.asarray(part, case.dtype) for part in heads)
        out, gradients = jax.device_get(program(_placed(where), *arguments))
    except Exception as error:
        return _failure(error) | {"ok": False}
    real_T = where.segments[0] > 0
    ours = dict(zip(("out", "dq", "dk", "dv"), (out, *gradients), strict=True))
    errors = {}
    for name, value in ours.items():
        difference = value[0].astype(np.float32)[real_T] - host[name][real_T]
        errors[name] = float(np.linalg.norm(difference) / np.linalg.norm(host[name][real_T]))
    return {"errors": errors, "ok": all(error <= TOLERANCE[case.dtype] for error in errors.values())}  # a NaN is not <=


def _placed(where: Coordinates) -> Coordinates:
    return Coordinates(*map(jnp.asarray, where))


def _program(case: Case) -> jax.stages.Wrapped:
    """(coordinates, q, k, v, dout) -> (out, gradients of q, k, v), jitted.

    The coordinates are no constants of the program, or XLA would spend its time on computing their masks beforehand.
    """

    def run(where: Coordinates, q, k, v, dout):
        forward = functools.partial(
            attention,
            query=where,
            key=where,
            window=case.window,
            implementation=case.implementation,
            rows=case.layout,
        )
        out, backward = jax.vjp(forward, q, k, v)
        return out, backward(dout)

    return jax.jit(run)


def time_kernels(sizes: Sizes, record: Record, *, dtype: str = "bfloat16") -> None:
    """Milliseconds of forward and backward pass by row length and implementation, the trained length first.

    What an implementation finds out about rows before it begins is in its time; a model does that once for all layers.
    """
    layouts: tuple[RowLayout, ...] = ("pairs", "dialogues", "plain")
    for num_tokens in sizes.timed_lengths:
        num_rows = max(1, sizes.timed_tokens // num_tokens)
        cases = [
            Case(layout, None, dtype, name, num_rows, num_tokens) for layout in layouts for name in IMPLEMENTATIONS
        ]
        for case, program in zip(cases, compile_cases(sizes, cases), strict=True):
            record(_timed(sizes, case, program))


def _timed(sizes: Sizes, case: Case, program: jax.stages.Compiled | dict[str, Any]) -> dict[str, Any]:
    rule = {"platform": platform_here(), "dtype": case.dtype, "head_dim": sizes.head_dim, "rows": case.layout}
    is_auto = choose_attention("auto", case.num_tokens, **rule) == case.implementation
    entry = {"layout": case.layout, "row_length": case.num_tokens, "rows": case.num_rows, "dtype": case.dtype}
    entry |= {"implementation": case.implementation, "is_auto": is_auto}
    if isinstance(program, dict):
        return entry | program
    where = coordinates(case.layout, case.num_rows, case.num_tokens)
    heads = _heads(sizes, case.num_rows, case.num_tokens)
    arguments = (_placed(where), *(jnp.asarray(part, case.dtype) for part in heads))
    try:
        jax.block_until_ready(program(*arguments))
        seconds = []
        for _ in range(NUM_TIMED_CALLS):
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds.append(time.perf_counter() - began)
    except Exception as error:  # out of memory: the next one is tried
        return entry | _failure(error)
    num_visible = int(np.sum(where.positions.astype(np.int64) + 1, where=where.segments > 0))
    # 4 forward and 8 backward a visible key, head and dimension; what is recomputed or masked is no work
    flops = 12 * sizes.num_heads * sizes.head_dim * num_visible
    median = statistics.median(seconds)
    return entry | {"milliseconds": 1e3 * median, "visible_flops_per_second": flops / median}
