"""How likely each of a few tokens is as the next one after a prompt: no sampling, one prefill a prompt.

Dimensions: B batch, P prompt tokens, C choices.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zephyr_jax import sharding
from zephyr_jax.generation.responses import padded_length
from zephyr_jax.model.decoder import DecoderParams, logits, prefill
from zephyr_jax.recipe import ModelShape


def iterate_choice_logprobs(
    params: DecoderParams,
    prompts: Sequence[np.ndarray],
    *,
    choice_ids: Sequence[int],
    shape: ModelShape,
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[dict[int, np.ndarray]]:
    """Log-probabilities of the choices after each prompt, prompts of similar length side by side.

    Args:
      params: from prepare_params.
      prompts: token ids, int [P_i], each of 1 or more.
      choice_ids: token ids of the choices.
      shape: the model's shape.
      batch_size: prompts read together; rounded up to a multiple of the mesh's row shards.
      mesh: the mesh that the parameters are sharded on; None: they lie on one device.

    Yields:
      Index in `prompts` -> float32 [C], natural logarithms over the whole vocabulary.
    """
    shards = 1 if mesh is None else sharding.num_row_shards(mesh)
    batch_size += -batch_size % shards
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        padded = padded_length(max(len(prompts[index]) for index in chosen))
        # Always full, so that a length is compiled once; rows that nobody asked for hold one token.
        prompts_BP, lengths_B = np.zeros((batch_size, padded), np.int32), np.ones((batch_size,), np.int32)
        for row, index in enumerate(chosen):
            prompts_BP[row, padded - len(prompts[index]) :] = prompts[index]
            lengths_B[row] = len(prompts[index])
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            logprobs_BC = _choice_logprobs(
                params,
                sharding.place_rows(prompts_BP, mesh),
                sharding.place_rows(lengths_B, mesh),
                jnp.asarray(choice_ids, jnp.int32),
                shape=shape,
                result_sharding=None if mesh is None else sharding.replicated(mesh),
            )
        found_BC = np.asarray(logprobs_BC)
        yield {index: found_BC[row] for row, index in enumerate(chosen)}


@functools.partial(jax.jit, static_argnames=("shape", "result_sharding"))
def _choice_logprobs(
    params: DecoderParams,
    prompts_BP: jax.Array,
    lengths_B: jax.Array,
    choice_ids_C: jax.Array,
    *,
    shape: ModelShape,
    result_sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    hidden_BD, _ = prefill(params, prompts_BP, lengths_B=lengths_B, shape=shape, length=1)
    logprobs_BC = jax.nn.log_softmax(logits(params, hidden_BD), axis=-1)[:, choice_ids_C]
    if result_sharding is not None:
        logprobs_BC = jax.lax.with_sharding_constraint(logprobs_BC, result_sharding)
    return logprobs_BC
