"""Many prompts: their order, the rows that they take, the mesh, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from tests.generation.random_models import SETTINGS, SHAPE, make_params, make_prompts
from zephyr_jax import recipe, sharding
from zephyr_jax.compilation import count_compilations
from zephyr_jax.generation import decoding, responses
from zephyr_jax.generation.decoding import Decoding, admit, decode, make_room
from zephyr_jax.generation.responses import Response, generate_responses, iterate_responses, padded_length
from zephyr_jax.model.mistral import PARTITION_RULES, abstract_params
from zephyr_jax.records import InputError

PROMPTS = make_prompts(20, 3, 33, 3, 11)
OPTIONS: dict[str, Any] = {
    "shape": SHAPE,
    "settings": SETTINGS,
    "stop_ids": (11, 13),
    "max_new_tokens": 10,
    "batch_size": 2,
    "temperature": 1.0,
    "seed": 4,
}


def _as_lists(answers: list[Response]) -> list[tuple[list[int], str]]:
    return [(answer.ids.tolist(), answer.finish_reason) for answer in answers]


@pytest.fixture(scope="module")
def answers() -> list[tuple[list[int], str]]:
    """To all prompts, two in a batch."""
    return _as_lists(generate_responses(make_params(), PROMPTS, **OPTIONS))


def test_answers_come_in_the_order_of_the_prompts(answers):
    alone = [
        _as_lists(generate_responses(make_params(), [prompt], row_indexes=[row], **OPTIONS))[0]
        for row, prompt in enumerate(PROMPTS)
    ]
    assert answers == alone
    assert len({tuple(ids) for ids, _ in answers}) == len(PROMPTS)


def test_an_answer_has_neither_its_stop_token_nor_more_tokens_than_allowed(answers):
    for ids, finish_reason in answers:
        assert not set(ids) & {11, 13}
        assert (finish_reason == "length") == (len(ids) == 10)
    assert {finish_reason for _, finish_reason in answers} == {"stop", "length"}


def test_rows_are_taken_from_short_to_long_and_refilled(monkeypatch):
    """Lengths 3, 3 | 11 | 20 | 33: two rows at first, then one at a time; the ring grows once, for the last prompt."""
    admitted, room = [], []

    def record_admit(params, state, *, prompts_NP, lengths_N, **arguments):
        admitted.append((prompts_NP.shape, lengths_N.tolist(), arguments["indexes_N"].tolist()))
        return decoding.admit(params, state, prompts_NP=prompts_NP, lengths_N=lengths_N, **arguments)

    def record_room(state, *, decoding: Decoding, prompt_tokens: int):
        room.append(prompt_tokens)
        return make_room(state, decoding=decoding, prompt_tokens=prompt_tokens)

    monkeypatch.setattr(responses, "admit", record_admit)
    monkeypatch.setattr(responses, "make_room", record_room)
    batches = list(iterate_responses(make_params(), PROMPTS, **OPTIONS))
    assert admitted[0] == ((2, 32), [3, 3], [1, 3])
    assert [entry for entry in admitted[1:] if entry[0] == (1, 32)] == [((1, 32), [11], [4]), ((1, 32), [20], [0])]
    assert admitted[3:] == [((1, 64), [33], [2])] and room == [64]
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3, 4]


def test_many_prompts_of_uneven_answers_need_few_compilations():
    """30 prompts of two padded lengths in 8 rows: admitted 8 and 2 at a time, decoded in rings of two sizes."""
    prompts = make_prompts(*range(4, 34)[::-1])
    options = OPTIONS | {"batch_size": 8, "max_new_tokens": 9}
    before = admit._cache_size(), decode._cache_size()
    answers = generate_responses(make_params(), prompts, **options)
    assert len({len(answer.ids) for answer in answers}) > 3
    assert admit._cache_size() - before[0] <= 3 and decode._cache_size() - before[1] <= 2


def test_asking_again_compiles_nothing():
    """As a run does at every evaluation, with other weights each time."""
    prompts, trees = make_prompts(5, 9, 12), [make_params(), jax.tree.map(lambda leaf: 2 * leaf, make_params())]
    generate_responses(trees[0], prompts, **OPTIONS)
    with count_compilations() as count:
        generate_responses(trees[1], prompts, **OPTIONS)
    assert count.num_programs == 0


def test_every_prompt_of_a_text_up_to_2048_tokens_is_padded_to_one_of_seven_lengths():
    lengths = {padded_length(num_tokens) for num_tokens in range(1, 2049)}
    assert sorted(lengths) == [32, 64, 128, 256, 512, 1024, 2048]
    assert all(num_tokens <= padded_length(num_tokens) <= max(32, 2 * num_tokens) for num_tokens in range(1, 2049))


def test_few_prompts_of_a_length_share_the_programs_of_the_next_longer_one(monkeypatch):
    """12 prompts of 9 tokens, 1 of 40 and 2 of 70 in two rows, refilled one by one: no program for 64."""
    lengths = []

    def record(params, state, *, prompts_NP, **arguments):
        lengths.append(prompts_NP.shape[1])
        return decoding.admit(params, state, prompts_NP=prompts_NP, **arguments)

    monkeypatch.setattr(responses, "admit", record)
    prompts = make_prompts(*[9] * 12, 40, 70, 70)
    answers = _as_lists(generate_responses(make_params(), prompts, **OPTIONS))
    assert set(lengths) == {32, 128}
    alone = _as_lists(generate_responses(make_params(), [prompts[12]], row_indexes=[12], **OPTIONS))
    assert answers[12] == alone[0]


def test_shared_lengths_by_hand():
    """The table of its docstring; the longest has none to go to, and short ones gather until they are enough."""

    def shared(*lengths: int, fewest: int) -> dict[int, int]:
        return responses.shared_lengths([np.zeros(length, np.int32) for length in lengths], fewest=fewest)

    table = shared(*[64] * 31, *[100] * 28, 181, 181, 281, 317, fewest=3)
    assert table == {64: 64, 128: 128, 256: 512, 512: 512}
    assert shared(3, 40, 40, 70, 70, 70, 130, fewest=4) == {32: 128, 64: 128, 128: 128, 256: 256}
    assert shared(3, 40, fewest=1) == {32: 32, 64: 64}


def test_an_answer_ends_where_the_host_says_so_and_frees_its_row(monkeypatch):
    """Asked every third token whether an 11th id has come: the answers are those of full length, cut no earlier than
    where that holds and at most two tokens later, in the rows that the earlier ones left."""
    monkeypatch.setattr(responses, "TOKENS_BETWEEN_LOOKS", 3)
    options = OPTIONS | {"stop_ids": (), "max_new_tokens": 20}
    whole = generate_responses(make_params(), PROMPTS, **options)
    # An admitted row has its first token already: looks come after 4, 7, 10 ... tokens of the first two.
    cut = generate_responses(make_params(), PROMPTS, has_ended=lambda ids: len(ids) > 10, **options)
    for long, short in zip(whole, cut, strict=True):
        assert len(long.ids) == 20 and long.finish_reason == "length"
        assert 11 <= len(short.ids) <= 13 and short.finish_reason == "stop"
        assert long.ids[: len(short.ids)].tolist() == short.ids.tolist()


def test_rows_that_the_host_sees_end_one_by_one_are_refilled_together(monkeypatch):
    """Of 8 rows 2 are read at once: with one prompt the second would be computed for nothing."""
    monkeypatch.setattr(responses, "TOKENS_BETWEEN_LOOKS", 1)
    sizes, plain = [], responses.admit

    def admit(*arguments, rows_N, **options):
        sizes.append(int((np.asarray(rows_N) < 8).sum()))
        return plain(*arguments, rows_N=rows_N, **options)

    monkeypatch.setattr(responses, "admit", admit)
    options = OPTIONS | {"stop_ids": (), "max_new_tokens": 20, "batch_size": 8}
    prompts = [np.array([number + 1], np.int32) for number in range(20)]
    generate_responses(make_params(), prompts, has_ended=lambda ids: len(ids) > 2 + ids[0] % 7, **options)
    assert sizes[0] == 8 and sum(sizes) == 20 and set(sizes[1:]) == {2}


def test_no_prompts_give_no_answers():
    assert generate_responses(make_params(), [], **OPTIONS) == []


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8}], ids=str)
def test_a_mesh_gives_the_answers_of_one_device(answers, sizes):
    """Eight devices; two rows a batch become four or eight."""
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    mesh = sharding.make_mesh(recipe.Mesh(**sizes), jax.devices()[:8])
    placed = jax.device_put(make_params(), sharding.tree_shardings(abstract_params(SHAPE), PARTITION_RULES, mesh))
    assert _as_lists(generate_responses(placed, PROMPTS, mesh=mesh, **OPTIONS)) == answers


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 has no tokens"),
        ([[1, 64]], {}, "prompt 0 has token id 64, but the model has ids 0 to 63"),
        ([[-1, 2]], {}, "prompt 0 has token id -1"),
        ([[1]], {"temperature": -0.5}, "temperature: got -0.5, wanted 0"),
        ([[1]], {"top_p": 0.0}, "top_p: got 0.0, wanted more than 0"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens: got 0, wanted 1 or more"),
        ([[1]], {"batch_size": 0}, "batch_size: got 0, wanted 1 or more"),
        ([[1]], {"seed": -1}, "seed: got -1"),
    ],
)
def test_wrong_input_is_named(prompts, options, message):
    with pytest.raises(InputError, match=message):
        generate_responses(make_params(), [np.array(ids, np.int32) for ids in prompts], **(OPTIONS | options))
