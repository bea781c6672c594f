"""Many prompts: their order, their batches, the mesh, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from tests.generation.random_models import SETTINGS, SHAPE, make_params, make_prompts
from zephyr_jax import recipe, sharding
from zephyr_jax.generation import responses
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


def test_batches_go_from_short_to_long(monkeypatch):
    """Lengths 3, 3 | 11, 20 | 33: two shapes for three batches, and the last row alone twice."""
    seen = []

    def record(params, prompts_BP, *, lengths_B, row_indexes_B, max_new_tokens, **_):
        seen.append((prompts_BP.shape, lengths_B.tolist(), row_indexes_B.tolist()))
        rows = len(prompts_BP)
        return np.zeros((rows, max_new_tokens), np.int32), np.zeros(rows, np.int32), np.ones(rows, bool)

    monkeypatch.setattr(responses, "generate_batch", record)
    batches = list(iterate_responses(make_params(), PROMPTS, **OPTIONS))
    assert seen == [((2, 32), [3, 3], [1, 3]), ((2, 32), [11, 20], [4, 0]), ((2, 64), [33, 33], [2, 2])]
    assert [list(batch) for batch in batches] == [[1, 3], [4, 0], [2]]


def test_every_prompt_of_a_text_up_to_2048_tokens_is_padded_to_one_of_seven_lengths():
    lengths = {padded_length(num_tokens) for num_tokens in range(1, 2049)}
    assert sorted(lengths) == [32, 64, 128, 256, 512, 1024, 2048]
    assert all(num_tokens <= padded_length(num_tokens) <= max(32, 2 * num_tokens) for num_tokens in range(1, 2049))


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
