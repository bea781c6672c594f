"""The command: what it prints where, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.small_recipes import write_config
from tests.small_jobs import free_address
from zephyr_jax import bench


def test_json_goes_to_stdout_and_the_table_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sixteen pretended devices, whose ceiling is that of all together."""
    config = write_config(tmp_path)
    assert bench.main(["--config", config, "--steps", "2", "--json", "stages=[dsft]"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert list(report["stages"]) == ["dsft"] and len(report["stages"]["dsft"]["losses"]) == 2
    assert report["num_devices"] == 16 and "| share of the matmul ceiling" in captured.err
    assert not (tmp_path / "runs" / "whole").exists()


@pytest.mark.slow
def test_two_processes_measure_as_one_and_one_of_them_speaks(tmp_path: Path) -> None:
    """Two devices each; the trace is process 0's."""
    config, address = write_config(tmp_path), free_address()
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-m", "zephyr_jax.bench", "--config", config, "--steps", "2", "--json"]
    command += ["--profile", str(tmp_path / "trace")]
    processes = [
        subprocess.Popen(
            command,
            env=environment | {"JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    # gloo, which CPUs' collectives run over, greets on stdout
    said = [[line for line in output.splitlines() if not line.startswith("[Gloo]")] for output in outputs]
    report = json.loads(said[0][0])
    assert (
        len(said[0]) == 1
        and not said[1]
        and report["num_devices"] == 4
        and list(report["stages"]) == ["dsft", "reference", "ddpo"]
    )
    assert len(list((tmp_path / "trace").glob("*/plugins/profile/*/*.xplane.pb"))) == 3


def test_evaluation_rows_are_not_read(tmp_path: Path) -> None:
    recipe = bench.without_evaluation(bench.load_recipe(write_config(tmp_path)))
    assert recipe.dsft is not None and recipe.ddpo is not None
    assert recipe.dsft.data.train and not recipe.dsft.data.eval and not recipe.ddpo.data.eval


def test_no_steps_are_no_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--config", write_config(tmp_path), "--steps", "0"]) == 2
    assert "--steps: got 0, wanted 1 or more" in capsys.readouterr().err
