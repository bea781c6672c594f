"""One row of the table for each leaf, meshes that fit, and the same training on 1 and on 16 devices."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from tests.generation.random_models import make_shape
from tests.training.small_stages import (
    SHAPE,
    assert_close,
    dpo,
    dpo_options,
    for_device,
    make_dialogues,
    make_pairs,
    pair_batches,
    run_steps,
    sft,
    sft_batches,
)
from zephyr_jax.model import blockwise_attention, pallas_attention
from zephyr_jax.model.mistral import PARTITION_RULES, ModelSettings, abstract_params, init_params
from zephyr_jax.recipe import Mesh
from zephyr_jax.records import InputError
from zephyr_jax.sharding import (
    batch_shardings,
    describe_mesh,
    local_rows,
    make_mesh,
    num_row_shards,
    path_text,
    place_batch,
    tree_shardings,
)
from zephyr_jax.training.objectives import dpo_objective
from zephyr_jax.training.step import init_state

SIXTEEN = Mesh(data=1, fsdp=16, tensor=1)


@pytest.fixture(autouse=True, scope="module")
def _sixteen_devices():
    if len(jax.devices()) < 16:
        pytest.skip("needs 16 devices: XLA_FLAGS=--xla_force_host_platform_device_count=16")


def _abstract(**leaves):
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in leaves.items()}


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_and_every_moment_matches_exactly_one_row(tied):
    """Parameters and AdamW's two moments lie alike; what is left of the state are scalars."""
    shape, mesh = make_shape(tie_word_embeddings=tied), make_mesh(Mesh(data=2, fsdp=4, tensor=2))
    state = jax.eval_shape(lambda params: init_state(params, optax.adamw(0.1)), abstract_params(shape))
    shardings = tree_shardings(state, PARTITION_RULES, mesh)
    (adam, *_), params = shardings.opt_state, shardings.params
    assert adam.mu == params and adam.nu == params
    assert adam.count.is_fully_replicated and shardings.step.is_fully_replicated
    assert params["layers"]["attention"]["query"].spec == PartitionSpec(None, "fsdp", "tensor", None)


def test_every_row_of_the_table_is_used():
    mesh = make_mesh(SIXTEEN)
    for row in PARTITION_RULES:
        others = [other for other in PARTITION_RULES if other is not row]
        with pytest.raises(ValueError, match="matches no row, wanted exactly one"):
            tree_shardings(abstract_params(SHAPE), others, mesh)


def test_a_leaf_that_matches_two_rows_is_an_error_that_names_both():
    rules = [("layers/.*", PartitionSpec()), (r"layers/gate", PartitionSpec("fsdp"))]
    with pytest.raises(ValueError, match=r"layers/gate \(16,\) matches 'layers/\.\*' and 'layers/gate', wanted"):
        tree_shardings({"layers": _abstract(gate=(16,))}, rules, make_mesh(SIXTEEN))


def test_a_rule_matches_whole_names_only():
    """`head` is neither `overhead` nor `head/scale`; with a path in front, as in moments, it is the same leaf."""
    mesh, rules = make_mesh(SIXTEEN), [("head", PartitionSpec("fsdp"))]
    for tree in (_abstract(overhead=(16,)), {"head": _abstract(scale=(16,))}):
        with pytest.raises(ValueError, match="matches no row"):
            tree_shardings(tree, rules, mesh)
    assert tree_shardings({"mu": _abstract(head=(16,))}, rules, mesh)["mu"]["head"].spec == PartitionSpec("fsdp")


def test_a_dimension_that_cannot_be_divided_is_refused_with_the_divisors():
    """fsdp 16 does not divide the model's 24 dimensions: 1, 2, 3, 4, 6, 8, 12, 24 would."""
    with pytest.raises(InputError) as refusal:
        tree_shardings(_abstract(head=(64, 24)), PARTITION_RULES, make_mesh(SIXTEEN))
    assert str(refusal.value) == (
        "mesh.fsdp: got 16, which does not divide a dimension of 24 in parameter head (64, 24); "
        "wanted one of 1, 2, 3, 4, 6, 8, 12, 24"
    )


def test_key_value_heads_that_cannot_be_divided_are_refused_with_what_divides_all_that_the_axis_splits():
    """4 divides the 4 heads and the 48 of the feed-forward, not the 2 key/value heads: 1 and 2 divide all of them."""
    with pytest.raises(InputError) as refusal:
        tree_shardings(abstract_params(SHAPE), PARTITION_RULES, make_mesh(Mesh(data=1, fsdp=4, tensor=4)))
    assert str(refusal.value) == (
        "mesh.tensor: got 4, which does not divide a dimension of 2 in parameter layers/attention/key (2, 32, 2, 8); "
        "wanted one of 1, 2"
    )


def test_open_axis_takes_the_devices_that_are_left():
    assert dict(make_mesh(Mesh()).shape) == {"data": 1, "fsdp": 16, "tensor": 1}
    mesh = make_mesh(Mesh(data=-1, fsdp=2, tensor=2), jax.devices()[:8])
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert num_row_shards(mesh) == 4
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))


