"""Measured steps: the programs and numbers of `train`, the work in a batch counted right, nothing written."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from tests.pipeline.small_recipes import write_config
from tests.stages.small_runs import SHAPE, on_one_device
from zephyr_jax.model.visibility import Coordinates, visible
from zephyr_jax.recipe import load_recipe
from zephyr_jax.stages.ddpo import ddpo_batches, load_ddpo_data
from zephyr_jax.stages.dsft import dsft_batches, load_dsft_data, run_dsft
from zephyr_jax.stages.timing import step_work, time_stages


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return on_one_device(load_recipe(write_config(tmp_path_factory.mktemp("timing"))))


@pytest.fixture(scope="module")
def timings(run):
    """Of four steps each (dDPO has two, which come again), by stage."""
    with jax.set_mesh(run.mesh):
        measured = {timing.name: timing for timing in time_stages(run, num_steps=4)}
    assert not run.folder.exists()  # seen at once: a later test trains this run
    assert not list(run.folder.parent.glob("reference/*"))
    return measured


def test_every_stage_and_the_reference_pass_are_measured(timings):
    assert list(timings) == ["dsft", "reference", "ddpo"]
    for timing in timings.values():
        assert len(timing.step_seconds) == len(timing.works) == 4 and min(timing.step_seconds) > 0
        assert timing.programs and all(program.memory is not None for program in timing.programs)
    assert [timing.num_stage_steps for timing in timings.values()] == [3, 2, 2]
    assert not timings["reference"].losses and not timings["reference"].is_training


def test_the_work_is_that_of_the_batches(run, timings):
    """All 8 pairs are in the two steps, which were measured twice."""
    pairs = load_ddpo_data(run).train
    lengths = pairs.lengths.sum(axis=0)  # prompts, chosen, rejected
    for name in ("reference", "ddpo"):
        assert timings[name].total("num_row_tokens") == 2 * lengths.sum()
        assert timings[name].total("num_targets") == 2 * (lengths[1] + lengths[2])
        assert timings[name].total("num_tokens") == 2 * (lengths.sum() + lengths[0])


def test_the_steps_are_those_of_train(run, timings, monkeypatch):
    """The warm-up is one update more: the first measured loss is of the first batch after it.

    So `train`, given the first batch twice, has at its second step the loss of bench's first; and its programs are the
    same, since they are found in JAX's cache under the same key.
    """
    batch = type(dsft_batches(run, load_dsft_data(run))).batch
    monkeypatch.setattr(
        "zephyr_jax.data.loader.StepBatches.batch", lambda self, step, rows=None: batch(self, max(1, step - 1), rows)
    )
    with jax.set_mesh(run.mesh):
        run_dsft(run, load_dsft_data(run), on_evaluation=lambda *_: None)
    lines = [json.loads(line) for line in (run.folder / "dsft" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[1:3] == pytest.approx(timings["dsft"].losses[:2], rel=1e-6)


@pytest.mark.parametrize("window", [None, 5])
def test_visible_keys_are_counted_by_position(run, window):
    """Against the mask itself: dialogues in rows of their own, and pairs whose answers go on from the prompt's end."""
    for batches in (dsft_batches(run, load_dsft_data(run)), ddpo_batches(run, load_ddpo_data(run).train)):
        batch = batches.batch(1)
        where = Coordinates(*(batch[name][0] for name in ("positions", "segments", "branches")))
        mask_BTS = visible(where, where, window=window)
        real_BT = batch["segments"][0] > 0
        assert step_work(batch, window=window).num_visible == int(np.sum(np.asarray(mask_BTS)[real_BT]))


def test_a_trace_names_the_steps(run, tmp_path):
    recipe = run.recipe.model_copy(update={"stages": ("dsft",)})
    small = on_one_device(recipe)
    with jax.set_mesh(small.mesh):
        list(time_stages(small, num_steps=1, profile=tmp_path / "trace"))
    traces = list((tmp_path / "trace" / "dsft").glob("plugins/profile/*/*.xplane.pb"))
    assert len(traces) == 1 and b"dsft" in traces[0].read_bytes()


def test_the_small_model_is_the_one_measured(timings):
    """Parameters, two moments, float32: what the state takes; the step counts beside them are a few bytes."""
    assert SHAPE["num_hidden_layers"] == 2
    params = timings["reference"].state_bytes
    assert 3 * params < timings["ddpo"].state_bytes < 3 * params + 64
    assert timings["ddpo"].programs[0].memory.in_place >= 3 * params  # donated
