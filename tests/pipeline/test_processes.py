"""`train` in 2 and in 4 processes: the losses of one, checkpoints that any number goes on from, and ends in good order.

Tolerances are of float32: sums over rows are added up in another order where the devices are others. Measured on 2 x 2
and 4 x 2 devices against 1 x 1, 14 and 6 steps: dSFT's losses 2e-7 of themselves; dDPO's 2e-5, its rewards 4e-5 and its
weights 3e-4 of their norm, since Adam's m / sqrt(v) is a sign where a gradient is near 0, and the steps are of 0.01.
"""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.pipeline.jobs import Ended, run_job
from tests.pipeline.small_recipes import write_config

TIMES = ("tokens_per_second", "step_seconds", "data_wait_share")
# 12 rows in 14 steps of 4, 8 pairs in 6 of 4: more than an epoch of each.
LONGER = ["dsft.max_steps=14", "ddpo.max_steps=6", "dsft.save_every=2", "ddpo.save_every=2", "dsft.eval_every=4"]


def _short(config: str) -> list[str]:
    """The command without evaluations, each of which compiles programs of its own."""
    data = {
        stage: {"train": [f"{Path(config).parent}/{name}.jsonl"]}
        for stage, name in (("dsft", "chat"), ("ddpo", "pairs"))
    }
    rows = [f"{stage}.data={json.dumps(value)}" for stage, value in data.items()]
    return ["--config", config, *rows, "samples.num_exact=0", "dsft.max_steps=2"]


def _lines(folder: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / "whole" / stage / "metrics.jsonl").read_text().splitlines()]


def _assert_same_run(folder: Path, wanted: Path) -> None:
    """All metrics but the times, at the same steps; the final weights; the tokenised rows, byte for byte."""
    for stage in ("dsft", "ddpo"):
        ours, theirs = _lines(folder, stage), _lines(wanted, stage)
        assert [line.keys() for line in ours] == [line.keys() for line in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            for name in mine.keys() - set(TIMES):
                if name == "rewards/accuracies" and mine["rewards/max_abs_margin"] < 1e-3:
                    continue  # the signs of rounding
                assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), (stage, mine["step"], name)
        weights, others = (
            load_file(run / "runs" / "whole" / stage / "model" / "model.safetensors") for run in (folder, wanted)
        )
        assert weights.keys() == others.keys()
        for name, array in weights.items():
            assert np.linalg.norm(array - others[name]) <= 1e-3 * np.linalg.norm(array), name
    kept, others = (
        {
            path.relative_to(run): path.read_bytes()
            for path in (run / "runs" / "tokenised").rglob("*")
            if path.name != "manifest.json" and path.is_file()  # which names the sources by their paths
        }
        for run in (folder, wanted)
    )
    assert kept == others


def _assert_done(ended: list[Ended]) -> None:
    for process in ended:
        assert process.status == 0, process.err


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory):
    """The same run in one process, on one device."""
    folder = tmp_path_factory.mktemp("one")
    _assert_done(run_job(*_short(write_config(folder)), count=1, num_devices=1))
    return folder


def test_two_processes_train_as_one_and_write_once(tmp_path, in_one_process):
    """dSFT, the reference pass and dDPO on 2 x 2 devices."""
    first, second = run_job(*_short(write_config(tmp_path)), "mesh.data=2", count=2, num_devices=2)
    _assert_done([first, second])
    _assert_same_run(tmp_path, in_one_process)
    said = first.err
    assert re.search(r"process 0 of 2 \(on \S+, pid \d+\): 2 of 4 devices, cpu 0, 1\n", said)
    assert re.search(r"process 1 of 2 \(on \S+, pid \d+\): 2 of 4 devices", said)
    assert "mesh: data 2 (within a host) x fsdp 2 (within a host) x tensor 1" in said
    assert said.count("ddpo: 2 steps, ") == 1
    # XLA's own warnings come from C++ and from every process.
    quiet = [line for line in second.err.splitlines() if not re.match(r"[IWE]\d{4} ", line)]
    assert len(quiet) == 1 and "process 1 of 2 (JAX_* variables): meeting the others at 127.0.0.1:" in quiet[0]
    summary = json.loads((tmp_path / "runs" / "whole" / "ddpo" / "summary.json").read_text())
    assert summary["processes"] == 2 and len(summary["devices"]) == 4
    left_over = [path for path in (tmp_path / "runs").rglob("*") if "partial" in path.name or "unfinished" in path.name]
    assert left_over == []


