"""Training step by step against numbers that TRL's trainers logged (the golden twin of tests/parity/test_trl.py).

`python -m tests.parity.make_golden trl` makes the stored file anew; it needs the `[parity]` extra.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from tests.parity import our_training, runs, small_data, small_models
from zephyr_jax.data.chat import load_chat_tokenizer

GOLDEN = pathlib.Path(__file__).parent / "golden" / "trl.json"


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trl")


def test_golden_numbers_are_of_these_runs_and_this_model(golden):
    assert golden["model_sha256"] == small_models.model_hash(small_models.TRAINED_MODEL)
    assert {name: entry["run"] for name, entry in golden["dpo"].items()} == {
        run.name: dataclasses.asdict(run) for run in runs.DPO_RUNS
    }
    assert {name: entry["run"] for name, entry in golden["sft"].items()} == {
        run.name: dataclasses.asdict(run) for run in runs.SFT_RUNS
    }


def test_a_pair_has_the_ids_that_trl_gives_it(golden):
    tokenizer = load_chat_tokenizer("builtin:bytes", bos="never")
    for row, wanted in zip(small_data.make_pairs(), golden["dpo_tokens"], strict=True):
        pair = tokenizer.encode_pair(row["chosen"][:-1], row["chosen"][-1]["content"], row["rejected"][-1]["content"])
        assert [list(pair.prompt), list(pair.chosen), list(pair.rejected)] == list(wanted.values())


def test_a_dialogue_has_the_ids_and_targets_that_trl_gives_it(golden):
    tokenizer = load_chat_tokenizer("builtin:bytes", bos="never")
    for row, wanted in zip(small_data.make_dialogues(), golden["sft_tokens"], strict=True):
        dialogue = tokenizer.encode_conversation(row["messages"])
        assert list(dialogue.ids) == wanted["input_ids"]
        assert list(dialogue.is_target) == [label != -100 for label in wanted["labels"]]


def check_ddpo(run, golden, folder, **options):
    pairs = small_data.make_pairs()
    ours = our_training.train(small_models.TRAINED_MODEL, pairs, run, folder=folder, **options)
    assert runs.differences(ours, golden["dpo"][run.name]["steps"], runs.DPO_METRICS) == []


@pytest.mark.parametrize("run", runs.DPO_RUNS, ids=lambda run: run.name)
def test_ddpo_metrics_equal_trl_at_every_step(run, golden, folder):
    """Accumulated in padded rows, the others with the prompt shared in packed rows."""
    check_ddpo(run, golden, folder, layout="padded" if run.name == "accumulated" else "packed")


def test_train_command_sharded_over_every_device_equals_trl_too(golden, folder):
    check_ddpo(runs.DPO_RUNS[1], golden, folder / "sharded", all_devices=True)


@pytest.mark.parametrize("run", runs.SFT_RUNS, ids=lambda run: run.name)
def test_dsft_metrics_equal_trl_at_every_step(run, golden, folder):
    """TRL averages entropy and accuracy over micro-batches, we over tokens: comparable without accumulation only."""
    metrics = runs.SFT_METRICS + (runs.SFT_EXTRA_METRICS if run.micro_batch_size == runs.BATCH_SIZE else ())
    ours = our_training.train(small_models.TRAINED_MODEL, small_data.make_dialogues(), run, folder=folder)
    assert runs.differences(ours, golden["sft"][run.name]["steps"], metrics) == []


def test_accumulation_changes_nothing_and_every_other_option_shows(golden):
    """The tolerance tells the runs apart: a run that ignored its options would be caught."""
    plain, accumulated, *others = (entry["steps"] for entry in golden["dpo"].values())
    assert runs.differences(accumulated, plain, runs.DPO_METRICS) == []
    for other in others:
        found = runs.differences(other, plain, runs.DPO_METRICS)
        assert {line.split(":")[0] for line in found} >= {"step 4, loss", "step 5, loss", "step 5, logps/chosen"}
    all_tokens, assistant = (entry["steps"] for entry in golden["sft"].values())
    assert any("loss" in line for line in runs.differences(assistant, all_tokens, runs.SFT_METRICS))
