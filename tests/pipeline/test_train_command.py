"""`train` from rows in files to a model in a folder: a very small model, a few steps of each stage, on all devices."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.pipeline.small_recipes import write_config
from tests.stages.small_runs import dialogue_rows, make_recipe, pair_rows, write_rows
from zephyr_jax.recipe import load_recipe
from zephyr_jax.records import InputError
from zephyr_jax.run_folder import free_name
from zephyr_jax.train import check_name, claim_folder, main

STEP_METRICS = {
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "tokens_per_second",
    "step_seconds",
    "data_wait_share",
}
DDPO_METRICS = {
    *(f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")),
    *(f"logps/{name}" for name in ("chosen", "rejected")),
}


def call(*arguments: str) -> tuple[int, str, str]:
    """The command in this process: status, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    return status, out.getvalue(), err.getvalue()


def _lines(stage_folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage_folder / name).read_text().splitlines()]


def _files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the data, and what the command said."""
    folder = tmp_path_factory.mktemp("whole")
    status, out, err = call("--config", write_config(folder))
    assert status == 0, err
    return folder, out, err


def test_the_runs_folder_is_the_contracts(whole):
    folder, _, _ = whole
    run = folder / "runs" / "whole"
    assert load_recipe(run / "recipe.yaml") == load_recipe(folder / "whole.yaml")
    for stage in ("dsft", "ddpo"):
        assert (run / stage / "checkpoints").is_dir()
        for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
            assert (run / stage / "model" / name).is_file(), name
        assert (run / stage / "model" / "chat_template.jinja").is_file()
        summary = json.loads((run / stage / "summary.json").read_text())
        assert {"metrics", "eval_metrics", "num_tokens", "seconds", "versions", "devices", "data"} <= set(summary)
        assert summary["metrics"] == [line for line in _lines(run / stage) if "loss" in line][-1]
        assert summary["eval_metrics"] == _lines(run / stage)[-1]
        assert len(summary["devices"]) == len(jax.devices()) and summary["peak_memory"]["bytes"] > 1e7
        began, ended = _lines(run / stage, "sessions.jsonl")
        assert (began["after_step"], began["steps"]) == (0, summary["steps"]) and began["data"] == summary["data"]
        assert (ended["after_step"], ended["how"]) == (summary["steps"], "done") and began["began"] <= ended["ended"]
    stores = sorted((folder / "runs" / "reference").iterdir())
    assert len(stores) == 2  # train and evaluation pairs
    assert all((store / "manifest.json").is_file() for store in stores)
    kept = sorted((folder / "runs" / "tokenised").iterdir())
    assert len(kept) == 4  # train and evaluation rows of both stages
    assert all((place / "manifest.json").is_file() for place in kept)
    left_over = [name for name in _files(folder / "runs") if "partial" in name or "unfinished" in name]
    assert left_over == []


@pytest.mark.parametrize(("stage", "num_steps"), [("dsft", 3), ("ddpo", 2)])
def test_metrics_have_the_contracts_names_and_evaluations_their_lines(stage, num_steps, whole):
    lines = _lines(whole[0] / "runs" / "whole" / stage)
    wanted = STEP_METRICS | (DDPO_METRICS if stage == "ddpo" else set())
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval/loss" in line]
    assert [line["step"] for line in steps] == list(range(1, num_steps + 1))
    assert all(wanted <= set(line) for line in steps)
    assert [line["step"] for line in evaluations] == [0, num_steps]
    assert {f"eval/{name}" for name in wanted & (DDPO_METRICS | {"loss"})} <= set(evaluations[0])
    assert all(name == "step" or name.startswith("eval/") for line in evaluations for name in line)
    assert steps[-1]["epoch"] == 1
    assert all(math.isfinite(value) for line in lines for value in line.values())


def test_ddpo_starts_at_its_reference_and_says_that_it_checked(whole):
    """ln 2 and margins of 0, on the first batch and on the evaluation pairs; within 1e-3 nats times beta = 0.1."""
    folder, _, err = whole
    lines = _lines(folder / "runs" / "whole" / "ddpo")
    assert lines[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[1]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(lines[1]["rewards/margins"]) < 1e-4 and abs(lines[0]["eval/rewards/margins"]) < 1e-4
    assert "ddpo: checked that the policy starts at its reference" in err
    summary = json.loads((folder / "runs" / "whole" / "ddpo" / "summary.json").read_text())
    assert summary["start_loss"] == lines[1]["loss"] and summary["start_max_abs_margin_over_beta"] < 1e-3


def test_both_stages_learn(whole):
    run = whole[0] / "runs" / "whole"
    chat, pairs = _lines(run / "dsft"), _lines(run / "ddpo")
    assert chat[-1]["eval/loss"] < chat[0]["eval/loss"] - 0.1
    assert pairs[-1]["eval/loss"] < math.log(2) - 0.05 and pairs[-1]["eval/rewards/accuracies"] == 1.0


def test_tokens_are_counted_without_padding_and_prompts_of_pairs_twice(whole):
    """Chat: all ids of all dialogues. Pairs: prompt + chosen and prompt + rejected, from the rendered texts' bytes.

    `<s>` where the tokenizer adds it; `</s>` is one id, every other character one byte.
    """
    run = whole[0] / "runs" / "whole"

    def num_ids(messages):
        texts = [f"<|{message['role']}|>\n{message['content']}" for message in messages]
        return 1 + sum(len(text) + 2 for text in texts)  # </s> and its newline

    wanted = sum(num_ids(row["messages"]) for row in dialogue_rows(12))
    assert _lines(run / "dsft")[-2]["num_tokens"] == wanted
    wanted = sum(num_ids(row[side]) for row in pair_rows(8) for side in ("chosen", "rejected"))
    assert _lines(run / "ddpo")[-2]["num_tokens"] == wanted


def test_the_end_shows_held_out_figures_of_all_three_models_and_answers(whole):
    folder, out, _ = whole
    assert all(text in out for text in ("before dSFT", "after dSFT", "after dDPO", "answers exactly right"))
    held_out = json.loads((folder / "runs" / "whole" / "held_out.json").read_text())
    assert list(held_out) == ["base", "dsft", "ddpo"]
    assert all((found["num_pairs"], found["num_exact"]) == (4, 4) for found in held_out.values())
    run = folder / "runs" / "whole"
    assert held_out["base"]["loss"] == pytest.approx(_lines(run / "dsft")[0]["eval/loss"], rel=1e-5)
    assert held_out["dsft"]["loss"] == pytest.approx(_lines(run / "dsft")[-1]["eval/loss"], rel=1e-5)
    assert out.count("prompt: ") == 2 and "What is 2?" in out and "It is two." in out


def test_samples_are_written_at_every_evaluation(whole):
    text = (whole[0] / "runs" / "whole" / "dsft" / "samples.jsonl").read_text()
    samples = [json.loads(line) for line in text.splitlines()]
    assert [sample["step"] for sample in samples] == [0, 0, 3, 3]


def test_a_batch_that_does_not_share_out_over_the_mesh_is_said(whole):
    if len(jax.devices()) == 16:
        wanted = "dsft: 4 rows do not share out evenly over the 16 devices of data x fsdp: 12 empty rows are computed"
        assert wanted in whole[2]


def test_each_stage_ends_with_one_line(whole):
    lines = whole[2].splitlines()
    for stage, steps in (("dsft", 3), ("ddpo", 2)):
        assert len([line for line in lines if line.startswith(f"{stage}: {steps} steps, ")]) == 1


def test_a_second_call_does_nothing_and_says_so(whole):
    folder, out, _ = whole
    before = _files(folder)
    status, again, err = call("--config", str(folder / "whole.yaml"))
    assert status == 0 and again == out
    if importlib.util.find_spec("matplotlib"):
        assert "report.html is there already" in err
    assert "dsft: done already" in err and "ddpo: done already" in err
    assert err.count(f"found tokenised in {folder}/runs/tokenised/") == 4
    assert _files(folder) == before


def test_a_changed_recipe_under_the_same_name_is_refused_with_the_differences(whole):
    folder, _, _ = whole
    before = _files(folder)
    status, out, err = call("--config", str(folder / "whole.yaml"), "ddpo.beta=0.2", "dsft.max_steps=7")
    assert status == 2 and out == "" and "Traceback" not in err
    assert "this name was run with another recipe" in err and "--new-run" in err
    assert "ddpo.beta: 0.1 -> 0.2" in err and "dsft.max_steps: null -> 7" in err
    assert _files(folder) == before


def test_ddpo_alone_from_a_finished_stage_is_the_same_stage_and_shares_its_reference(whole):
    """From RUN/dsft as weights: the same losses to the last bit, the log-probs read and not computed."""
    folder, _, _ = whole
    weights = folder / "runs" / "whole" / "dsft"
    alone = ["name=alone", "stages=[ddpo]", f"model.weights={weights}", "samples.num_prompts=0", "samples.num_exact=0"]
    status, _, err = call("--config", str(folder / "whole.yaml"), *alone, "--new-run")
    assert status == 0, err
    assert err.count("pairs read from") == 2 and "computed anew" not in err
    times = {"tokens_per_second", "step_seconds", "data_wait_share"}
    ours, wanted = (
        [{name: value for name, value in line.items() if name not in times} for line in _lines(run / "ddpo")]
        for run in (folder / "runs" / "alone", folder / "runs" / "whole")
    )
    assert ours == wanted


def test_dry_run_describes_both_stages_and_writes_nothing(tmp_path):
    config = write_config(tmp_path)
    before = _files(tmp_path)
    status, out, _ = call("--config", config, "--dry-run")
    assert status == 0 and _files(tmp_path) == before
    assert "3 optimizer steps of 4 rows" in out and "2 optimizer steps of 4 pairs" in out
    assert "12 rows read, 0 unreadable, 0 dropped, 0 cut" in out and "tokens" in out
    # The first dialogue: its answers, with the end of text and the newline behind it, are what is learnt.
    assert "[[It is one.</s>" in out and "What is 1?" in out and "[[It is six, I think.</s>" in out
    assert "[[What" not in out


def test_a_dry_run_tells_the_same_of_rows_found_and_rows_made(whole, tmp_path):
    config = str(whole[0] / "whole.yaml")
    _, found, warm = call("--config", config, "--dry-run")
    _, made, cold = call("--config", config, "--dry-run", f"output_dir={tmp_path}")
    assert found == made and "found tokenised" in warm and "tokenised in 1 process" in cold


def test_a_dry_run_shows_what_is_lost(tmp_path):
    config = write_config(tmp_path)
    rows = [*dialogue_rows(12), "not json"]
    write_rows(tmp_path / "chat.jsonl", rows)
    status, out, _ = call(
        "--config", config, "--dry-run", "dsft.max_length=60", "dsft.max_bad_rows=0.1", "stages=[dsft]"
    )
    assert status == 0
    assert "13 rows read, 1 unreadable" in out
    assert " 4 cut (4 turns cut to fit max_length)" in out  # those with a second turn


WRONG = {
    "no such file": (["dsft.data={train: [nowhere.jsonl]}"], "nowhere.jsonl"),
    "a mesh that does not fit": (["mesh.data=3"], "which does not divide"),
    "an unknown key": (["ddpo.warmup=0.1"], "did you mean 'ddpo.warmup_ratio'?"),
    "prompt longer than all": (["ddpo.max_prompt_length=64"], "ddpo.max_prompt_length"),
    "nothing fits": (["ddpo.max_length=30", "ddpo.max_prompt_length=10"], "no pair is left of 8 rows"),
    "vocabulary": (["model.shape.vocab_size=100"], "has ids up to 258, but the model's vocab_size is 100"),
    "no such weights": (["model.weights=nowhere", "model.shape=null"], "nowhere: there is no such folder"),
    "no such tokenizer": (["tokenizer=nowhere"], "nowhere"),
    "undividable": (
        ["model.shape.hidden_size=36", "model.shape.head_dim=8"],
        "which does not divide a dimension of 36",
    ),
    "too many bad rows": (["dsft.data={train: [bad.jsonl]}"], "bad.jsonl"),
}


@pytest.mark.parametrize(("overrides", "wanted"), WRONG.values(), ids=WRONG.keys())
def test_wrong_inputs_are_one_message_and_status_2(overrides, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    write_rows(tmp_path / "bad.jsonl", [*dialogue_rows(3), "not json"])
    status, out, err = call("--config", config, *overrides)
    assert status == 2 and out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err
    assert wanted in err[err.index("error: ") :]


@pytest.mark.parametrize(
    "case", ["a mesh that does not fit", "vocabulary", "no such weights", "undividable", "no such file"]
)
def test_what_needs_no_data_is_refused_before_any_is_read(case, tmp_path, monkeypatch):
    """A mesh or a model that cannot be must not cost the reading of 200 000 rows; and a dry run tells it too."""
    monkeypatch.chdir(tmp_path)
    overrides, wanted = WRONG[case]
    config = write_config(tmp_path)
    for data in tmp_path.glob("*.jsonl"):
        data.unlink()
    before = _files(tmp_path)
    for dry_run in ([], ["--dry-run"]):
        status, out, err = call("--config", config, *overrides, *dry_run)
        assert (status, out) == (2, "") and wanted in err
    assert _files(tmp_path) == before


def test_a_name_is_free_until_its_run_has_begun(tmp_path):
    """A mistake in the data is found after the folder is made; the mended recipe may have the same name."""
    claim_folder(make_recipe(tmp_path))
    mended = make_recipe(tmp_path, seed=7)
    check_name(mended)
    claim_folder(mended)
    assert load_recipe(tmp_path / "runs" / "small" / "recipe.yaml") == mended
    (tmp_path / "runs" / "small" / "ddpo").mkdir()
    check_name(mended)
    with pytest.raises(InputError, match="seed: 7 -> 42"):
        check_name(make_recipe(tmp_path))


def test_new_run_takes_the_next_free_name(tmp_path):
    recipe, names = make_recipe(tmp_path), []
    for _ in range(3):
        names.append(free_name(recipe.output_dir, recipe.name))
        claim_folder(recipe.model_copy(update={"name": names[-1]}))
    assert names == ["small", "small-2", "small-3"]
    assert load_recipe(tmp_path / "runs" / "small-3" / "recipe.yaml").name == "small-3"


def test_a_folder_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output_dir .*file: cannot be written"):
        claim_folder(make_recipe(tmp_path, output_dir=str(tmp_path / "file")))
