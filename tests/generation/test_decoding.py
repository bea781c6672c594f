"""Rows side by side: cached decoding equals the full forward, and rows do not feel each other."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.generation.random_models import SHAPE, greedy_by_full_forward, make_params, make_prompts, make_shape
from zephyr_jax.generation.decoding import Decoding, Responses, State, admit, decode, empty_state, make_room
from zephyr_jax.generation.sampling import Sampling
from zephyr_jax.model import decoder
from zephyr_jax.model.decoder import DecoderParams, prepare_params
from zephyr_jax.model.mistral import cast_params
from zephyr_jax.recipe import ModelShape

NUM_NEW = 12
GREEDY = Sampling()


def _generate(
    prompts: list[np.ndarray],
    *,
    padded: int = 24,
    shape: ModelShape = SHAPE,
    params: Any = None,
    indexes: list[int] | None = None,
    seed: int = 0,
    dtype: str = "float32",
    sampling: Sampling = GREEDY,
    stop_ids: tuple[int, ...] = (),
    max_new_tokens: int = NUM_NEW,
) -> Responses:
    """All prompts admitted at once and decoded to their ends."""
    decoding = Decoding(shape, dtype, sampling, stop_ids, max_new_tokens)
    params = prepare_params(make_params(shape) if params is None else params, shape=shape, dtype=dtype)
    state = empty_state(decoding=decoding, num_rows=len(prompts), prompt_tokens=padded)
    rows = list(range(len(prompts)))
    indexes = rows if indexes is None else indexes
    state = _admit(params, state, prompts, rows=rows, indexes=indexes, padded=padded, seed=seed, decoding=decoding)
    return _decode(params, state, len(prompts), seed=seed, decoding=decoding)[1]


def _admit(
    params: DecoderParams,
    state: State,
    prompts: list[np.ndarray],
    *,
    rows: list[int],
    indexes: list[int],
    padded: int,
    decoding: Decoding,
    seed: int = 0,
) -> State:
    prompts_NP = np.zeros((len(prompts), padded), np.int32)
    for row_P, prompt in zip(prompts_NP, prompts, strict=True):
        row_P[padded - len(prompt) :] = prompt
    return admit(
        params,
        state,
        prompts_NP=prompts_NP,
        lengths_N=np.array([len(prompt) for prompt in prompts], np.int32),
        rows_N=np.array(rows, np.int32),
        indexes_N=np.array(indexes, np.uint32),
        seed=np.uint32(seed),
        decoding=decoding,
    )


def _decode(
    params: DecoderParams, state: State, num_ended: int, *, decoding: Decoding, seed: int = 0
) -> tuple[State, Responses]:
    state, responses = decode(params, state, num_ended=np.int32(num_ended), seed=np.uint32(seed), decoding=decoding)
    return state, Responses(*(np.array(array) for array in responses))


@pytest.mark.parametrize(
    "shape",
    [SHAPE, make_shape(sliding_window=21, tie_word_embeddings=True, num_key_value_heads=4, rope_theta=100.0)],
    ids=["no_window", "window_passed_while_decoding_tied_ungrouped"],
)
def test_cached_decoding_equals_the_full_forward(shape):
    """Prompts of 1 to 24 tokens in one batch, so every row but one has padding between prompt and answer.

    Other windows: tests/model/test_decoder.py.
    """
    prompts = make_prompts(7, 24, 1, 16)
    decoded = _generate(prompts, shape=shape)
    expected = greedy_by_full_forward(make_params(shape), prompts, NUM_NEW, shape=shape)
    assert decoded.tokens_BT.tolist() == expected
    assert len({tuple(tokens) for tokens in expected}) == 4 and max(len(set(tokens)) for tokens in expected) > 3


def test_a_prompt_prefilled_in_pieces_gets_the_same_answer(monkeypatch):
    """Pieces of 8 tokens: prompts that end inside the first, at an edge, and in the last piece."""
    monkeypatch.setattr(decoder, "PREFILL_PIECE_TOKENS", 8)
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
    options: Any = {"sampling": Sampling(1.0), "seed": 3}
    together = _generate(prompts, **options).tokens_BT
    rows = [3, 0]
    some = _generate([prompts[row] for row in rows], indexes=rows, **options).tokens_BT
    np.testing.assert_array_equal(some, together[rows])


def test_seed_and_row_index_change_a_sampled_answer():
    prompt = make_prompts(7) * 4
    options: Any = {"sampling": Sampling(1.0)}
    first = _generate(prompt, **options).tokens_BT
    assert len({tuple(tokens) for tokens in first.tolist()}) == 4
    np.testing.assert_array_equal(first, _generate(prompt, **options).tokens_BT)
    assert (first != _generate(prompt, seed=1, **options).tokens_BT).any()


@pytest.mark.parametrize("num_prompts", [1, 2])
def test_bfloat16_weights_may_be_cast_already(num_prompts):
    prompts = make_prompts(7, 24)[:num_prompts]
    given = _generate(prompts, params=cast_params(make_params(), "bfloat16"), dtype="bfloat16")
    np.testing.assert_array_equal(given.tokens_BT, _generate(prompts, dtype="bfloat16").tokens_BT)


@pytest.mark.parametrize("window", [9, 21])
def test_a_replaced_row_answers_like_a_fresh_one(window):
    """Rows 0 and 2 of three stop early; two prompts, one of them longer than all before, take their places.

    The ring has room for prompts of 8 tokens and grows to 40. Row 1 goes on through all of it. The window of 9 is
    passed by every row, that of 21 by some.
    """
    shape = make_shape(sliding_window=window)
    first, second = make_prompts(7, 8, 3), make_prompts(40, 5, seed=1)
    expected = greedy_by_full_forward(make_params(shape), first + second, NUM_NEW, shape=shape)
    # Rows 0 and 2 each have a token that row 1 never says.
    stop_ids = tuple(next(id_ for id_ in expected[row][3:] if id_ not in expected[1]) for row in (0, 2))
    decoding = Decoding(shape, "float32", GREEDY, stop_ids, NUM_NEW)
    params = prepare_params(make_params(shape), shape=shape, dtype="float32")
    state = empty_state(decoding=decoding, num_rows=3, prompt_tokens=8)
    state = _admit(params, state, first, rows=[0, 1, 2], indexes=[0, 1, 2], padded=8, decoding=decoding)
    state, seen = _decode(params, state, 2, decoding=decoding)
    assert seen.ended_B.tolist() == [True, False, True] and 0 < seen.num_tokens_B[1] < NUM_NEW
    state = make_room(state, decoding=decoding, prompt_tokens=40)
    # The third prompt only fills the shape: there is no row 3.
    filler = make_prompts(2, seed=2)
    state = _admit(params, state, second + filler, rows=[2, 0, 3], indexes=[3, 4, 9], padded=40, decoding=decoding)
    _, responses = _decode(params, state, 3, decoding=decoding)
    for row, answer in ((1, expected[1]), (2, expected[3]), (0, expected[4])):
        ends = [place for place, id_ in enumerate(answer) if id_ in stop_ids]
        num_tokens = ends[0] if ends else NUM_NEW
        assert responses.tokens_BT[row, :num_tokens].tolist() == answer[:num_tokens]
        assert responses.num_tokens_B[row] == num_tokens and responses.stopped_B[row] == bool(ends)


def test_the_loop_goes_on_until_enough_rows_have_ended():
    """Four rows, at least one of which stops early: it returns at the step in which so many have ended."""
    prompts = make_prompts(7, 24, 1, 16)
    free = _generate(prompts).tokens_BT
    stop_id = int(free[1, 4])
    ends = [np.flatnonzero(row == stop_id)[0] if stop_id in row else NUM_NEW for row in free]
    decoding = Decoding(SHAPE, "float32", GREEDY, (stop_id,), NUM_NEW)
    params = prepare_params(make_params(), shape=SHAPE, dtype="float32")
    for num_ended in (1, 2, 4):
        state = empty_state(decoding=decoding, num_rows=4, prompt_tokens=24)
        state = _admit(params, state, prompts, rows=[0, 1, 2, 3], indexes=[0, 1, 2, 3], padded=24, decoding=decoding)
        _, responses = _decode(params, state, num_ended, decoding=decoding)
        # A stop token at place n ends a row in step n, a full response with its last token, in step NUM_NEW - 1.
        last_steps = sorted(min(end, NUM_NEW - 1) for end in ends)
        last_step = last_steps[num_ended - 1]
        assert responses.num_tokens_B.tolist() == [min(end, last_step + 1) for end in ends]


def test_no_step_copies_the_ring():
    """The compiled loop writes keys and values in place: outside of its entry, no copy is as large as one layer's."""
    decoding = Decoding(SHAPE, "float32", GREEDY, (), NUM_NEW)
    params = prepare_params(make_params(), shape=SHAPE, dtype="float32")
    state = empty_state(decoding=decoding, num_rows=4, prompt_tokens=52)
    text = decode.lower(params, state, num_ended=4, seed=0, decoding=decoding).compile().as_text()
    entry = text[text.index("\nENTRY ") :]
    copies = re.findall(r"f32\[4,2,(?:8,64|64,8)\]\S* copy\(", text.replace(entry, ""))
    assert not copies
