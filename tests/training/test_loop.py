"""The loop with a model of one matrix: what is logged, evaluated and saved when, and going on after interruptions."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small_stages import (
    SHAPE,
    assert_close,
    dpo,
    dpo_options,
    for_device,
    make_dialogues,
    make_pairs,
    make_params,
    pair_batches,
    sft,
    sft_batches,
    sft_options,
)
from zephyr_jax.compilation import compile_ahead, count_compilations
from zephyr_jax.data.loader import SftBatches
from zephyr_jax.model.mistral import abstract_params
from zephyr_jax.recipe import Mesh
from zephyr_jax.records import InputError
from zephyr_jax.sharding import make_mesh
from zephyr_jax.training.checkpoint import saved_steps
from zephyr_jax.training.loop import StageTask, evaluate_batches, run_stage
from zephyr_jax.training.objectives import Totals

TIMES = ("tokens_per_second", "step_seconds", "data_wait_share")  # never the same twice
ABSTRACT = {"head": jax.ShapeDtypeStruct((64, 64), np.float32)}


def _bigrams(params, batch):
    """-log softmax(head[token])[next token] over the targets: one matrix, compiled in no time."""
    sources = jnp.take_along_axis(batch["tokens"], batch["target_sources"], axis=1)
    log_probs = jnp.take_along_axis(
        jax.nn.log_softmax(params["head"][sources]), batch["target_ids"][..., None], axis=-1
    )
    weights = batch["target_weights"]
    total, count = -jnp.sum(log_probs[..., 0] * weights), jnp.sum(weights)
    return Totals(total, count, {"doubled": (2 * total, count)}, {})


def _start(shardings):
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    return {"head": jax.device_put(values, shardings["head"])}


def _task(folder, *, dialogues=None, **changes) -> StageTask:
    """30 dialogues in batches of 4 rows: 8 steps, the last of 2 rows."""
    fields = {field.name for field in dataclasses.fields(StageTask)}
    options = sft_options(
        batch_size=4, schedule="linear", **{key: value for key, value in changes.items() if key not in fields}
    )
    batches = sft_batches(
        dialogues or make_dialogues(30),
        packing=False,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        epochs=options.epochs,
        max_steps=options.max_steps,
        row_multiple=16,
    )
    folder.mkdir(exist_ok=True)
    task = StageTask(
        name="dsft",
        folder=folder,
        options=options,
        objective=_bigrams,
        abstract_params=ABSTRACT,
        load_params=_start,
        batches=batches,
        complete=lambda batch: batch,
    )
    return dataclasses.replace(task, **{key: value for key, value in changes.items() if key in fields})


def _run(task: StageTask, *, num_devices: int = 1):
    mesh = make_mesh(Mesh(data=1, fsdp=num_devices, tensor=1), jax.devices()[:num_devices])
    with jax.set_mesh(mesh):
        return run_stage(task, mesh=mesh)


def _lines(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def _losses(folder) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in _lines(folder) if "loss" in line}


def _head(result) -> np.ndarray:
    return np.asarray(result.params["head"])


class _Crash(Exception):
    """What interrupts a run here."""


def _crashing_at(step: int, *, task: StageTask, saved: int):
    """Batches up to `step`, where the run ends with _Crash, once the checkpoint of step `saved` is on disk."""
    calls = iter(range(1000))  # the first is what the train step is compiled for

    def complete(batch):
        if next(calls) == step:
            deadline = time.monotonic() + 20
            while saved and not (task.folder / "checkpoints" / str(saved)).is_dir() and time.monotonic() < deadline:
                time.sleep(0.01)
            raise _Crash
        return batch

    return dataclasses.replace(task, complete=complete)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A run of 8 steps from start to end: its folder and its result."""
    folder = tmp_path_factory.mktemp("untouched") / "dsft"
    result = _run(_task(folder, evaluate=lambda params, step: {"loss": float(jnp.sum(params["head"]))}, eval_every=3))
    return folder, result


