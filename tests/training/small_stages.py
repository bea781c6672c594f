"""Small dialogues and pairs of ids, a small model, and train steps over them on any mesh. Not a test."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from zephyr_jax import recipe
from zephyr_jax.data.encoded import EncodedConversations, EncodedPairs
from zephyr_jax.data.loader import PairBatches, SftBatches
from zephyr_jax.data.packing import MicroBatch
from zephyr_jax.model.mistral import PARTITION_RULES, ModelSettings, abstract_params
from zephyr_jax.recipe import Ddpo, Dsft, ModelShape
from zephyr_jax.sharding import make_mesh, place_batch, replicated, tree_shardings
from zephyr_jax.training.loop import HOST_ARRAYS
from zephyr_jax.training.objectives import Objective, dpo_objective, sft_objective
from zephyr_jax.training.step import TrainState, init_state, make_train_step

# 16 divides what a mesh splits. The window is shorter than a pair.
SHAPE = ModelShape(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    vocab_size=64,
    sliding_window=16,
)
SETTINGS = ModelSettings(compute_dtype="float32")


def make_dialogues(num_dialogues: int, *, seed: int = 0, longest: int = 30) -> EncodedConversations:
    """Random ids; the later part of each dialogue is its answer, so that numbers of targets differ widely."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, longest + 1, num_dialogues)
    return EncodedConversations.collect(
        (i, random.integers(0, SHAPE.vocab_size, length), np.arange(length) >= random.integers(1, length))
        for i, length in enumerate(lengths)
    )


def make_pairs(num_pairs: int, *, seed: int = 0, longest: int = 14) -> EncodedPairs:
    """Random ids; prompts and answers of 2 to `longest` tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, longest + 1, (num_pairs, 3))
    return EncodedPairs.collect(
        (i, *(random.integers(0, SHAPE.vocab_size, length) for length in row)) for i, row in enumerate(lengths)
    )


def make_params(seed: int = 0, shape: ModelShape = SHAPE) -> dict[str, Any]:
    """Parameters as numpy arrays: matrices of about 1 / sqrt(32), norm scales around 1."""
    random = np.random.default_rng(seed)

    def leaf(path: Any, abstract: jax.ShapeDtypeStruct) -> np.ndarray:
        is_scale = path[-1].key == "scale"
        values = random.uniform(0.5, 1.5, abstract.shape) if is_scale else random.normal(0, 0.18, abstract.shape)
        return values.astype(np.float32)

    return jax.tree.map_with_path(leaf, abstract_params(shape))


ROWS = {"train": ["rows.jsonl"], "eval": ["rows.jsonl"]}


def sft_options(**changes: Any) -> Dsft:
    """Options of dSFT for the small model."""
    given = {
        "data": ROWS,
        "max_length": 64,
        "batch_size": 8,
        "learning_rate": 0.01,
    }
    return Dsft.model_validate(given | {"warmup_ratio": 0.0} | changes)


def dpo_options(**changes: Any) -> Ddpo:
    """Options of dDPO for the small model."""
    given = {
        "data": ROWS,
        "max_length": 32,
        "max_prompt_length": 16,
        "row_length": 64,
    }
    given |= {"batch_size": 8, "learning_rate": 0.01, "beta": 0.5, "warmup_ratio": 0.0}
    return Ddpo.model_validate(given | changes)


def sft_batches(dialogues: EncodedConversations, **options: Any) -> SftBatches:
    """Step batches of dialogues."""
    return SftBatches(dialogues, **{"max_length": 64, "packing": True, "batch_size": 8} | options)


def pair_batches(pairs: EncodedPairs, **options: Any) -> PairBatches:
    """Step batches of pairs."""
    return PairBatches(pairs, **{"layout": "packed", "row_length": 64, "batch_size": 8} | options)


def for_device(batch: MicroBatch, *, references: bool = False) -> dict[str, np.ndarray]:
    """What the objective reads of a step batch; with made-up reference log-probs, which depend on the pair alone."""
    arrays = {name: array for name, array in batch.items() if name not in HOST_ARRAYS}
    if references:
        rows_AP, real_AP = batch["pair_rows"], batch["pair_weights"] > 0
        arrays["reference_chosen"] = np.where(real_AP, -40 - 3 * np.sin(rows_AP), 0).astype(np.float32)
        arrays["reference_rejected"] = np.where(real_AP, -42 + 3 * np.cos(rows_AP), 0).astype(np.float32)
    return arrays


def sft() -> Objective:
    """The objective of dSFT on the small model."""
    return sft_objective(shape=SHAPE, settings=SETTINGS)


def dpo(*, settings: ModelSettings = SETTINGS, **changes: Any) -> Objective:
    """The objective of dDPO on the small model."""
    return dpo_objective(dpo_options(**changes), shape=SHAPE, settings=settings)


def run_steps(
    objective: Objective,
    batches: list[dict[str, np.ndarray]],
    *,
    optimizer: optax.GradientTransformation,
    mesh: recipe.Mesh | None = None,
    max_grad_norm: float | None = None,
    shape: ModelShape = SHAPE,
) -> tuple[TrainState, list[dict[str, float]]]:
    """Trains a step a batch, all of one shape, from `make_params`; the state stays where the mesh has put it.

    Args:
      objective: what is learnt.
      batches: step batches of host arrays.
      optimizer: the gradient transformation.
      mesh: sizes of a mesh over as many of the devices as it needs; None: the first device alone.
      max_grad_norm: of the step.
      shape: of the model that the objective is about.

    Returns:
      The state after the last step, and each step's metrics.
    """
    mesh = recipe.Mesh(data=1, fsdp=1, tensor=1) if mesh is None else mesh
    built = make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    state = init_state(make_params(shape=shape), optimizer)
    shardings = tree_shardings(state, PARTITION_RULES, built)
    step = jax.jit(
        make_train_step(objective, optimizer, schedule=lambda count: 0.0 * count, max_grad_norm=max_grad_norm),
        in_shardings=(shardings, None),
        out_shardings=(shardings, replicated(built)),
        donate_argnums=0,
    )
    metrics = []
    with jax.set_mesh(built):
        state = jax.device_put(state, shardings)
        for batch in batches:
            state, one = step(state, place_batch(batch, built))
            metrics.append({name: float(value) for name, value in jax.device_get(one).items()})
    return state, metrics


def assert_close(left: Any, right: Any, *, tolerance: float) -> None:
    """Every leaf of two trees within `tolerance` of the larger one's largest value."""
    left, right = jax.device_get(left), jax.device_get(right)

    def compare(path: Any, a: Any, b: Any) -> None:
        bound = tolerance * max(np.abs(a).max(), np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))

    jax.tree.map_with_path(compare, left, right)