def _seconds_after_signal(ended: list[Ended], victim: int) -> list[float]:
    """How long after the victim's signal each of the others was gone."""
    signalled = re.search(r"signalled at ([\d.]+)", ended[victim].err)
    assert signalled is not None, ended[victim].err
    return [process.at - float(signalled.group(1)) for index, process in enumerate(ended) if index != victim]


@pytest.mark.slow
def test_stopped_then_killed_then_ended_by_other_numbers_of_processes_is_the_same_as_one_undisturbed(tmp_path):
    """4 x 2 devices, one of them asked to stop; 2 x 2, one of them killed; 1 x 4 to the end; against 1 x 1.

    With evaluations and sample answers on the way, which all processes compute together.
    """
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    folder.mkdir()
    _assert_done(run_job("--config", write_config(undisturbed), *LONGER, count=1, num_devices=1))
    command = ["--config", write_config(folder), *LONGER]

    stopped = run_job(*command, count=4, num_devices=2, signal_number=signal.SIGTERM, victim=2, at_step=6)
    for process in stopped:
        assert process.status == 130, process.err
        assert "Traceback" not in process.err
    assert re.search(r"dsft: stopped and saved after step \d+, as process 2 of 4 .* was asked to; the", stopped[0].err)
    step = _lines(folder, "dsft")[-1]["step"]
    assert 1 <= step < 14 and (folder / "runs" / "whole" / "dsft" / "checkpoints" / str(step)).is_dir()

    killed = run_job(*command, count=2, num_devices=2, signal_number=signal.SIGKILL, victim=1, at_step=12)
    assert [process.status for process in killed] == [1, -signal.SIGKILL], killed[0].err
    assert f"going on after step {step} of 14" in killed[0].err
    assert re.search(r"\nerror: process 1 of 2 \(on \S+, pid \d+\) has ended without a word: killed", killed[0].err)
    assert max(_seconds_after_signal(killed, 1)) < 20

    ended = run_job(*command, count=1, num_devices=4)
    _assert_done(ended)
    assert "going on after step" in ended[0].err
    _assert_same_run(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_when_one_of_four_is_killed_the_others_end_soon_and_name_it(victim, tmp_path):
    """Process 0 too, which the others' JAX needs."""
    short = [*_short(write_config(tmp_path)), "dsft.max_steps=14"]
    ended = run_job(*short, count=4, num_devices=1, signal_number=signal.SIGKILL, victim=victim, at_step=8)
    assert ended[victim].status == -signal.SIGKILL
    for index, process in enumerate(ended):
        if index != victim:
            assert process.status == 1, process.err
            wanted = (
                rf"\nerror: process {victim} of 4 \(on \S+, pid \d+\) has ended without a word: .*; process {index} of"
            )
            assert re.search(wanted, process.err), process.err
            assert "Traceback" not in process.err
    assert max(_seconds_after_signal(ended, victim)) < 20


@pytest.mark.slow
def test_processes_that_are_not_given_the_same_end_with_one_message(tmp_path):
    """The second is started with another seed: an error that all have, which process 0 alone prints."""
    job = run_job("--config", write_config(tmp_path), count=2, num_devices=1, only={1: ["seed=7"]})
    for process in job:
        assert process.status == 2 and "Traceback" not in process.err
    assert "the processes of this job were given different recipes; process 1 of 2 (on " in job[0].err
    assert "seed: 42 -> 7" in job[0].err and "error" not in job[1].err and not (tmp_path / "runs").exists()
