"""`train` in 2 and in 4 processes: the losses of one, checkpoints that any number goes on from, and ends in good order.

Tolerances are of float32: sums over rows are added up in another order where the devices are others. A loss or a
log-prob then differs by some 1e-7 of itself; Adam's m / sqrt(v), which is a sign where a gradient is near 0, makes up
to 1e-3 of the largest weight of it in these few steps of 0.01.
"""

from __future__ import annotations

import json
import re
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
                assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), (stage, mine["step"], name)
        weights, others = (
            load_file(run / "runs" / "whole" / stage / "model" / "model.safetensors") for run in (folder, wanted)
        )
        assert weights.keys() == others.keys()
        for name, array in weights.items():
            np.testing.assert_allclose(array, others[name], rtol=0, atol=1e-3 * np.abs(array).max(), err_msg=name)
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
    quiet = [line for line in second.err.splitlines() if not re.match(r"ended at|[IWE]\d{4} ", line)]
    assert len(quiet) == 1 and "process 1 of 2 (JAX_* variables): meeting the others at 127.0.0.1:" in quiet[0]
    summary = json.loads((tmp_path / "runs" / "whole" / "ddpo" / "summary.json").read_text())
    assert summary["processes"] == 2 and len(summary["devices"]) == 4
    left_over = [path for path in (tmp_path / "runs").rglob("*") if "partial" in path.name or "unfinished" in path.name]
    assert left_over == []