def test_every_step_is_logged_with_the_contracts_metrics(untouched):
    folder, _ = untouched
    steps = [line for line in _lines(folder) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    names = {"step", "epoch", "loss", "grad_norm", "learning_rate", "num_tokens", "doubled"}
    assert all(set(line) == names for line in steps)
    raw = json.loads((folder / "metrics.jsonl").read_text().splitlines()[1])
    assert set(raw) == names | set(TIMES) and raw["step_seconds"] > 0
    assert raw["tokens_per_second"] == pytest.approx(raw["num_tokens"] / raw["step_seconds"])


def test_tokens_are_cumulative_and_epochs_are_shares(untouched):
    """8 steps an epoch: step 2 is a quarter. All tokens of the 30 dialogues have been read in the end."""
    steps = [line for line in _lines(untouched[0]) if "loss" in line]
    assert [line["epoch"] for line in steps] == [step / 8 for step in range(1, 9)]
    assert steps[-1]["num_tokens"] == make_dialogues(30).lengths.sum() == untouched[1].num_tokens
    assert all(b["num_tokens"] > a["num_tokens"] for a, b in zip(steps[:-1], steps[1:], strict=True))


def test_learning_rate_is_the_one_used_by_hand(untouched):
    """Linear over 8 steps of rate 0.01 without warm-up: step k uses 0.01 (1 - (k - 1) / 8)."""
    rates = [line["learning_rate"] for line in _lines(untouched[0]) if "loss" in line]
    assert rates == pytest.approx([0.01 * (1 - k / 8) for k in range(8)])


def test_evaluated_before_the_first_step_every_so_often_and_after_the_last(untouched):
    """Lines of their own, each behind its step's line."""
    lines = [(line["step"], "eval/loss" in line) for line in _lines(untouched[0])]
    assert [step for step, is_eval in lines if is_eval] == [0, 3, 6, 8]
    assert lines[0] == (0, True) and lines[3:5] == [(3, False), (3, True)] and lines[-1] == (8, True)
    assert untouched[1].eval_metrics == _lines(untouched[0])[-1]


def test_what_is_evaluated_are_the_parameters_after_the_step(untouched):
    assert untouched[1].eval_metrics["eval/loss"] == pytest.approx(float(_head(untouched[1]).sum()), rel=1e-4)


def test_an_evaluation_that_falls_on_the_last_step_happens_once(tmp_path):
    _run(_task(tmp_path / "dsft", evaluate=lambda params, step: {"loss": 1.0}, eval_every=2, max_steps=4))
    assert [line["step"] for line in _lines(tmp_path / "dsft") if "eval/loss" in line] == [0, 2, 4]


def test_log_every_leaves_out_steps_but_not_the_first_the_last_nor_any_token(tmp_path, untouched):
    _run(_task(tmp_path / "dsft", log_every=3))
    wanted = [line for line in _lines(untouched[0]) if line["step"] in (1, 3, 6, 8) and "loss" in line]
    assert _lines(tmp_path / "dsft") == wanted


def test_learning_goes_down_hill(untouched):
    losses = _losses(untouched[0])
    assert losses[8] < losses[1]


@pytest.mark.parametrize(("crash", "saved"), [(1, 0), (2, 0), (6, 4), (7, 6)])
def test_resumed_equals_uninterrupted_to_the_last_bit(crash, saved, tmp_path, untouched):
    """Saved every 2 steps and crashed at a step: what is not saved is done again; lines and parameters are equal."""
    task = _task(
        tmp_path / "dsft", save_every=2, evaluate=lambda params, step: {"loss": float(jnp.sum(params["head"]))}
    )
    task = dataclasses.replace(task, options=task.options.model_copy(update={"eval_every": 3}))
    with pytest.raises(_Crash):
        _run(_crashing_at(crash, task=task, saved=saved))
    assert len(_losses(task.folder)) == crash - 1
    result = _run(task)
    assert _lines(task.folder) == _lines(untouched[0])
    assert (_head(result) == _head(untouched[1])).all()
    assert result.num_tokens == untouched[1].num_tokens


def test_a_run_that_goes_on_does_not_load_its_start_nor_check_it_again(tmp_path):
    checked = []
    task = _task(tmp_path / "dsft", save_every=2, check_first_step=lambda metrics: checked.append(metrics["loss"]))
    with pytest.raises(_Crash):
        _run(_crashing_at(6, task=task, saved=4))
    assert checked == [_losses(task.folder)[1]]

    def refuse(shardings):
        raise AssertionError("the start was loaded")

    _run(dataclasses.replace(task, load_params=refuse))
    assert len(checked) == 1


def test_a_run_goes_on_on_other_numbers_of_devices(tmp_path, untouched):
    """Started on 16 devices, gone on with on 4, ended on 1: the losses of one device."""
    task = _task(tmp_path / "dsft", save_every=3)
    with pytest.raises(_Crash):
        _run(_crashing_at(4, task=task, saved=3), num_devices=16)
    with pytest.raises(_Crash):
        _run(_crashing_at(4, task=task, saved=6), num_devices=4)
    result = _run(task)
    assert _losses(task.folder) == pytest.approx(_losses(untouched[0]), rel=1e-5)
    assert_close(result.params["head"], untouched[1].params["head"], tolerance=1e-4)


def test_a_stage_that_has_ended_does_no_further_step(tmp_path, capsys):
    task = _task(tmp_path / "dsft", evaluate=lambda params, step: {"loss": 1.0})
    first = _run(task)
    before = (task.folder / "metrics.jsonl").read_text()
    second = _run(dataclasses.replace(task, evaluate=None))
    assert (task.folder / "metrics.jsonl").read_text() == before
    assert (_head(second) == _head(first)).all() and second.metrics == first.metrics
    assert second.eval_metrics == first.eval_metrics and second.num_tokens == first.num_tokens
    assert "all 8 steps are done already" in capsys.readouterr().err


def test_checkpoints_are_saved_every_so_often_and_at_the_end_and_few_are_kept(tmp_path):
    _run(_task(tmp_path / "dsft", save_every=3, keep_checkpoints=10))
    assert saved_steps(tmp_path / "dsft" / "checkpoints") == [3, 6, 8]
    _run(_task(tmp_path / "few", save_every=1, keep_checkpoints=3))
    assert saved_steps(tmp_path / "few" / "checkpoints") == [6, 7, 8]


def _stopping_at(stop_step: int, number: int):
    def evaluate(params, step):
        if step == stop_step:
            os.kill(os.getpid(), number)
        return {"loss": 1.0}

    return evaluate


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_ends_and_the_next_run_goes_on(number, tmp_path, untouched, capsys):
    """Nothing would have been saved before the end; the handlers of before are back afterwards."""
    task = _task(tmp_path / "dsft", eval_every=1, evaluate=_stopping_at(3, number))
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt):
        _run(task)
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert saved_steps(task.folder / "checkpoints") == [3]
    assert "stopped and saved after step 3; the same command goes on from there" in capsys.readouterr().err
    result = _run(task)
    assert _losses(task.folder) == _losses(untouched[0]) and (_head(result) == _head(untouched[1])).all()


