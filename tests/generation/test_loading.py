"""A model made ready to answer: its stop ids, dtype, devices and context."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.generation.tiny_chat_model import write_chat_model
from zephyr_jax.generation.loading import default_dtype, open_answer_model
from zephyr_jax.generation.options import GenerationOptions
from zephyr_jax.records import InputError

QUESTION = ({"role": "user", "content": "Why?"},)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that reads 64 tokens."""
    return write_chat_model(tmp_path_factory.mktemp("tiny") / "model", context=64)


def test_weights_come_in_the_compute_dtype_onto_all_devices(folder):
    model = open_answer_model(str(folder), dtype="bfloat16").load()
    leaf = model.params.layers[0].gate_up[0]
    assert leaf.dtype == "bfloat16" and len(leaf.sharding.device_set) == len(jax.devices())
    assert model.params.final_norm.dtype == "float32"
    assert model.settings_text().startswith(f"bfloat16 on {len(jax.devices())} x ")


def test_a_cpu_computes_in_float32_and_an_accelerator_in_bfloat16(folder):
    assert (default_dtype("cpu"), default_dtype("gpu"), default_dtype("tpu")) == ("float32", "bfloat16", "bfloat16")
    if jax.default_backend() == "cpu":
        assert open_answer_model(str(folder)).settings.compute_dtype == "float32"


def test_answers_end_at_the_stop_ids_of_the_folder_and_of_the_template(folder):
    model = open_answer_model(str(folder), num_devices=1)
    assert model.tokenizer.eos_id in model.stop_ids
    assert set(model.source.stop_ids) | set(model.tokenizer.stop_ids) == set(model.stop_ids)
    assert len(set(model.stop_ids)) == len(model.stop_ids)


def test_the_fingerprint_changes_with_the_weights_the_template_and_the_dtype(folder, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    same = open_answer_model(str(folder), num_devices=1).fingerprint()
    others = [
        open_answer_model(str(write_chat_model(tmp_path / "other", context=64, seed=1))),
        open_answer_model(str(folder), chat_template=str(template)),
        open_answer_model(str(folder), dtype="bfloat16"),
    ]
    assert open_answer_model(str(folder)).fingerprint() == same, "the number of devices is no part of it"
    for other, changed in zip(others, ("weights", "chat_template", "dtype"), strict=True):
        assert {name for name, value in other.fingerprint().items() if value != same[name]} == {changed}


def test_a_prompt_that_does_not_fit_with_its_answer_is_refused(folder):
    model = open_answer_model(str(folder), num_devices=1)
    num_tokens = len(model.encode(QUESTION, max_new_tokens=1))
    assert len(model.encode(QUESTION, max_new_tokens=64 - num_tokens)) == num_tokens
    with pytest.raises(
        InputError, match=rf"the prompt has {num_tokens} tokens, .* more than the 64 .*--max-new-tokens"
    ):
        model.encode(QUESTION, max_new_tokens=65 - num_tokens)


def test_more_devices_than_there_are_is_refused(folder):
    with pytest.raises(InputError, match=r"--devices: got 1000, but there are \d+ here"):
        open_answer_model(str(folder), num_devices=1000)


def test_all_devices_give_the_answer_of_one(folder):
    texts = []
    for num_devices in (1, None):
        model = open_answer_model(str(folder), num_devices=num_devices).load()
        prompt = model.encode(QUESTION, max_new_tokens=8)
        (batch,) = model.answer([prompt], options=GenerationOptions(8, 0.8), row_indexes=[3], batch_size=1)
        texts.append(model.text(batch[0]))
        assert isinstance(batch[0].ids, np.ndarray)
    assert texts[0] == texts[1]


def test_loading_switches_the_compilation_cache_on_and_opening_does_not(folder, monkeypatch):
    calls = []
    monkeypatch.setattr("zephyr_jax.generation.loading.keep_compiled_programs", lambda: calls.append(1))
    model = open_answer_model(str(folder), num_devices=1)
    assert not calls
    model.load()
    assert calls
