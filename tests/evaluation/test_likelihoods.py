"""Log-likelihoods of packed rows against each request computed by itself, on one device and on a mesh."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.generation.random_models import SETTINGS, SHAPE, make_params, make_shape
from zephyr_jax import recipe
from zephyr_jax.data.continuation_rows import lay_out_rows
from zephyr_jax.evaluation import likelihoods
from zephyr_jax.evaluation.likelihoods import loglikelihoods
from zephyr_jax.model.mistral import PARTITION_RULES, hidden_states_and_head
from zephyr_jax.records import InputError
from zephyr_jax.sharding import make_mesh, tree_shardings

AUTO = SETTINGS._replace(attention="auto")


def _one_by_one(params, requests, *, shape, max_length=10_000):
    """(sum, is greedy) of each request by a forward pass of its own, padded to one length."""
    found = []
    length = max(len(context) + len(continuation) for context, continuation in requests)

    @jax.jit
    def logits_of(tokens_BT):
        positions_BT = np.arange(length)[None]
        hidden_BTD, head_VD = hidden_states_and_head(
            params,
            tokens_BT,
            shape=shape,
            settings=SETTINGS,
            positions_BT=positions_BT,
            segments_BT=positions_BT * 0 + 1,
        )
        return jax.nn.log_softmax(hidden_BTD[0] @ head_VD.T)

    for context, continuation in requests:
        whole = [*context, *continuation][-(max_length + 1) :]
        read = np.zeros((1, length), np.int32)
        read[0, : len(whole) - 1] = whole[:-1]
        logprobs_TV = np.asarray(logits_of(read))[len(whole) - 1 - len(continuation) : len(whole) - 1]
        chosen = logprobs_TV[np.arange(len(continuation)), continuation]
        found.append((chosen.sum(), bool((logprobs_TV.argmax(-1) == continuation).all())))
    return found


def _items(seed: int, *, num_items: int, longest: int) -> list[tuple[list[int], list[int]]]:
    """Items of three continuations, the first of one token; every other one is made greedy by `_greedy_first`."""
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(num_items):
        context = rng.integers(0, SHAPE.vocab_size, rng.integers(2, longest)).tolist()
        requests += [(context, rng.integers(0, SHAPE.vocab_size, size).tolist()) for size in (1, 4, 9)]
    return requests


def _with_greedy(params, requests):
    """The same, and after every context the token that the model says itself."""
    greedy = []
    for context, _ in requests[::3]:
        scores = _one_by_one(params, [(context, [token]) for token in range(SHAPE.vocab_size)], shape=SHAPE)
        greedy.append((context, [int(np.argmax([score for score, _ in scores]))]))
    return requests + greedy


def _check(ours, theirs, requests):
    assert [score.num_tokens for score in ours] == [len(continuation) for _, continuation in requests]
    np.testing.assert_allclose([s.log_prob for s in ours], [s for s, _ in theirs], atol=2e-4)
    assert [s.is_greedy for s in ours] == [greedy for _, greedy in theirs]


@pytest.mark.parametrize("window", [None, 7])
def test_shared_contexts_give_what_each_request_gives_alone(window):
    """Windows shorter than a context with its continuation count a token's own past, not its row's."""
    shape = make_shape(sliding_window=window)
    params = make_params(shape)
    requests = _items(0, num_items=12, longest=30)
    mesh = make_mesh(recipe.Mesh(), jax.devices()[:1])
    ours = loglikelihoods(params, requests, shape=shape, settings=SETTINGS, mesh=mesh, name=None)
    _check(ours, _one_by_one(params, requests, shape=shape), requests)


@pytest.mark.parametrize("window", [None, 45])
def test_contexts_that_begin_alike_give_what_each_request_gives_alone(window, monkeypatch):
    """Two sets of examples of 150 tokens, nine questions each: rows of several blocks of attention, two levels."""
    shape = make_shape(sliding_window=window)
    params = make_params(shape)
    rng = np.random.default_rng(6)
    examples = [rng.integers(0, SHAPE.vocab_size, 150).tolist() for _ in range(2)]
    requests = [
        ([*examples[index % 2], *context], continuation)
        for index, (context, continuation) in enumerate(_items(7, num_items=18, longest=30))
    ]
    found = []
    monkeypatch.setattr(likelihoods, "lay_out_rows", lambda *a, **k: found.append(lay_out_rows(*a, **k)) or found[-1])
    mesh = make_mesh(recipe.Mesh(), jax.devices()[:1])
    ours = loglikelihoods(params, requests, shape=shape, settings=AUTO, mesh=mesh, name=None)
    _check(ours, _one_by_one(params, requests, shape=shape), requests)
    assert found[0].has_shared_beginnings and found[0].row_length > 256
    assert found[0].num_tokens < 0.4 * sum(len(context) for context, _ in requests[::3])


def test_the_models_own_token_is_greedy():
    params = make_params()
    requests = _with_greedy(params, _items(1, num_items=2, longest=10))
    mesh = make_mesh(recipe.Mesh(), jax.devices()[:1])
    ours = loglikelihoods(params, requests, shape=SHAPE, settings=SETTINGS, mesh=mesh, name=None)
    _check(ours, _one_by_one(params, requests, shape=SHAPE), requests)
    assert [score.is_greedy for score in ours[-2:]] == [True, True]


def test_long_contexts_are_cut_from_the_left_and_said(capsys):
    params = make_params()
    requests = _items(2, num_items=3, longest=40)
    mesh = make_mesh(recipe.Mesh(), jax.devices()[:1])
    ours = loglikelihoods(params, requests, shape=SHAPE, settings=SETTINGS, mesh=mesh, max_length=10)
    _check(ours, _one_by_one(params, requests, shape=SHAPE, max_length=10), requests)
    assert "of 9 contexts lost tokens from their start" in capsys.readouterr().err


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 16}])
def test_a_mesh_gives_what_one_device_gives(axes):
    """300 tokens a context: blocks of attention, and rows split over devices with filler among them."""
    params = make_params()
    requests = _items(3, num_items=7, longest=300)
    sizes = recipe.Mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | axes))
    num_devices = int(np.prod(list(axes.values())))
    results = []
    for mesh in (make_mesh(recipe.Mesh(), jax.devices()[:1]), make_mesh(sizes, jax.devices()[:num_devices])):
        placed = jax.device_put(params, tree_shardings(params, PARTITION_RULES, mesh))
        scores = loglikelihoods(
            placed, requests, shape=SHAPE, settings=SETTINGS, mesh=mesh, tokens_per_step=512, name=None
        )
        results.append([score.log_prob for score in scores])
    np.testing.assert_allclose(*results, atol=2e-4)


def test_a_call_compiles_one_program_and_the_same_again_none():
    """Six steps and more of unlike items, all of one shape."""
    options = {"shape": SHAPE, "settings": SETTINGS, "mesh": make_mesh(recipe.Mesh(), jax.devices()[:1])}
    requests = _items(4, num_items=40, longest=50)
    likelihoods._score.clear_cache()
    for _ in range(2):
        loglikelihoods(make_params(), requests, tokens_per_step=256, name=None, **options)
        assert likelihoods._score._cache_size() == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (([], [1]), "request 0: its context has no tokens"),
        (([1], []), "request 0: its continuation has no tokens"),
        (([1], [64]), "token id 64, but the model has ids 0 to 63"),
        (([1], [1] * 11), "11 tokens, more than the 10"),
    ],
)
def test_what_cannot_be_scored_is_refused(request_, message):
    mesh = make_mesh(recipe.Mesh(), jax.devices()[:1])
    with pytest.raises(InputError, match=message):
        loglikelihoods({}, [request_], shape=SHAPE, settings=SETTINGS, mesh=mesh, max_length=10)
    assert loglikelihoods({}, [], shape=SHAPE, settings=SETTINGS, mesh=mesh) == []