def test_a_signal_in_the_last_step_is_not_forgotten(tmp_path):
    """All is saved, but the caller must not go on with the next stage as if nothing had been asked."""
    task = _task(tmp_path / "dsft", max_steps=2, eval_every=1, evaluate=_stopping_at(2, signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        _run(task)
    assert saved_steps(task.folder / "checkpoints") == [2]


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path):
    def broken(params, batch):
        totals = _bigrams(params, batch)
        return totals._replace(loss=totals.loss / 0.0)

    with pytest.raises(FloatingPointError, match="at step 1; the newest checkpoint is of step 0"):
        _run(_task(tmp_path / "dsft", objective=broken, save_every=1))
    assert saved_steps(tmp_path / "dsft" / "checkpoints") == []


def test_the_state_is_donated(tmp_path):
    """The start's own buffers are gone after the first step: two states never lie in memory."""
    kept = []

    def load(shardings):
        kept.append(_start(shardings))
        return kept[0]

    _run(_task(tmp_path / "dsft", load_params=load, max_steps=1))
    assert kept[0]["head"].is_deleted()


def test_the_train_step_is_compiled_once_for_each_shape(tmp_path, capsys):
    _run(_task(tmp_path / "dsft"))
    assert capsys.readouterr().err.count("compiled the train step") == 1


def test_an_evaluation_is_the_mean_over_all_rows_whatever_the_batches():
    """10 dialogues in one batch, or in batches of 4, 4 and 2: sums over counts, not means of means."""
    mesh = make_mesh(Mesh(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    values = []
    for batch_size in (10, 4):
        batches = sft_batches(make_dialogues(10), packing=False, batch_size=batch_size, shuffle=False)
        evaluate = evaluate_batches(_bigrams, batches, complete=lambda batch: batch, mesh=mesh)
        with jax.set_mesh(mesh):
            values.append(evaluate(_start({"head": jax.sharding.SingleDeviceSharding(jax.devices()[0])})))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[0]["doubled"] == pytest.approx(2 * values[0]["loss"])


def test_a_run_does_not_go_on_with_other_rows(tmp_path):
    """The steps before an interruption saw other rows: their epoch, schedule and order would not be one run's."""
    _run(_task(tmp_path / "dsft", max_steps=1))
    task = dataclasses.replace(_task(tmp_path / "dsft", max_steps=2), data_fingerprint="other rows")
    with pytest.raises(InputError, match="dsft: the training rows are no longer those that steps 1 to 1 saw"):
        _run(task)


def test_a_slow_source_shows_in_the_share_of_waiting(tmp_path):
    """Each batch takes 0.1 s to make, a step of one matrix a few milliseconds; the share is of both together."""

    def slow(batch):
        time.sleep(0.1)
        return batch

    result = _run(_task(tmp_path / "dsft", complete=slow))
    lines = [json.loads(line) for line in (tmp_path / "dsft" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["data_wait_share"] for line in lines]
    assert len(shares) == 8 and all(0 <= share <= 1 for share in shares)
    assert np.median(shares) > 0.5 and result.data_wait_share > 0.3  # the whole stage's time has the compilation too
    for line in lines:  # waited / (waited + step): the wait is at most the time that a batch takes, with some slack
        waited = line["data_wait_share"] * line["step_seconds"] / (1 - line["data_wait_share"])
        assert waited < 0.1 + 2.0


class _TwoShapes(SftBatches):
    """Steps 3, 5 and 6 have twice the rows."""

    def __init__(self, dialogues):
        super().__init__(dialogues, max_length=64, packing=False, batch_size=4, shuffle=False)
        self.shapes = (self.shapes[0], self.shapes[0]._replace(num_rows=2 * self.shapes[0].num_rows))

    def shape(self, step):
        return self.shapes[step in (3, 5, 6)]


def test_shapes_are_counted_and_all_of_them_are_compiled_before_the_first_step(tmp_path, capsys):
    """A program that came at step 3 would stop a run whose speed people have begun to trust."""
    counts = []
    with count_compilations() as count:

        def counted(values):
            counts.append(count.num_programs)

        task = _task(tmp_path / "dsft", batches=_TwoShapes(make_dialogues(30)), check_first_step=counted)
        result = _run(task)
    assert count.num_programs == counts[0]
    err = capsys.readouterr().err
    assert "dsft: 8 steps of 2 shapes, compiled before the first step: 1 x 4 x 64, 1 x 8 x 64 tokens" in err
    for place, shape in (("1 of 2", "1 x 4 x 64"), ("2 of 2", "1 x 8 x 64")):
        assert re.search(
            f"dsft: compiled the train step for {shape} tokens in [0-9.]+ s .shape {place}.; a device", err
        )
    programs = result.compilation["train_steps"]
    assert [(entry["shape"], entry["step"]) for entry in programs] == [([1, 4, 64], 1), ([1, 8, 64], 3)]
    assert result.compilation["programs"] >= 2 and result.compilation["from_cache"] == 0
    assert 0 < result.compilation["seconds"] and all(entry["seconds"] > 0 for entry in programs)


def test_nothing_is_compiled_once_every_shape_was_seen(tmp_path):
    """Saving and evaluating included: after the first step the count stands still, whatever shapes come later."""
    counts = []
    batches = sft_batches(make_dialogues(10), packing=False, batch_size=4, shuffle=False)

    with count_compilations() as count:
        mesh = make_mesh(Mesh(data=1, fsdp=1, tensor=1), jax.devices()[:1])
        measure = evaluate_batches(_bigrams, batches, complete=lambda batch: batch, mesh=mesh)

        def evaluate(params, step):
            values = measure(params)
            counts.append(count.num_programs)
            return values

        task = _task(
            tmp_path / "dsft", batches=_TwoShapes(make_dialogues(30)), evaluate=evaluate, eval_every=1, save_every=1
        )
        _run(task)
    assert len(counts) == 9 and counts[0] < counts[1]
    assert len(set(counts[1:])) == 1


@pytest.mark.parametrize(
    ("stage", "changes", "mesh"),
    [
        ("dsft", {}, Mesh(data=1, fsdp=1, tensor=1)),
        ("dsft", {"micro_batch_size": 16}, Mesh(data=2, fsdp=4, tensor=2)),
        ("ddpo", {}, Mesh(data=2, fsdp=4, tensor=2)),
    ],
    ids=["dsft on 1", "dsft accumulated on 16", "ddpo on 16"],
)
def test_the_whole_state_is_updated_in_place(stage, changes, mesh, tmp_path, monkeypatch, capsys):
    """The real train steps: every parameter, moment and count aliased, the old state's buffers gone, no warning."""
    calls = []

    def watched(function, *arguments):
        program = compile_ahead(function, *arguments)

        def call(state, batch):
            result = program.call(state, batch)
            calls.append(all(leaf.is_deleted() for leaf in jax.tree.leaves(state)))
            return result

        return dataclasses.replace(program, call=call)

    monkeypatch.setattr("zephyr_jax.training.loop.compile_ahead", watched)
    if stage == "dsft":
        options = sft_options(batch_size=32, max_steps=2, **changes)
        batches = sft_batches(make_dialogues(30), batch_size=32, row_multiple=8, max_steps=2, packing=False, **changes)
        objective, references = sft(), False
    else:
        options, objective, references = dpo_options(max_steps=2), dpo(), True
        batches = pair_batches(make_pairs(8), row_multiple=8, max_steps=2)
    task = dataclasses.replace(
        _task(tmp_path / "stage"),
        name=stage,
        options=options,
        objective=objective,
        abstract_params=abstract_params(SHAPE),
        load_params=lambda shardings: jax.tree.map(jax.device_put, make_params(), shardings),
        batches=batches,
        complete=lambda batch: dict(batch) | for_device(batch, references=references),
    )
    built = make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    with jax.set_mesh(built), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "Some donated buffers were not usable"
        result = run_stage(task, mesh=built)
    planned = result.compilation["train_steps"][0]["bytes_per_device"]
    assert planned["updated_in_place"] >= planned["state"] > 0 and planned["temporaries"] > 0
    assert calls == [True, True]
    assert "warning" not in capsys.readouterr().err


def test_a_state_that_is_not_updated_in_place_is_warned_of(tmp_path, monkeypatch, capsys):
    """A backend that cannot alias 4 000 bytes: the copy is named, the run goes on."""

    def copying(function, *arguments):
        program = compile_ahead(function, *arguments)
        memory = dataclasses.replace(program.memory, in_place=program.memory.in_place - 4000)
        return dataclasses.replace(program, memory=memory)

    monkeypatch.setattr("zephyr_jax.training.loop.compile_ahead", copying)
    _run(_task(tmp_path / "dsft", max_steps=1))
    assert "warning: dsft: the train step updates" in (err := capsys.readouterr().err)
    assert "4,000 bytes a device are copied at every step" in err
