"""Small random models whose greedy answers wander, and greedy decoding the slow way: the whole text in every step."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zephyr_jax.model.mistral import ModelSettings, hidden_states_and_head, init_params
from zephyr_jax.recipe import ModelShape

SETTINGS = ModelSettings(compute_dtype="float32")
# 16 divides what a mesh splits.
SHAPE = ModelShape(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    vocab_size=64,
)


def make_shape(**changes: Any) -> ModelShape:
    """SHAPE with other values."""
    return ModelShape(**{**SHAPE.model_dump(), **changes})


@functools.cache
def make_params(shape: ModelShape = SHAPE, seed: int = 0) -> dict[str, Any]:
    """Matrices nine times the usual size, about 1 / sqrt(32), so that the next token depends on the text."""
    return jax.tree.map(lambda leaf: leaf * (9 if leaf.std() > 0 else 1), init_params(jax.random.key(seed), shape))


def make_prompts(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    """A prompt of random ids for each length."""
    random = np.random.default_rng(seed)
    return [random.integers(0, SHAPE.vocab_size, length).astype(np.int32) for length in lengths]


def greedy_by_full_forward(
    params: dict[str, Any], prompts: list[np.ndarray], num_tokens: int, *, shape: ModelShape
) -> list[list[int]]:
    """The `num_tokens` most likely tokens after each prompt: no cache, and nothing between a prompt and its answer."""
    lengths_B = np.array([len(prompt) for prompt in prompts])
    ids_BT = np.zeros((len(prompts), max(lengths_B) + num_tokens), np.int32)
    for ids_T, prompt in zip(ids_BT, prompts, strict=True):
        ids_T[: len(prompt)] = prompt
    rows_B = np.arange(len(prompts))
    for step in range(num_tokens):
        ids_BT[rows_B, lengths_B + step] = _next_tokens(params, ids_BT, lengths_B + step, shape=shape)
    return [ids_BT[row, length : length + num_tokens].tolist() for row, length in enumerate(lengths_B)]


@functools.partial(jax.jit, static_argnames="shape")
def _next_tokens(params: dict[str, Any], ids_BT: jax.Array, lengths_B: jax.Array, *, shape: ModelShape) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1]), ids_BT.shape)
    hidden_BTD, head_VD = hidden_states_and_head(
        params,
        ids_BT,
        shape=shape,
        settings=SETTINGS,
        positions_BT=positions_BT,
        segments_BT=(positions_BT < lengths_B[:, None]).astype(jnp.int32),
    )
    last_BD = hidden_BTD[jnp.arange(len(ids_BT)), lengths_B - 1]
    return jnp.argmax(last_BD @ head_VD.T, axis=-1)
