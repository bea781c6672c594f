"""The choice of a token: greedy, temperature, nucleus; frequencies, seeds, and independence of the rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zephyr_jax.generation.sampling import Sampling, keep_nucleus, make_row_keys, sample_tokens

PROBABILITIES = np.array([0.15, 0.5, 0.05, 0.3])
NUM_DRAWS = 20_000


def _draw(probabilities: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Frequencies over NUM_DRAWS rows of equal logits."""
    logits_BV = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities)), (NUM_DRAWS, len(probabilities)))
    keys_B = make_row_keys(7, jnp.arange(NUM_DRAWS, dtype=jnp.uint32))
    tokens_B = jax.jit(sample_tokens, static_argnames="sampling")(logits_BV, keys_B, step=3, sampling=sampling)
    return np.bincount(np.asarray(tokens_B), minlength=len(probabilities)) / NUM_DRAWS


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, [1]), (0.49, [1]), (0.51, [1, 3]), (0.79, [1, 3]), (0.81, [0, 1, 3]), (1.0, [0, 1, 2, 3])],
)
def test_the_nucleus_is_the_smallest_set_that_holds_top_p(top_p, kept):
    """Sorted, the probabilities sum to .5, .8, .95, 1."""
    logits_V = keep_nucleus(jnp.log(PROBABILITIES)[None], top_p=top_p)[0]
    assert np.flatnonzero(np.isfinite(logits_V)).tolist() == kept
    np.testing.assert_array_equal(logits_V[np.array(kept)], jnp.log(PROBABILITIES)[np.array(kept)])


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_of_many_tokens_is_that_of_a_sort(top_p):
    """Nothing can be left out of the set, and what is outside is less likely than all inside."""
    logits_BV = 3 * jax.random.normal(jax.random.key(0), (5, 3000))
    kept_BV = np.isfinite(keep_nucleus(logits_BV, top_p=top_p))
    probabilities_BV = np.asarray(jax.nn.softmax(logits_BV), np.float64)
    for kept_V, probabilities_V in zip(kept_BV, probabilities_BV, strict=True):
        inside = np.sort(probabilities_V[kept_V])
        assert inside.sum() >= top_p - 1e-6 and inside[1:].sum() < top_p + 1e-6
        assert probabilities_V[~kept_V].max() < inside[0]


def test_equally_likely_tokens_are_in_the_nucleus_together():
    logits_BV = jnp.array([[2.0, 0.0, 0.0, 0.0, -9.0]])
    assert np.isfinite(keep_nucleus(logits_BV, top_p=0.8)).tolist() == [[True, True, True, True, False]]


def test_each_row_has_its_own_nucleus():
    logits_BV = jnp.array([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    kept_BV = np.isfinite(keep_nucleus(logits_BV, top_p=0.9))
    assert kept_BV.tolist() == [[True, False, False], [True, True, True], [False, False, True]]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), PROBABILITIES),
        (Sampling(2.0), np.sqrt(PROBABILITIES) / np.sqrt(PROBABILITIES).sum()),
        (Sampling(0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        (Sampling(1.0, 0.7), np.array([0, 0.5, 0, 0.3]) / 0.8),
    ],
    ids=["as_it_is", "hot", "cold", "nucleus"],
)
def test_tokens_come_as_often_as_their_probability_says(sampling, expected):
    """The standard deviation of a frequency is at most sqrt(.25 / 20000) = .0035; five of them are allowed."""
    frequencies = _draw(PROBABILITIES, sampling)
    np.testing.assert_allclose(frequencies, expected, atol=0.018)
    assert (frequencies[expected == 0] == 0).all()


def test_temperature_comes_before_top_p():
    """At temperature 2 the likeliest holds .71 / 1.87 = .38, so that top_p .45 keeps two; at 1 it would keep one."""
    frequencies = _draw(PROBABILITIES, Sampling(2.0, 0.45))
    assert (frequencies > 0).tolist() == [False, True, False, True]


def test_temperature_0_takes_the_likeliest_and_the_first_of_equals():
    keys_B = make_row_keys(0, jnp.arange(2, dtype=jnp.uint32))
    logits_BV = jnp.array([[0.0, 2.0, 1.0], [3.0, 1.0, 3.0]])
    assert sample_tokens(logits_BV, keys_B, step=0, sampling=Sampling()).tolist() == [1, 0]


def test_the_lowest_temperature_is_finite_and_nearly_greedy():
    logits_BV = jnp.array([[1e3, -1e3, 1e3 + 1]])
    keys_B = make_row_keys(0, jnp.zeros(1, jnp.uint32))
    assert sample_tokens(logits_BV, keys_B, step=0, sampling=Sampling(1e-4, 0.99)).tolist() == [2]


def test_a_row_draws_the_same_in_every_batch():
    logits_BV = jax.random.normal(jax.random.key(1), (6, 50))
    rows_B = jnp.array([3, 11, 4, 0, 8, 5], jnp.uint32)
    sampling = Sampling(1.5)
    together = sample_tokens(logits_BV, make_row_keys(2, rows_B), step=1, sampling=sampling)
    alone = [
        int(sample_tokens(logits_BV[i : i + 1], make_row_keys(2, rows_B[i : i + 1]), step=1, sampling=sampling)[0])
        for i in range(len(rows_B))
    ]
    assert together.tolist() == alone


def test_seed_row_and_step_each_change_the_draw():
    def draw(seed: int, row: int, step: int) -> list[int]:
        keys_B = make_row_keys(seed, jnp.arange(row, row + 20, dtype=jnp.uint32))
        return sample_tokens(jnp.zeros((20, 1000)), keys_B, step=step, sampling=Sampling(1.0)).tolist()

    assert draw(0, 0, 0) == draw(0, 0, 0)
    assert len({tuple(draw(*where)) for where in [(0, 0, 0), (1, 0, 0), (0, 100, 0), (0, 0, 1)]}) == 4
    assert draw(0, 0, 0)[5:] == draw(0, 5, 0)[:15]
