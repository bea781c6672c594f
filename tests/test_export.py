"""The export command: the step asked for is the one written, and what cannot be exported says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.tiny_chat_model import write_chat_model
from tests.model.tiny_folders import one_device
from zephyr_jax import export
from zephyr_jax.model import mistral
from zephyr_jax.model.sources import open_weights
from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import InputError
from zephyr_jax.training.checkpoint import Checkpoints
from zephyr_jax.training.step import TrainState

SHAPE = ModelShape(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=40,
    vocab_size=300,
    sliding_window=9,
)
RECIPE = """
name: run
stages: [dsft]
model:
  weights: null
  shape: {hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 40, vocab_size: 300,
          sliding_window: 9}
tokenizer: builtin:bytes
mesh: {data: 3, fsdp: 5}     # devices that the exporting machine need not have
dsft: {data: {train: [x.jsonl]}}
"""


def params_of(step: int) -> Any:
    """Every leaf counts up from the step: different at each place and at each step."""

    def count(leaf: Any) -> np.ndarray:
        return step + np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape) / leaf.size

    return jax.tree.map(count, mistral.abstract_params(SHAPE))


@pytest.fixture(scope="module")
def stage_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage with checkpoints of steps 2, 4 and 10."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    (folder / "dsft").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    checkpoints = Checkpoints(folder / "dsft" / "checkpoints", keep=3)
    for step in (2, 4, 10):
        state = TrainState(
            step=jnp.int32(step), params=jax.device_put(params_of(step)), opt_state={"count": jnp.int32(step)}
        )
        checkpoints.save(state, step=step, progress={})
    checkpoints.close()
    return folder / "dsft"


@pytest.mark.parametrize(("arguments", "step"), [([], 10), (["--step", "4"], 4)], ids=["last", "step_4"])
def test_the_step_asked_for_is_written(stage_folder: Path, tmp_path: Path, arguments: list[str], step: int) -> None:
    out = tmp_path / "out"
    argv = ["--run", str(stage_folder), "--out", str(out), "--dtype", "float32", *arguments]
    assert export.main(argv) == 0
    source = open_weights(str(out))
    assert source.shape == SHAPE
    jax.tree.map(np.testing.assert_array_equal, source.load_params(one_device(SHAPE)), params_of(step))
    assert {"tokenizer.json", "generation_config.json"} <= {file.name for file in out.iterdir()}


def test_weights_are_bfloat16_unless_said_otherwise(
    stage_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main(["--run", str(stage_folder), "--out", str(tmp_path / "out")]) == 0
    assert "wrote step 10" in capsys.readouterr().err
    params = open_weights(str(tmp_path / "out")).load_params(one_device(SHAPE))
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(np.float32), params_of(10))
    jax.tree.map(np.testing.assert_array_equal, params, rounded)


def refused(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    assert export.main([str(argument) for argument in argv]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_an_unknown_step_lists_those_that_are_there(
    stage_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "--run", stage_folder, "--step", 3, "--out", tmp_path / "out")
    assert "no checkpoint of step 3; there are those of 2, 4, 10" in message
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_not_written_over(
    stage_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").touch()
    assert "not empty" in refused(capsys, "--run", stage_folder, "--out", tmp_path)


def test_a_run_folder_names_its_stages(stage_folder: Path) -> None:
    with pytest.raises(InputError, match="is a run; pass one of its stages: .*run/dsft$"):
        export.find_step(stage_folder.parent, None)


def test_what_is_no_stage_of_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recipe.yaml in the folder above"):
        export.find_step(tmp_path, None)
    with pytest.raises(InputError, match="there is no such folder"):
        export.find_step(tmp_path / "absent", None)


def test_a_stage_without_checkpoints_says_where_its_model_is(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "ddpo").mkdir()
    with pytest.raises(InputError, match="no checkpoints; go on with `python -m zephyr_jax.train`"):
        export.find_step(tmp_path / "ddpo", None)
    (tmp_path / "ddpo" / "model").mkdir()
    (tmp_path / "ddpo" / "model" / "config.json").touch()
    with pytest.raises(InputError, match=r"its final model is there already, .*ddpo/model$"):
        export.find_step(tmp_path / "ddpo", None)


def test_a_checkpoint_that_is_not_finished_is_not_offered(stage_folder: Path) -> None:
    unfinished = stage_folder / "checkpoints" / "12.orbax-checkpoint-tmp-0"
    unfinished.mkdir()
    assert export.find_step(stage_folder, None) == 10
    unfinished.rmdir()


def test_a_model_is_written_without_a_run(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path / "model")
    assert export.main(["--model", str(folder), "--out", str(tmp_path / "copy"), "--dtype", "float32"]) == 0
    assert open_weights(str(tmp_path / "copy")).fingerprint() == open_weights(str(folder)).fingerprint()
    template = "chat_template.jinja"
    assert (tmp_path / "copy" / template).read_text() == (folder / template).read_text()
    assert export.main(["--model", str(folder), "--step", "3", "--out", str(tmp_path / "other")]) == 2
