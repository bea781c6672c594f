"""What a run starts from: device errors before anything is read, models that fit, weights known by their content."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.model.tiny_folders import make_tensors, write_folder
from tests.stages.small_runs import SHAPE, make_recipe, on_one_device
from zephyr_jax.model.mistral import ModelSettings
from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import InputError
from zephyr_jax.stages import start
from zephyr_jax.stages.start import (
    StartModel,
    base_model,
    check_run,
    model_settings,
    open_run,
    say_attention,
    stage_model,
)

MODEL = {"weights": None, "shape": SHAPE, "compute_dtype": "float32", "remat": "none"}


def _weights(folder, **changes) -> dict:
    shape = ModelShape(**(SHAPE | changes))
    return {"weights": str(write_folder(folder, shape, make_tensors(shape))), "compute_dtype": "float32"}


def test_a_mesh_that_does_not_fit_is_refused_before_the_tokenizer_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "load_chat_tokenizer", None)  # calling it would be a TypeError
    recipe = make_recipe(tmp_path, mesh={"data": 3, "fsdp": -1, "tensor": 1})
    with pytest.raises(InputError, match="mesh: .*which does not divide"):
        open_run(recipe)


def test_opening_a_run_makes_no_folder(tmp_path):
    run = open_run(make_recipe(tmp_path))
    assert run.folder == tmp_path / "runs" / "small" and not (tmp_path / "runs").exists()
    assert dict(run.mesh.shape) == {"data": 1, "fsdp": len(jax.devices()), "tensor": 1}


def test_opening_a_run_says_its_mesh(tmp_path, capsys):
    open_run(make_recipe(tmp_path))
    num_devices = len(jax.devices())
    if num_devices > 1:
        assert f"mesh: data 1 x fsdp {num_devices} (within a host) x tensor 1" in capsys.readouterr().err


def test_tensorboard_that_is_not_installed_is_an_error_with_the_way_out(tmp_path, monkeypatch):
    run = on_one_device(make_recipe(tmp_path, trackers=["tensorboard"]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"trackers: tensorboard needs .* pip install -e '.\[tensorboard\]'"):
        check_run(run)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path):
    """Ids are 0 to 258, so a model of 258 has no row for the last."""
    run = on_one_device(make_recipe(tmp_path, model=MODEL | {"shape": SHAPE | {"vocab_size": 258}}))
    with pytest.raises(InputError, match="builtin:bytes: has ids up to 258, but the model's vocab_size is 258"):
        base_model(run)


def test_random_weights_depend_on_the_seed_and_the_shape_alone(tmp_path):
    def fingerprint(**changes):
        return base_model(on_one_device(make_recipe(tmp_path, **changes))).fingerprint()

    first = fingerprint()
    assert fingerprint(name="another", ddpo={"beta": 0.5}) == first
    assert fingerprint(seed=43) != first
    assert fingerprint(model=MODEL | {"shape": SHAPE | {"rope_theta": 1e6}}) != first


def test_random_weights_are_loaded_where_the_table_puts_them(tmp_path):
    recipe = make_recipe(tmp_path)
    alone, everywhere = on_one_device(recipe), open_run(recipe)
    with jax.set_mesh(everywhere.mesh):
        sharded = base_model(everywhere).load_on(everywhere.mesh)
    with jax.set_mesh(alone.mesh):
        whole = base_model(alone).load_on(alone.mesh)
    gate = sharded["layers"]["mlp"]["gate"]
    assert gate.addressable_shards[0].data.size * len(jax.devices()) == gate.size
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sharded, whole)


def test_a_shape_beside_weights_is_checked_against_them(tmp_path):
    model = _weights(tmp_path / "model")
    agreed = base_model(on_one_device(make_recipe(tmp_path, model=model | {"shape": SHAPE})))
    assert agreed.shape == ModelShape(**SHAPE) and agreed.source is not None
    run = on_one_device(make_recipe(tmp_path, model=model | {"shape": SHAPE | {"num_hidden_layers": 3}}))
    with pytest.raises(InputError, match="num_hidden_layers"):
        base_model(run)


def test_weights_of_a_folder_are_read_as_they_are(tmp_path):
    run = on_one_device(make_recipe(tmp_path, model=_weights(tmp_path / "model")))
    params = base_model(run).load_on(run.mesh)
    tensors = make_tensors(ModelShape(**SHAPE))
    np.testing.assert_array_equal(params["embedding"], tensors["model.embed_tokens.weight"])


def test_the_model_of_a_stage_that_has_not_run_is_an_error(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        stage_model(on_one_device(make_recipe(tmp_path)), "dsft")


def test_weights_that_are_not_there_are_an_error_that_names_them(tmp_path):
    model = {"weights": str(tmp_path / "nowhere"), "compute_dtype": "float32"}
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        base_model(on_one_device(make_recipe(tmp_path, model=model)))


def test_settings_are_the_recipes(tmp_path):
    model = MODEL | {"compute_dtype": "bfloat16", "attention": "blockwise", "remat": "dots"}
    recipe = make_recipe(tmp_path, model=model)
    assert model_settings(recipe) == ("bfloat16", "blockwise", "dots", None, "pairs")
    assert model_settings(recipe, rows="plain").rows == "plain"


def test_the_attention_that_rows_get_is_said(capsys):
    shape = ModelShape(**SHAPE)
    say_attention(ModelSettings(attention="auto", rows="dialogues"), shape, [2048, 128, 2048])
    said = capsys.readouterr().err
    assert "xla for rows of 128 tokens; blockwise for rows of 2048 tokens (chosen by auto for packed dialogues)" in said
    say_attention(ModelSettings(attention="xla"), shape, [2048])
    assert "xla for rows of 2048 tokens (as the recipe says)" in capsys.readouterr().err


def test_what_auto_takes_on_a_device_that_was_not_measured_is_said_to_be_so(capsys):
    settings = ModelSettings(compute_dtype="bfloat16", attention="auto", platform="gpu", rows="plain")
    say_attention(settings, ModelShape(**SHAPE), [2048])
    said = capsys.readouterr().err
    assert "cudnn for rows of 2048 tokens (chosen by auto for plain rows, not measured on gpu)" in said


def test_an_attention_that_cannot_run_here_is_refused_before_data_is_read(tmp_path):
    if jax.default_backend() != "cpu":
        pytest.skip("the device may have it")
    model = MODEL | {"compute_dtype": "bfloat16", "attention": "cudnn"}
    with pytest.raises(InputError, match="cudnn needs an NVIDIA GPU .* this is cpu"):
        check_run(on_one_device(make_recipe(tmp_path, model=model)))


def test_random_weights_have_no_source():
    model = StartModel(shape=ModelShape(**SHAPE), source=None, seed=0)
    assert len(model.fingerprint()) == 64


def test_a_run_says_where_its_compiled_programs_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "keep_compiled_programs", lambda: tmp_path / "kept")
    open_run(make_recipe(tmp_path))
    assert f"compiled programs are kept in {tmp_path / 'kept'}" in capsys.readouterr().err
    monkeypatch.setattr(start, "keep_compiled_programs", lambda: None)
    open_run(make_recipe(tmp_path))
    assert "compiled programs" not in capsys.readouterr().err
