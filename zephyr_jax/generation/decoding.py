"""One batch of prompts to one batch of responses in one compiled program: prefill, then a loop on the device.

Not here: forming batches of many prompts (responses.py), the choice of a token (sampling.py), text.

Dimensions: B batch, P padded prompt, T response, S cache slots (P + T), D model, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zephyr_jax.generation.sampling import Sampling, make_row_keys, sample_tokens
from zephyr_jax.model.mistral import (
    KVCache,
    ModelSettings,
    cast_params,
    head_matrix,
    hidden_states_cached,
    init_cache,
)
from zephyr_jax.recipe import ModelShape

# Longer prompts are prefilled piece by piece: attention scores are then [piece, S] and never [P, S].
PREFILL_PIECE_TOKENS = 512


class Decoded(NamedTuple):
    """Responses of a batch.

    Attributes:
      tokens_BT: token ids, 0 from the stop token on.
      num_tokens_B: tokens of each response, the stop token not counted.
      stopped_B: whether the response ended with a stop token, else it was cut by its length.
    """

    tokens_BT: jax.Array
    num_tokens_B: jax.Array
    stopped_B: jax.Array


class _Progress(NamedTuple):
    """What goes round the loop; `step` tokens are chosen, the last of which is not in the cache yet."""

    step: jax.Array
    last_token_B: jax.Array
    decoded: Decoded
    cache: KVCache


@functools.partial(
    jax.jit, static_argnames=("shape", "settings", "sampling", "stop_ids", "max_new_tokens", "result_sharding")
)
def generate_batch(
    params: dict[str, Any],
    prompts_BP: jax.Array,
    *,
    lengths_B: jax.Array,
    row_indexes_B: jax.Array,
    seed: jax.Array | int,
    shape: ModelShape,
    settings: ModelSettings,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    max_new_tokens: int,
    result_sharding: jax.sharding.Sharding | None = None,
) -> Decoded:
    """Answers a batch of prompts; ends early when every row has stopped.

    Args:
      params: the parameter tree, float32 or already cast.
      prompts_BP: prompts padded on the right; P is at most PREFILL_PIECE_TOKENS or a multiple of it.
      lengths_B: number of tokens of each prompt, 1 or more.
      row_indexes_B: each row's index in the whole input, for its random numbers.
      seed: of the random numbers.
      shape: the model's shape.
      settings: the compute dtype is taken; attention is always xla here, as queries and keys are not the same tokens.
      sampling: greedy, or temperature and top-p.
      stop_ids: ids that end a response; none: every response has full length.
      max_new_tokens: T, 1 or more.
      result_sharding: how the result lies; on several processes it must be on all of them to be read.

    Returns:
      The responses.
    """
    B, P = prompts_BP.shape
    settings = settings._replace(attention="xla", remat="none")
    # Cast here and not in the loop: each step then reads weights of the compute dtype only.
    params = cast_params(params, settings.compute_dtype)
    head_DV = head_matrix(params, shape)
    keys_B = make_row_keys(seed, row_indexes_B)
    forward = functools.partial(hidden_states_cached, params, shape=shape, settings=settings)

    def choose(hidden_BD: jax.Array, step: jax.Array | int) -> jax.Array:
        logits_BV = jnp.einsum("BD,DV->BV", hidden_BD, head_DV, preferred_element_type=jnp.float32)
        return sample_tokens(logits_BV, keys_B, step=step, sampling=sampling)

    def record(decoded: Decoded, token_B: jax.Array, step: jax.Array | int) -> Decoded:
        stopped_B = decoded.stopped_B | jnp.isin(token_B, jnp.asarray(stop_ids, jnp.int32))
        kept_B = jnp.where(stopped_B, 0, token_B)
        return Decoded(
            jax.lax.dynamic_update_slice_in_dim(decoded.tokens_BT, kept_B[:, None], step, axis=1),
            decoded.num_tokens_B + ~stopped_B,
            stopped_B,
        )

    def unfinished(progress: _Progress) -> jax.Array:
        return (progress.step < max_new_tokens) & ~jnp.all(progress.decoded.stopped_B)

    def advance(progress: _Progress) -> _Progress:
        # A row that has stopped goes on with the others and is not recorded.
        step, token_B1 = progress.step, progress.last_token_B[:, None]
        hidden_B1D, cache = forward(
            token_B1,
            progress.cache,
            positions_BT=(lengths_B + step - 1)[:, None],
            segments_BT=jnp.ones_like(token_B1),
            slot=P + step - 1,
        )
        token_B = choose(hidden_B1D[:, 0], step)
        return _Progress(step + 1, token_B, record(progress.decoded, token_B, step), cache)

    cache = init_cache(shape, B, length=P + max_new_tokens, dtype=settings.compute_dtype)
    last_hidden_BD, cache = _prefill(forward, prompts_BP, cache, lengths_B=lengths_B)
    nothing = Decoded(jnp.zeros((B, max_new_tokens), jnp.int32), jnp.zeros((B,), jnp.int32), jnp.zeros((B,), bool))
    token_B = choose(last_hidden_BD, 0)
    first = _Progress(jnp.ones((), jnp.int32), token_B, record(nothing, token_B, 0), cache)
    decoded = jax.lax.while_loop(unfinished, advance, first).decoded
    return decoded if result_sharding is None else jax.lax.with_sharding_constraint(decoded, result_sharding)


def _prefill(
    forward: Callable[..., tuple[jax.Array, KVCache]], prompts_BP: jax.Array, cache: KVCache, *, lengths_B: jax.Array
) -> tuple[jax.Array, KVCache]:
    """Writes the prompts into the cache; returns the hidden state [B, D] of each prompt's last token."""
    P = prompts_BP.shape[1]
    piece = min(P, PREFILL_PIECE_TOKENS)
    assert P % piece == 0, f"prompts padded to {P} tokens, not a multiple of {piece}"

    def add_piece(cache: KVCache, start: jax.Array) -> tuple[KVCache, jax.Array]:
        positions_T = start + jnp.arange(piece, dtype=jnp.int32)
        is_token_BT = positions_T < lengths_B[:, None]
        hidden_BTD, cache = forward(
            jax.lax.dynamic_slice_in_dim(prompts_BP, start, piece, axis=1),
            cache,
            positions_BT=jnp.broadcast_to(positions_T, is_token_BT.shape),
            segments_BT=is_token_BT.astype(jnp.int32),
            slot=start,
        )
        # The prompt's last token where it is in this piece, else any: the caller knows which piece it is in.
        last_B11 = jnp.clip(lengths_B - 1 - start, 0, piece - 1)[:, None, None]
        return cache, jnp.take_along_axis(hidden_BTD, last_B11, axis=1)[:, 0]

    cache, hidden_nBD = jax.lax.scan(add_piece, cache, jnp.arange(0, P, piece, dtype=jnp.int32))
    piece_of_last_1B1 = ((lengths_B - 1) // piece)[None, :, None]
    return jnp.take_along_axis(hidden_nBD, piece_of_last_1B1, axis=0)[0], cache
