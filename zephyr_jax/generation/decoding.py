"""Rows decoded side by side on the device: prompts are admitted into rows, a loop runs until enough rows have ended.

Three compiled programs and their state. The host comes in only where rows end, never between two tokens. Not here:
which prompt goes where (responses.py), the choice of a token (sampling.py), the layers (model/decoder.py).

Dimensions: B rows, N admitted prompts, P padded prompt, T response, S ring slots, D model, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from zephyr_jax.generation.sampling import Sampling, make_row_keys, sample_tokens
from zephyr_jax.model.decoder import (
    DecoderParams,
    Ring,
    decode_step,
    init_ring,
    logits,
    prefill,
    put_rows,
    resize_ring,
    ring_length,
)
from zephyr_jax.recipe import ModelShape
from zephyr_jax.sharding import ROW_AXES


class Decoding(NamedTuple):
    """What is the same for all rows of a run.

    Attributes:
      shape: the model's shape.
      compute_dtype: of weights and activations.
      sampling: greedy, or temperature and top-p.
      stop_ids: ids that end a response; none: every response has full length.
      max_new_tokens: T, 1 or more.
    """

    shape: ModelShape
    compute_dtype: str
    sampling: Sampling
    stop_ids: tuple[int, ...]
    max_new_tokens: int


class Rows(NamedTuple):
    """Where each row stands.

    Attributes:
      token_B: the last token, which the ring does not have yet.
      position_B: its position.
      tokens_BT: the response so far, 0 behind it; a stop token is no part of it.
      num_tokens_B: its length.
      ended_B: whether nothing comes any more; an empty row has ended.
      stopped_B: whether it ended with a stop token.
      index_B: the row's index in the whole input, for its random numbers; uint32.
    """

    token_B: jax.Array
    position_B: jax.Array
    tokens_BT: jax.Array
    num_tokens_B: jax.Array
    ended_B: jax.Array
    stopped_B: jax.Array
    index_B: jax.Array


class State(NamedTuple):
    """Rows and the ring of their keys and values."""

    rows: Rows
    ring: Ring


class Responses(NamedTuple):
    """What the host reads: see Rows; on several processes each has all of it."""

    tokens_BT: jax.Array
    num_tokens_B: jax.Array
    ended_B: jax.Array
    stopped_B: jax.Array


@functools.partial(jax.jit, static_argnames=("decoding", "num_rows", "prompt_tokens"))
def empty_state(*, decoding: Decoding, num_rows: int, prompt_tokens: int) -> State:
    """Rows that are all empty, for prompts of up to `prompt_tokens`."""
    length = ring_length(decoding.shape, prompt_tokens + decoding.max_new_tokens)
    ring = init_ring(decoding.shape, num_rows, length=length, compute_dtype=decoding.compute_dtype)
    return _by_rows(State(_empty_rows(decoding, num_rows), ring))


def _empty_rows(decoding: Decoding, num_rows: int) -> Rows:
    zeros_B, false_B = jnp.zeros((num_rows,), jnp.int32), jnp.zeros((num_rows,), bool)
    tokens_BT = jnp.zeros((num_rows, decoding.max_new_tokens), jnp.int32)
    return Rows(zeros_B, zeros_B, tokens_BT, zeros_B, ~false_B, false_B, zeros_B.astype(jnp.uint32))


@functools.partial(jax.jit, static_argnames=("decoding", "prompt_tokens"))
def make_room(state: State, *, decoding: Decoding, prompt_tokens: int) -> State:
    """The same rows with a ring for prompts of up to `prompt_tokens`."""
    length = ring_length(decoding.shape, prompt_tokens + decoding.max_new_tokens)
    return _by_rows(State(state.rows, resize_ring(state.ring, length)))


@functools.partial(jax.jit, static_argnames=("decoding",), donate_argnames=("state",))
def admit(
    params: DecoderParams,
    state: State,
    *,
    prompts_NP: jax.Array,
    lengths_N: jax.Array,
    rows_N: jax.Array,
    indexes_N: jax.Array,
    seed: jax.Array | int,
    decoding: Decoding,
) -> State:
    """Reads prompts and begins their responses, in the places of rows that have ended.

    Args:
      params: from prepare_params.
      state: the rows; not to be used again.
      prompts_NP: prompts padded on the left; P is at most PREFILL_PIECE_TOKENS or a multiple of it.
      lengths_N: tokens of each prompt, 1 or more.
      rows_N: the row that each prompt comes into, all different; B or more: the prompt is there to fill the shape only.
      indexes_N: each prompt's index in the whole input, for its random numbers.
      seed: of the random numbers.
      decoding: the run.

    Returns:
      The rows, each new one with its first token chosen.
    """
    length = state.ring.keys[0].shape[-1]
    hidden_ND, filled = prefill(params, prompts_NP, lengths_B=lengths_N, shape=decoding.shape, length=length)
    token_N = sample_tokens(
        logits(params, hidden_ND), make_row_keys(seed, indexes_N), step=0, sampling=decoding.sampling
    )
    new = _empty_rows(decoding, len(rows_N))
    new = new._replace(token_B=token_N, position_B=lengths_N, ended_B=~new.ended_B, index_B=indexes_N)
    new = _record(new, token_N, decoding=decoding)
    rows = jax.tree.map(lambda old, row: old.at[rows_N].set(row, mode="drop"), state.rows, new)
    return _by_rows(State(rows, put_rows(state.ring, filled, rows_N)))


@functools.partial(jax.jit, static_argnames=("decoding", "result_sharding"), donate_argnames=("state",))
def decode(
    params: DecoderParams,
    state: State,
    *,
    num_ended: jax.Array | int,
    seed: jax.Array | int,
    decoding: Decoding,
    free_B: jax.Array | None = None,
    num_steps: jax.Array | int | None = None,
    result_sharding: jax.sharding.Sharding | None = None,
) -> tuple[State, Responses]:
    """Goes on with all rows until `num_ended` of them have ended, or for `num_steps` tokens.

    Args:
      params: from prepare_params.
      state: the rows; not to be used again.
      num_ended: rows that are empty are among them, and those that ended as they were admitted.
      seed: of the random numbers.
      decoding: the run.
      free_B: rows that have ended whatever they say themselves: the host has ended them; None: none.
      num_steps: the most tokens that a row gets; None: no bound but the response's length.
      result_sharding: how what the host reads lies; on several processes it must be on all of them.

    Returns:
      The rows, and what the host reads of them.
    """
    keys_B = make_row_keys(seed, state.rows.index_B)
    most = decoding.max_new_tokens if num_steps is None else num_steps
    if free_B is not None:
        state = State(state.rows._replace(ended_B=state.rows.ended_B | free_B), state.ring)

    def unfinished(carry: tuple[State, jax.Array]) -> jax.Array:
        state, step = carry
        return (jnp.sum(state.rows.ended_B) < num_ended) & (step < most)

    def advance(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        (rows, ring), step = carry
        hidden_BD, ring = decode_step(params, rows.token_B, ring, positions_B=rows.position_B, shape=decoding.shape)
        # A row that goes on has all its tokens in its response: their number is that of the next one.
        token_B = sample_tokens(logits(params, hidden_BD), keys_B, step=rows.num_tokens_B, sampling=decoding.sampling)
        rows = rows._replace(position_B=rows.position_B + ~rows.ended_B)
        return State(_record(rows, token_B, decoding=decoding), ring), step + 1

    state, _ = jax.lax.while_loop(unfinished, advance, (state, jnp.zeros((), jnp.int32)))
    state = _by_rows(state)
    rows = state.rows
    responses = Responses(rows.tokens_BT, rows.num_tokens_B, rows.ended_B, rows.stopped_B)
    if result_sharding is not None:
        responses = jax.lax.with_sharding_constraint(responses, result_sharding)
    return state, responses


def _record(rows: Rows, token_B: jax.Array, *, decoding: Decoding) -> Rows:
    """Puts the next token at the end of the rows that go on; they end with a stop token or at full length."""
    is_stop_B = jnp.isin(token_B, jnp.asarray(decoding.stop_ids, jnp.int32)) & ~rows.ended_B
    is_kept_B = ~is_stop_B & ~rows.ended_B
    places_T = jnp.arange(decoding.max_new_tokens, dtype=jnp.int32)
    is_here_BT = is_kept_B[:, None] & (places_T == rows.num_tokens_B[:, None])
    num_tokens_B = rows.num_tokens_B + is_kept_B
    return rows._replace(
        token_B=token_B,
        tokens_BT=jnp.where(is_here_BT, token_B[:, None], rows.tokens_BT),
        num_tokens_B=num_tokens_B,
        ended_B=rows.ended_B | is_stop_B | (num_tokens_B >= decoding.max_new_tokens),
        stopped_B=rows.stopped_B | is_stop_B,
    )


def _by_rows(state: State) -> State:
    """Keeps each device's rows with it."""
    if jax.sharding.get_abstract_mesh().empty:
        return state

    def constrain(array: jax.Array) -> jax.Array:
        if array.ndim == 0:
            return jax.lax.with_sharding_constraint(array, PartitionSpec())
        free = (PartitionSpec.UNCONSTRAINED,) * (array.ndim - 1)
        return jax.lax.with_sharding_constraint(array, PartitionSpec(ROW_AXES, *free))

    return jax.tree.map(constrain, state)
