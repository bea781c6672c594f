"""How likely continuations are after their contexts: sums of log-probs, many to a program, each context computed once.

Requests that share a context, or its beginning, lie in one row with it (data/continuation_rows.py); every row of a call
has one shape, so that a call compiles one program. Contexts that are too long lose tokens from their start, as in
lm-evaluation-harness.
Not here: texts (text_model.py), tasks and their scores.

    scores = loglikelihoods(params, [([1, 5, 7], [9, 2]), ([1, 5, 7], [4])], shape=shape, settings=settings, mesh=mesh)
    scores[0].log_prob, scores[0].is_greedy, scores[0].num_tokens

Dimensions: B rows, N targets a row.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from zephyr_jax.data.continuation_rows import ForkRows, fork_requests, lay_out_rows
from zephyr_jax.model.mistral import ModelSettings, Params
from zephyr_jax.model.visibility import MAX_BRANCHES
from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import InputError
from zephyr_jax.sharding import num_row_shards, place_batch, replicated
from zephyr_jax.training.objectives import score_targets

# Places of a step. On a CPU the activations of about 1 000 tokens still fit in its caches (benchmarks/LOG.md); on
# other devices not measured.
CPU_TOKENS_PER_STEP = 1024
TOKENS_PER_STEP = 16384

Request = tuple[Sequence[int], Sequence[int]]


class LogLikelihood(NamedTuple):
    """Of one continuation.

    Attributes:
      log_prob: sum of the natural logarithms of its tokens' probabilities.
      is_greedy: whether each of its tokens is the most probable one.
      num_tokens: how many they are.
    """

    log_prob: float
    is_greedy: bool
    num_tokens: int


def loglikelihoods(
    params: Params, requests: Sequence[Request], *, name: str | None = "log-likelihoods", **options: Any
) -> list[LogLikelihood]:
    """Scores continuations after their contexts.

    Args:
      params, requests: see iterate_loglikelihoods.
      name: of the progress bar; None: no bar.
      **options: see iterate_loglikelihoods.

    Returns:
      One result per request, in their order.

    Raises:
      InputError: see iterate_loglikelihoods.
    """
    results: list[LogLikelihood | None] = [None] * len(requests)
    with tqdm(desc=name, total=len(requests), unit="request", mininterval=0.5, disable=name is None) as bar:
        for found in iterate_loglikelihoods(params, requests, name=name, **options):
            for index, result in found.items():
                results[index] = result
            bar.update(len(found))
    return [result for result in results if result is not None]


def iterate_loglikelihoods(
    params: Params,
    requests: Sequence[Request],
    *,
    shape: ModelShape,
    settings: ModelSettings,
    mesh: jax.sharding.Mesh,
    max_length: int | None = None,
    tokens_per_step: int | None = None,
    name: str | None = None,
) -> Iterator[dict[int, LogLikelihood]]:
    """Scores continuations after their contexts, a step after another.

    Args:
      params: the parameter tree, float32 or cast, sharded on the mesh.
      requests: (context, continuation), token ids, 1 or more each. What the model reads is both without the
        continuation's last token.
      shape: the model's shape.
      settings: compute dtype and attention.
      mesh: the device mesh; rows are split over its axes data and fsdp.
      max_length: most tokens that the model reads of a request; None: its max_position_embeddings. A longer context
        loses tokens from its start.
      tokens_per_step: places in the rows of a step, over all devices; None: by the platform.
      name: begins the line on stderr that says how many contexts lost tokens; None: it is not said.

    Yields:
      The results of a step, index in `requests` -> result; rows come in an order of their own.

    Raises:
      InputError: a context or continuation is empty, has ids that the model does not have, or the continuation alone
        is longer than `max_length`.
    """
    max_length = max_length or shape.max_position_embeddings
    for index, request in enumerate(requests):
        _check(index, request, vocab_size=shape.vocab_size, max_length=max_length)
    if not requests:
        return
    found = fork_requests(requests, max_length=max_length, max_branches=MAX_BRANCHES)
    if name and found.num_truncated:
        print(
            f"{name}: {found.num_truncated} of {len(requests)} contexts lost tokens from their start, to keep what is "
            f"read within {max_length} tokens",
            file=sys.stderr,
        )
    if tokens_per_step is None:
        tokens_per_step = CPU_TOKENS_PER_STEP if mesh.devices.flat[0].platform == "cpu" else TOKENS_PER_STEP
    rows = lay_out_rows(found.forks, tokens_per_step=tokens_per_step, row_multiple=num_row_shards(mesh))
    settings = settings._replace(rows="forks" if rows.has_shared_beginnings else "pairs")
    waiting: tuple[list[tuple[int, ...]], Mapping[str, np.ndarray], tuple[jax.Array, jax.Array]] | None = None
    for step in range(rows.num_steps + 1):
        started = None
        if step < rows.num_steps:
            started = _start(params, rows, step, shape=shape, settings=settings, mesh=mesh)
        # One step is under way while the one before it is read.
        if waiting is not None:
            yield _finish(*waiting)
        waiting = started


def _check(index: int, request: Request, *, vocab_size: int, max_length: int) -> None:
    for kind, ids in zip(("context", "continuation"), request, strict=True):
        if not len(ids):
            raise InputError(f"request {index}: its {kind} has no tokens; wanted 1 or more")
        low, high = min(ids), max(ids)
        if low < 0 or high >= vocab_size:
            raise InputError(
                f"request {index}: its {kind} has token id {high if low >= 0 else low}, but the model has ids 0 to "
                f"{vocab_size - 1}; is the tokenizer another model's?"
            )
    if len(request[1]) > max_length:
        raise InputError(
            f"request {index}: its continuation has {len(request[1])} tokens, more than the {max_length} that the "
            "model reads; wanted a shorter one, or a larger max_length"
        )


def _start(params: Params, rows: ForkRows, step: int, *, shape, settings, mesh):
    """Sends a step to the devices: its owners, its host arrays, and the results to come."""
    batch, owners = rows.step(step)
    sent = {name: array[None] for name, array in batch.items() if name not in ("target_slots", "num_tokens")}
    with jax.set_mesh(mesh):
        placed = place_batch(sent, mesh)
        score = _score(params, placed, shape=shape, settings=settings, result_sharding=replicated(mesh))
    return owners, batch, score


def _finish(
    owners: Sequence[tuple[int, ...]],
    batch: Mapping[str, np.ndarray],
    scores: tuple[jax.Array, jax.Array],
) -> dict[int, LogLikelihood]:
    """Sums a step's tokens by continuation, in float64: index of a request -> its result."""
    log_probs_BN, is_top_BN = jax.device_get(scores)
    real_BN = batch["target_weights"] > 0
    slots = batch["target_slots"][real_BN]
    counts = np.bincount(slots, minlength=len(owners))
    sums = np.bincount(slots, weights=log_probs_BN[real_BN].astype(np.float64), minlength=len(owners))
    num_top = np.bincount(slots, weights=is_top_BN[real_BN], minlength=len(owners))
    results: dict[int, LogLikelihood] = {}
    for slot, requests in enumerate(owners):
        result = LogLikelihood(float(sums[slot]), bool(num_top[slot] == counts[slot]), int(counts[slot]))
        results |= dict.fromkeys(requests, result)
    return results


@functools.partial(jax.jit, static_argnames=("shape", "settings", "result_sharding"))
def _score(
    params: Params,
    batch: Mapping[str, jax.Array],
    *,
    shape: ModelShape,
    settings: ModelSettings,
    result_sharding: jax.sharding.Sharding,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of every target, and whether it is the most probable token: float32 [B, N] each, on every device."""
    first = {name: array[0] for name, array in batch.items()}
    scores = score_targets(params, first, shape=shape, settings=settings)
    return jax.lax.with_sharding_constraint((scores.log_probs, scores.is_top), result_sharding)