@pytest.mark.parametrize(
    ("mesh", "wanted"),
    [
        (Mesh(data=3, fsdp=-1, tensor=1), "which does not divide 16"),
        (Mesh(data=2, fsdp=4, tensor=1), "takes 8 devices, but there are 16"),
        (Mesh(data=8, fsdp=4, tensor=1), "takes 32 devices, but there are 16"),
    ],
)
def test_devices_that_cannot_fill_the_mesh_are_an_error(mesh, wanted):
    with pytest.raises(InputError, match=wanted):
        make_mesh(mesh)


@dataclasses.dataclass(frozen=True)
class _Device:
    """What a mesh asks of a device."""

    id: int
    process_index: int
    platform: str = "gpu"


def _ids(mesh):
    return [[device.id for device in row.flat] for row in mesh.devices]


def test_hybrid_mesh_replicates_across_hosts_and_shards_within():
    """Two hosts of eight devices, whose ids come in any order: data goes over the hosts."""
    devices = [_Device(id=i, process_index=i // 8) for i in (3, 15, 0, 8, 9, 1, 2, 4, 12, 13, 5, 6, 14, 7, 10, 11)]
    mesh = make_mesh(Mesh(data=2, fsdp=8, tensor=1), devices)
    assert _ids(mesh) == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]]
    assert describe_mesh(mesh) == "data 2 (across hosts) x fsdp 8 (within a host) x tensor 1"
    assert describe_mesh(make_mesh(SIXTEEN, devices)) == "data 1 x fsdp 16 (across hosts) x tensor 1"
    mesh = make_mesh(Mesh(data=2, fsdp=4, tensor=2), devices)
    assert describe_mesh(mesh) == "data 2 (across hosts) x fsdp 4 (within a host) x tensor 2 (within a host)"


def test_processes_that_were_dealt_out_to_hosts_in_turn_are_put_together_again():
    """One process a GPU, four on each of two hosts, ranks 0, 2, 4, 6 on the first."""
    devices = [_Device(id=i, process_index=i) for i in range(8)]
    hosts = ["a", "b"] * 4
    mesh = make_mesh(Mesh(data=2, fsdp=4, tensor=1), devices, hosts=hosts)
    assert _ids(mesh) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert describe_mesh(mesh, hosts=hosts) == "data 2 (across hosts) x fsdp 4 (within a host) x tensor 1"


