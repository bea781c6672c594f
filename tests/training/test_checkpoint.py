"""Checkpoints: the same state on any number of devices, the newest few kept, parameters readable on their own."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from tests.training.small_stages import SHAPE, make_params
from zephyr_jax.model.mistral import PARTITION_RULES, abstract_params
from zephyr_jax.recipe import Mesh
from zephyr_jax.records import InputError
from zephyr_jax.sharding import make_mesh, tree_shardings
from zephyr_jax.training.checkpoint import Checkpoints, load_params, saved_steps
from zephyr_jax.training.step import TrainState, init_state


def _host_state(seed: int = 0) -> TrainState:
    """Other numbers in every leaf, moments included."""
    params = make_params(seed)
    state = jax.device_get(init_state(params, optax.adamw(0.1)))
    random = np.random.default_rng(seed)
    moments = jax.tree.map(
        lambda leaf: random.standard_normal(leaf.shape).astype(leaf.dtype) if leaf.ndim else leaf + 7, state.opt_state
    )
    return TrainState(step=np.int32(0), params=params, opt_state=moments)


def _shardings(state: TrainState, num_devices: int) -> TrainState:
    mesh = make_mesh(Mesh(data=1, fsdp=num_devices, tensor=1), jax.devices()[:num_devices])
    return tree_shardings(state, PARTITION_RULES, mesh)


def _placed(state: TrainState, num_devices: int) -> TrainState:
    return jax.device_put(state, _shardings(state, num_devices))


def _wanted(state: TrainState, num_devices: int) -> TrainState:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        _shardings(state, num_devices),
    )


def _save(folder, *steps: int, keep: int = 10, num_devices: int = 1) -> None:
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(_placed(_host_state(step), num_devices), step=step, progress={"num_tokens": 10 * step})
    checkpoints.close()


@pytest.fixture(scope="module")
def saved_on_sixteen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sixteen") / "checkpoints"
    _save(folder, 3, num_devices=16)
    return folder


@pytest.mark.parametrize("num_devices", [1, 4, 16])
def test_a_checkpoint_of_sixteen_devices_is_restored_on_any_number(num_devices, saved_on_sixteen):
    state = _host_state(3)
    wanted = _wanted(state, num_devices)
    checkpoints = Checkpoints(saved_on_sixteen, keep=10)
    restored, progress = checkpoints.restore(wanted)
    checkpoints.close()
    assert progress == {"step": 3, "num_tokens": 30} and restored.step == 3
    jax.tree.map(np.testing.assert_array_equal, restored.replace(step=np.int32(0)), state)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == jax.tree.map(lambda leaf: leaf.sharding, wanted)
    assert jax.tree.map(lambda leaf: leaf.dtype, restored) == jax.tree.map(lambda leaf: leaf.dtype, state)


def test_the_newest_checkpoints_are_kept(tmp_path):
    _save(tmp_path / "checkpoints", 2, 4, 6, 8, keep=2)
    assert saved_steps(tmp_path / "checkpoints") == [6, 8]
    assert Checkpoints(tmp_path / "checkpoints", keep=2).latest_step() == 8


def test_a_state_may_be_overwritten_as_soon_as_save_returns(tmp_path):
    """The next step's donation frees the buffers while the background thread is still writing."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    state = _placed(_host_state(), 1)
    checkpoints.save(state, step=1, progress={})
    jax.tree.map(lambda leaf: leaf.delete(), state)
    checkpoints.close()
    params, _ = load_params(tmp_path / "checkpoints", step=1, abstract_params=_wanted(_host_state(), 1).params)
    jax.tree.map(np.testing.assert_array_equal, params, make_params())


def test_a_step_that_is_saved_already_is_not_saved_again(tmp_path):
    _save(tmp_path / "checkpoints", 5, 5)
    assert saved_steps(tmp_path / "checkpoints") == [5]


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    """What a kill in the middle of writing leaves behind: a folder under a temporary name."""
    _save(tmp_path / "checkpoints", 2)
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
    assert saved_steps(tmp_path / "checkpoints") == [2]
    assert Checkpoints(tmp_path / "checkpoints", keep=2).latest_step() == 2


def test_parameters_are_read_without_the_optimizer_state(tmp_path):
    """Of the newest checkpoint, or of the one asked for; the caller knows nothing of the optimizer."""
    folder = tmp_path / "checkpoints"
    _save(folder, 2, 4)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_params(SHAPE),
        _shardings(_host_state(), 4).params,
    )
    for step, found in ((None, 4), (2, 2)):
        params, of_step = load_params(folder, step=step, abstract_params=abstract)
        assert of_step == found
        jax.tree.map(np.testing.assert_array_equal, params, make_params(found))


def test_a_missing_checkpoint_is_an_error_that_says_which_there_are(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_params(tmp_path / "checkpoints", step=None, abstract_params={})
    assert saved_steps(tmp_path / "checkpoints") == []
    _save(tmp_path / "checkpoints", 2, 4)
    with pytest.raises(InputError, match="no checkpoint of step 3; there are steps 2, 4"):
        load_params(tmp_path / "checkpoints", step=3, abstract_params={})
