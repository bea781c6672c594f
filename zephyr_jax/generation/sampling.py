"""From logits to the next token: greedy, temperature, nucleus (top-p). All in float32, and every row by itself.

The random numbers of a row depend on the seed, on the row's own index and on the step, never on the rows beside it, so
that a row gets the same answer in every batch.

Dimensions: B batch, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_NUM_HALVINGS = 31  # the bits of 1.0, the largest probability, are below 2^30


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
      temperature: 0 takes the most likely token; else logits are divided by it.
      top_p: share of the probability that is sampled from, in (0, 1], after the temperature; 1 is all of it.
    """

    temperature: float = 0.0
    top_p: float = 1.0


def make_row_keys(seed: jax.Array | int, row_indexes_B: jax.Array) -> jax.Array:
    """One random key a row: the seed's key folded with the row's index.

    Args:
      seed: 0 or more, below 2^32.
      row_indexes_B: index of each row in the whole input, not in its batch.

    Returns:
      Keys [B].
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), row_indexes_B)


def keep_nucleus(logits_BV: jax.Array, *, top_p: float) -> jax.Array:
    """Leaves the smallest set of most likely tokens that holds at least `top_p` of the probability (arXiv:1904.09751).

    The least likely probability of the set is found by bisection, which on a CPU takes a tenth of a sort's time; tokens
    that are exactly as likely are in the set together.

    Args:
      logits_BV: float32, temperature applied.
      top_p: in (0, 1].

    Returns:
      The logits [B, V], -inf outside of the set; the most likely token is always in it.
    """
    probabilities_BV = jax.nn.softmax(logits_BV, axis=-1)
    # Floats that are not negative are in the order of their bits, so that halving 2^30 values is exact.
    bits_BV = jax.lax.bitcast_convert_type(probabilities_BV, jnp.int32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B1, high_B1 = bounds  # what is at least `low` holds enough, what is at least `high` does not
        middle_B1 = low_B1 + (high_B1 - low_B1) // 2
        mass_B1 = jnp.sum(jnp.where(bits_BV >= middle_B1, probabilities_BV, 0.0), axis=-1, keepdims=True)
        is_enough_B1 = mass_B1 >= top_p
        return jnp.where(is_enough_B1, middle_B1, low_B1), jnp.where(is_enough_B1, high_B1, middle_B1)

    highest_B1 = jnp.max(bits_BV, axis=-1, keepdims=True)
    threshold_B1, _ = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, (jnp.zeros_like(highest_B1), highest_B1 + 1))
    return jnp.where(bits_BV >= threshold_B1, logits_BV, -jnp.inf)


def sample_tokens(logits_BV: jax.Array, keys_B: jax.Array, *, step: jax.Array | int, sampling: Sampling) -> jax.Array:
    """Chooses the next token of each row.

    Args:
      logits_BV: logits of the next token, any float type.
      keys_B: from make_row_keys.
      step: number of the token within the response, from 0; of each row [B], or the same for all.
      sampling: greedy, or temperature and top-p.

    Returns:
      Token ids, int32 [B].
    """
    logits_BV = logits_BV.astype(jnp.float32)
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # Shifted before it is divided, so that a low temperature cannot overflow the likely tokens.
    scaled_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_p < 1:
        scaled_BV = keep_nucleus(scaled_BV, top_p=sampling.top_p)
    step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, jnp.broadcast_to(step, keys_B.shape))
    return jax.vmap(jax.random.categorical)(step_keys_B, scaled_BV).astype(jnp.int32)