def test_paths_are_slashes_through_dicts_tuples_and_fields():
    state = jax.eval_shape(lambda params: init_state(params, optax.adamw(0.1)), abstract_params(SHAPE))
    paths = {path_text(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    assert {"step", "params/layers/mlp/gate", "opt_state/0/mu/layers/mlp/gate", "opt_state/0/count"} <= paths


def test_each_device_gets_its_own_rows_and_all_of_the_pairs():
    mesh = make_mesh(Mesh(data=2, fsdp=4, tensor=2))
    batch = for_device(next(pair_batches(make_pairs(8), row_multiple=8).batches()), references=True)
    placed = place_batch(batch, mesh)
    assert {name: array.sharding for name, array in placed.items()} == batch_shardings(batch, mesh)
    num_rows = batch["tokens"].shape[1]
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name])
        rows = array.addressable_shards[0].data.shape[1]
        assert rows == (num_rows // 8 if array.ndim == 3 else batch[name].shape[1]), name


def test_rows_of_a_process_are_one_run_of_them_whatever_the_mesh():
    """All sixteen devices are this process's, so all rows are; what is placed from them is what was given."""
    batch = for_device(next(pair_batches(make_pairs(8), row_multiple=16).batches()))
    num_rows = batch["tokens"].shape[1]
    for sizes in (SIXTEEN, Mesh(data=2, fsdp=4, tensor=2)):
        mesh = make_mesh(sizes)
        assert local_rows(mesh, num_rows) == slice(0, num_rows)
        for name, array in place_batch(batch, mesh, num_rows=num_rows).items():
            np.testing.assert_array_equal(array, batch[name])


def test_random_parameters_are_the_same_on_every_mesh():
    """One seed, one model: what a run starts from must not depend on its devices."""
    start = jax.jit(init_params, static_argnums=1)
    alone = jax.device_get(start(jax.random.key(3), SHAPE))
    for sizes in (SIXTEEN, Mesh(data=4, fsdp=2, tensor=2)):
        mesh = make_mesh(sizes)
        shardings = tree_shardings(abstract_params(SHAPE), PARTITION_RULES, mesh)
        with jax.set_mesh(mesh):
            sharded = jax.jit(init_params, static_argnums=1, out_shardings=shardings)(jax.random.key(3), SHAPE)
        assert_close(sharded, alone, tolerance=1e-6)


def _dpo_batches():
    made = pair_batches(make_pairs(15), shuffle=False, row_multiple=16)  # 8 pairs, then 7: on all meshes the same rows
    return [for_device(batch, references=True) for batch in made.batches()]


@pytest.fixture(scope="module")
def on_one_device():
    return run_steps(dpo(), _dpo_batches(), optimizer=optax.adam(0.01), max_grad_norm=0.5)


@pytest.mark.parametrize(
    "mesh",
    [
        SIXTEEN,
        Mesh(data=2, fsdp=4, tensor=2),
        Mesh(data=4, fsdp=1, tensor=1),
        Mesh(data=1, fsdp=1, tensor=2),
    ],
    ids=["fsdp16", "data2_fsdp4_tensor2", "data4", "tensor2"],
)
def test_ddpo_is_the_same_on_one_device_and_on_many(mesh, on_one_device):
    """Metrics of two clipped steps; the first moment, which is the gradient to a factor; the parameters."""
    state, metrics = run_steps(dpo(), _dpo_batches(), optimizer=optax.adam(0.01), mesh=mesh, max_grad_norm=0.5)
    alone, wanted = on_one_device
    assert wanted[0]["grad_norm"] > 0.5 and wanted[1]["loss"] != wanted[0]["loss"]
    # The second step's margin, -0.44, is a difference of sums ten times as large, of parameters that Adam has moved.
    assert_close(metrics, wanted, tolerance=5e-5)
    assert_close(state.opt_state[0].mu, alone.opt_state[0].mu, tolerance=1e-4)
    assert_close(state.opt_state[0].nu, alone.opt_state[0].nu, tolerance=1e-4)
    # Adam's m / sqrt(v) turns rounding of a gradient near 0 into a visible part of the step of 0.01.
    assert_close(state.params, alone.params, tolerance=5e-4)


@pytest.mark.parametrize(
    "dtype, tolerance, platform, remat",
    [("float32", 2e-5, "cpu", "attention"), ("bfloat16", 0.03, "gpu", "attention"), ("float32", 2e-5, "gpu", "none")],
)
def test_blockwise_attention_is_the_same_on_sixteen_devices(dtype, tolerance, platform, remat, monkeypatch):
    """Rows of 64 tokens in blocks of 16, heads split over `tensor`, attention's results kept for the backward pass.

    The program for GPUs casts the weights before the layers, gathers each once a pass, and visits all causal blocks.
    """
    monkeypatch.setattr(blockwise_attention, "MAX_BLOCK_TOKENS", 16)
    objective = dpo(settings=ModelSettings(dtype, "blockwise", remat, platform))
    sgd = optax.sgd(0.5)
    one, many = (
        run_steps(objective, _dpo_batches(), optimizer=sgd, mesh=mesh)
        for mesh in (None, Mesh(data=2, fsdp=4, tensor=2))
    )
    assert_close(many[1], one[1], tolerance=tolerance)
    assert_close(many[0].params, one[0].params, tolerance=2 * tolerance)  # two steps of 0.5 times the gradient


def test_pallas_attention_on_sixteen_devices_learns_what_dense_attention_does_on_one(monkeypatch):
    """The program for GPUs, its kernels interpreted: each device runs them on its own rows and heads.

    Heads of 64, rows of 64 tokens in two blocks, attention's results kept for the backward pass.
    """
    monkeypatch.setattr(pallas_attention, "INTERPRET", True)
    shape = SHAPE.model_copy(update={"head_dim": 64, "num_hidden_layers": 1})

    def run(attention: str, mesh: Mesh | None = None):
        settings = ModelSettings("float32", attention, "attention", "gpu")
        objective = dpo_objective(dpo_options(), shape=shape, settings=settings)
        return run_steps(objective, _dpo_batches(), optimizer=optax.sgd(0.5), mesh=mesh, shape=shape)

    one, many = run("xla"), run("pallas", Mesh(data=2, fsdp=4, tensor=2))
    assert_close(many[1], one[1], tolerance=1e-4)  # a reward of 0.02 is a difference of sums of 40
    assert_close(many[0].params, one[0].params, tolerance=4e-5)


def test_dsft_with_accumulation_is_the_same_on_one_device_and_on_sixteen():
    made = sft_batches(make_dialogues(20), shuffle=False, packing=False, micro_batch_size=4, row_multiple=16)
    batches = [for_device(batch) for batch in made.batches()]
    one, sixteen = (run_steps(sft(), batches, optimizer=optax.sgd(0.5), mesh=mesh) for mesh in (None, SIXTEEN))
    assert_close(sixteen[1], one[1], tolerance=2e-5)
    assert_close(sixteen[0].params, one[0].params, tolerance=2e-5)


def test_parameters_and_moments_are_split_sixteen_ways_and_only_norm_scales_are_whole():
    state, _ = run_steps(dpo(), _dpo_batches()[:1], optimizer=optax.adam(0.01), mesh=SIXTEEN)
    split = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
        shard = leaf.addressable_shards[0].data
        if leaf.ndim and not path_text(path).endswith("scale"):
            assert shard.size * 16 == leaf.size, path_text(path)
            split += 1
        else:
            assert leaf.size <= SHAPE.hidden_size * SHAPE.num_hidden_layers
    assert split == 3 * 9  # embedding, head, four of attention, three of the feed-forward; and their moments
