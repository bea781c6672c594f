"""Probabilities of the next token: those of a full forward pass, whatever the batch and the mesh."""

from __future__ import annotations

import functools

import jax
import numpy as np

from tests.generation.random_models import SETTINGS, SHAPE, make_params, make_prompts
from zephyr_jax import recipe, sharding
from zephyr_jax.generation.choices import iterate_choice_logprobs
from zephyr_jax.model.decoder import prepare_params
from zephyr_jax.model.mistral import PARTITION_RULES, abstract_params, hidden_states_and_head

CHOICES = [3, 60, 17]


def _by_full_forward(prompts: list[np.ndarray]) -> np.ndarray:
    lengths_B = np.array([len(prompt) for prompt in prompts])
    ids_BT = np.zeros((len(prompts), max(lengths_B)), np.int32)
    for ids_T, prompt in zip(ids_BT, prompts, strict=True):
        ids_T[: len(prompt)] = prompt
    positions_BT = np.broadcast_to(np.arange(ids_BT.shape[1]), ids_BT.shape)
    segments_BT = (positions_BT < lengths_B[:, None]).astype(np.int32)
    forward = jax.jit(functools.partial(hidden_states_and_head, shape=SHAPE, settings=SETTINGS))
    hidden_BTD, head_VD = forward(make_params(), ids_BT, positions_BT=positions_BT, segments_BT=segments_BT)
    logits_BV = np.asarray(hidden_BTD[np.arange(len(prompts)), lengths_B - 1] @ head_VD.T, np.float64)
    return (logits_BV - np.log(np.exp(logits_BV).sum(-1, keepdims=True)))[:, CHOICES]


def _choices(params, prompts: list[np.ndarray], batch_size: int, mesh=None) -> np.ndarray:
    options = {"choice_ids": CHOICES, "shape": SHAPE, "batch_size": batch_size, "mesh": mesh}
    found: dict[int, np.ndarray] = {}
    for batch in iterate_choice_logprobs(params, prompts, **options):
        found |= batch
    return np.stack([found[index] for index in range(len(prompts))])


def test_they_are_those_of_a_full_forward_pass() -> None:
    prompts = make_prompts(5, 40, 1, 33, 12)
    expected = _by_full_forward(prompts)
    params = prepare_params(make_params(), shape=SHAPE, dtype="float32", mesh=None)
    np.testing.assert_allclose(_choices(params, prompts, 3), expected, rtol=1e-4, atol=1e-5)


def test_a_mesh_gives_the_same() -> None:
    prompts = make_prompts(5, 40, 7)
    mesh = sharding.make_mesh(recipe.Mesh(data=2, fsdp=4, tensor=2))
    placed = jax.device_put(make_params(), sharding.tree_shardings(abstract_params(SHAPE), PARTITION_RULES, mesh))
    params = prepare_params(placed, shape=SHAPE, dtype="float32", mesh=mesh)
    expected = _by_full_forward(prompts)
    np.testing.assert_allclose(_choices(params, prompts, 2, mesh), expected, rtol=1e-4, atol=1e-5)
