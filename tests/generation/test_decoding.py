"""One batch: cached decoding equals the full forward, and rows do not feel each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.generation.random_models import (
    SETTINGS,
    SHAPE,
    greedy_by_full_forward,
    make_params,
    make_prompts,
    make_shape,
)
from zephyr_jax.generation import decoding
from zephyr_jax.generation.decoding import Decoded, generate_batch
from zephyr_jax.generation.sampling import Sampling
from zephyr_jax.model.mistral import cast_params
from zephyr_jax.recipe import ModelShape

NUM_NEW = 12


def _generate(
    prompts: list[np.ndarray], *, padded: int = 24, shape: ModelShape = SHAPE, params: Any = None, **options: Any
) -> Decoded:
    prompts_BP = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in zip(prompts_BP, prompts, strict=True):
        row[: len(prompt)] = prompt
    defaults: dict[str, Any] = {
        "row_indexes_B": np.arange(len(prompts), dtype=np.uint32),
        "seed": 0,
        "settings": SETTINGS,
        "sampling": Sampling(),
        "stop_ids": (),
        "max_new_tokens": NUM_NEW,
    }
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    params = make_params(shape) if params is None else params
    decoded = generate_batch(params, prompts_BP, lengths_B=lengths_B, shape=shape, **(defaults | options))
    return Decoded(*(np.asarray(array) for array in decoded))


@pytest.mark.parametrize(
    "shape",
    [
        SHAPE,
        make_shape(sliding_window=1),
        make_shape(sliding_window=5),
        make_shape(sliding_window=21, tie_word_embeddings=True, num_key_value_heads=4, rope_theta=100.0),
    ],
    ids=["no_window", "window_of_1", "window_of_5", "window_passed_while_decoding_tied_ungrouped"],
)
def test_cached_decoding_equals_the_full_forward(shape):
    """Prompts of 1 to 24 tokens in one batch, so every row but one has padding between prompt and answer."""
    prompts = make_prompts(7, 24, 1, 16)
    decoded = _generate(prompts, shape=shape)
    expected = greedy_by_full_forward(make_params(shape), prompts, NUM_NEW, shape=shape)
    assert decoded.tokens_BT.tolist() == expected
    assert len({tuple(tokens) for tokens in expected}) == 4 and max(len(set(tokens)) for tokens in expected) > 3


def test_a_prompt_prefilled_in_pieces_gets_the_same_answer(monkeypatch):
    """Pieces of 8 tokens: prompts that end inside the first, at an edge, and in the last piece."""
    monkeypatch.setattr(decoding, "PREFILL_PIECE_TOKENS", 8)
    shape = make_shape(sliding_window=11)
    prompts = make_prompts(3, 8, 9, 40)
    decoded = _generate(prompts, shape=shape, padded=40)
    expected = greedy_by_full_forward(make_params(shape), prompts, NUM_NEW, shape=shape)
    assert decoded.tokens_BT.tolist() == expected


def test_a_row_stops_before_its_stop_token_and_the_others_go_on():
    prompts = make_prompts(7, 24, 1, 16)
    free = _generate(prompts)
    stop_id = int(free.tokens_BT[1, 4])
    stopped = _generate(prompts, stop_ids=(63, stop_id))
    for row in range(len(prompts)):
        ends = np.flatnonzero(np.isin(free.tokens_BT[row], (63, stop_id)))
        num_tokens = ends[0] if len(ends) else NUM_NEW
        assert stopped.num_tokens_B[row] == num_tokens
        assert stopped.stopped_B[row] == bool(len(ends))
        assert stopped.tokens_BT[row, :num_tokens].tolist() == free.tokens_BT[row, :num_tokens].tolist()
        assert not stopped.tokens_BT[row, num_tokens:].any()
    assert stopped.stopped_B[1] and not stopped.stopped_B.all()


def test_every_row_may_stop_at_once():
    decoded = _generate(make_prompts(4, 4), stop_ids=tuple(range(SHAPE.vocab_size)))
    assert decoded.num_tokens_B.tolist() == [0, 0] and decoded.stopped_B.all() and not decoded.tokens_BT.any()


def test_an_answer_may_be_one_token_long():
    prompts = make_prompts(7, 24, 1, 16)
    short = _generate(prompts, max_new_tokens=1)
    assert short.tokens_BT.tolist() == _generate(prompts).tokens_BT[:, :1].tolist()
    assert short.num_tokens_B.tolist() == [1] * 4 and not short.stopped_B.any()


def test_a_sampled_row_does_not_depend_on_the_rows_beside_it():
    prompts = make_prompts(7, 24, 1, 16)
    options = {"sampling": Sampling(1.0), "seed": 3}
    together = _generate(prompts, **options).tokens_BT
    for rows in ([2], [3, 0]):
        some = _generate([prompts[row] for row in rows], row_indexes_B=np.array(rows, np.uint32), **options).tokens_BT
        np.testing.assert_array_equal(some, together[rows])


def test_seed_and_row_index_change_a_sampled_answer():
    prompt = make_prompts(7) * 4
    options = {"sampling": Sampling(1.0)}
    first = _generate(prompt, **options).tokens_BT
    assert len({tuple(tokens) for tokens in first.tolist()}) == 4
    np.testing.assert_array_equal(first, _generate(prompt, **options).tokens_BT)
    assert (first != _generate(prompt, seed=1, **options).tokens_BT).any()


def test_bfloat16_answers_whatever_the_training_settings_are():
    """Attention and remat are decoding's own; the weights may be cast already."""
    settings = SETTINGS._replace(compute_dtype="bfloat16")
    prompts = make_prompts(7, 24)
    training = settings._replace(attention="blockwise", remat="full")
    given = _generate(prompts, params=cast_params(make_params(), "bfloat16"), settings=training)
    np.testing.assert_array_equal(given.tokens_BT, _generate(prompts, settings=settings).tokens_BT)
