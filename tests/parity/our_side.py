"""Log-probs that zephyr_jax computes, float32; compared live here and with tests/golden.

Not a test; needs no torch.
"""

from __future__ import annotations

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.small_models import SmallModel, write_folder
from zephyr_jax.model import mistral
from zephyr_jax.model.sources import open_weights
from zephyr_jax.recipe import ModelShape


def load_params(spec: str) -> tuple[mistral.Params, ModelShape]:
    """A model's float32 parameters on one device, and its shape."""
    source = open_weights(spec)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return source.load_params(jax.tree.map(lambda _: here, mistral.abstract_params(source.shape))), source.shape


def load_small_model(model: SmallModel, folder: pathlib.Path) -> tuple[mistral.Params, ModelShape]:
    """The small model by way of a Hugging Face folder, which is written to `folder`."""
    return load_params(str(write_folder(model, folder)))


def log_probs(params: mistral.Params, tokens: np.ndarray, *, shape: ModelShape, attention: str = "xla") -> np.ndarray:
    """float32 log-probs [B, T, V] of the next token at every position of int [B, T] tokens (no padding)."""
    settings = mistral.ModelSettings(compute_dtype="float32", attention=attention, remat="none")
    return np.asarray(_log_probs(params, jnp.asarray(tokens, jnp.int32), shape=shape, settings=settings))


@functools.partial(jax.jit, static_argnames=("shape", "settings"))
def _log_probs(
    params: mistral.Params, tokens_BT: jax.Array, *, shape: ModelShape, settings: mistral.ModelSettings
) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    hidden_BTD, head_VD = mistral.hidden_states_and_head(
        params,
        tokens_BT,
        shape=shape,
        settings=settings,
        positions_BT=positions_BT,
        segments_BT=jnp.ones_like(tokens_BT),
    )
    return jax.nn.log_softmax(jnp.einsum("BTD,VD->BTV", hidden_BTD, head_VD))
