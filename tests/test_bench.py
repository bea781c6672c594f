"""The command: what it prints where, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.small_recipes import write_config
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


def test_evaluation_rows_are_not_read(tmp_path: Path) -> None:
    recipe = bench.without_evaluation(bench.load_recipe(write_config(tmp_path)))
    assert recipe.dsft is not None and recipe.ddpo is not None
    assert recipe.dsft.data.train and not recipe.dsft.data.eval and not recipe.ddpo.data.eval


def test_no_steps_are_no_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--config", write_config(tmp_path), "--steps", "0"]) == 2
    assert "--steps: got 0, wanted 1 or more" in capsys.readouterr().err
