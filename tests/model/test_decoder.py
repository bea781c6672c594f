"""The decoder's own forward pass against the training one, hidden state by hidden state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.random_models import SETTINGS, make_params, make_prompts, make_shape
from zephyr_jax.model import decoder
from zephyr_jax.model.decoder import decode_step, logits, prefill, prepare_params, resize_ring, ring_length
from zephyr_jax.model.mistral import head_matrix, hidden_states_and_head

LENGTHS, PADDED, NUM_STEPS = (7, 3, 12), 12, 9


def _full(texts: list[np.ndarray], *, shape, dtype: str) -> np.ndarray:
    """Hidden states [B, T, D] of texts by the training forward pass, the shorter ones padded at their ends."""
    lengths = np.array([len(text) for text in texts])
    places_T = np.arange(lengths.max())
    real_BT = places_T < lengths[:, None]
    tokens_BT = np.zeros(real_BT.shape, np.int32)
    tokens_BT[real_BT] = np.concatenate(texts)
    hidden_BTD, _ = jax.jit(hidden_states_and_head, static_argnames=("shape", "settings"))(
        make_params(shape),
        tokens_BT,
        shape=shape,
        settings=SETTINGS._replace(compute_dtype=dtype),
        positions_BT=np.broadcast_to(places_T, real_BT.shape),
        segments_BT=real_BT.astype(np.int32),
    )
    return np.asarray(hidden_BTD, np.float32)


@pytest.mark.parametrize("piece", [12, 4], ids=["prefill_whole", "prefill_in_pieces"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (make_shape(), "float32"),
        (make_shape(sliding_window=5), "float32"),
        (make_shape(sliding_window=1, num_key_value_heads=1), "float32"),
        (make_shape(sliding_window=15, num_key_value_heads=4, tie_word_embeddings=True), "float32"),
        (make_shape(tie_word_embeddings=True), "bfloat16"),
    ],
    ids=["grouped", "window_of_5", "window_of_1_one_head", "window_passed_ungrouped_tied", "bfloat16_tied"],
)
def test_prefill_and_decode_equal_the_full_forward(shape, dtype, piece, monkeypatch):
    """Rows of 7, 3 and 12 tokens, 9 more; the ring is as short as the window, and is resized on the way."""
    monkeypatch.setattr(decoder, "PREFILL_PIECE_TOKENS", piece)
    texts = make_prompts(*(length + NUM_STEPS for length in LENGTHS))
    prompts_BP = np.zeros((3, PADDED), np.int32)
    for row_P, text, length in zip(prompts_BP, texts, LENGTHS, strict=True):
        row_P[PADDED - length :] = text[:length]
    params = prepare_params(make_params(shape), shape=shape, dtype=dtype)
    lengths_B = np.array(LENGTHS, np.int32)
    short, long = (ring_length(shape, PADDED + num_new) for num_new in (4, NUM_STEPS))
    # A function of its own: JAX would take the program of the other size of pieces for this one.
    fill = jax.jit(lambda *arrays: prefill(*arrays[:2], lengths_B=arrays[2], shape=shape, length=short))
    hidden_BD, ring = fill(params, prompts_BP, lengths_B)
    step = jax.jit(decode_step, static_argnames="shape")
    hidden = [hidden_BD]
    for number in range(NUM_STEPS):
        if number == 4:
            ring = resize_ring(ring, long)
        tokens_B = np.array([text[length + number] for text, length in zip(texts, LENGTHS, strict=True)])
        hidden_BD, ring = step(params, tokens_B, ring, positions_B=lengths_B + number, shape=shape)
        hidden.append(hidden_BD)
    tolerance = {"float32": 2e-5, "bfloat16": 0.1}[dtype]
    cached_TBD, expected_BTD = np.array(hidden, np.float32), _full(texts, shape=shape, dtype=dtype)
    for row, length in enumerate(LENGTHS):
        expected_TD = expected_BTD[row, length - 1 : length + NUM_STEPS]
        np.testing.assert_allclose(cached_TBD[:, row], expected_TD, atol=tolerance)
    head_DV = head_matrix(make_params(shape), shape).T.astype(dtype)
    logits_BV = logits(params, hidden_BD)
    assert logits_BV.dtype == jnp.float32
    expected_BV = np.asarray(hidden_BD, np.float32) @ np.asarray(head_DV, np.float32)
    np.testing.assert_allclose(logits_BV, expected_BV, atol=1e-4)


def test_one_bfloat16_row_equals_the_same_row_beside_others():
    """A single row is multiplied beside an empty one on CPUs."""
    shape = make_shape()
    params = prepare_params(make_params(shape), shape=shape, dtype="bfloat16")
    hidden_BD = jax.random.normal(jax.random.key(0), (3, shape.hidden_size)).astype("bfloat16")
    np.testing.assert_allclose(logits(params, hidden_BD[:1]), logits(params, hidden_BD)[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("window", "expected"), [(None, 300), (256, 256), (4096, 300)])
def test_the_ring_is_no_longer_than_the_window(window, expected):
    assert ring_length(make_shape(sliding_window=window), 300) == expected
