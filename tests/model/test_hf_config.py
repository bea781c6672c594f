"""config.json: every spelling of the same model gives the same shape, and what is not built is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model.tiny_folders import TIED, UNTIED, make_config
from zephyr_jax.model import hf_config
from zephyr_jax.records import InputError


def read(**changes: Any) -> Any:
    return hf_config.read_shape(make_config(UNTIED, **changes), where="config.json")


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def test_rope_theta_is_read_in_the_manner_of_version_4_and_5() -> None:
    assert read() == UNTIED
    modern = without(make_config(UNTIED), "rope_theta")
    modern["rope_parameters"] = {"rope_type": "default", "rope_theta": 12345.0}
    assert hf_config.read_shape(modern, where="config.json") == UNTIED
    assert read(rope_theta=1_000_000).rope_theta == 1e6
    assert read(rope_theta=12345, rope_parameters={"rope_theta": 12345.0}) == UNTIED


def test_two_thetas_that_disagree_are_refused() -> None:
    with pytest.raises(InputError, match="disagree"):
        read(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})


@pytest.mark.parametrize("shape", [UNTIED, TIED], ids=["window", "no_window"])
def test_the_config_that_we_write_reads_back_as_the_same_shape(shape: Any) -> None:
    written = hf_config.make_config(shape, dtype="bfloat16", token_ids={"eos_token_id": 2})
    assert hf_config.read_shape(written, where="config.json") == shape


def test_absent_keys_have_the_defaults_of_the_models_own_class() -> None:
    """transformers 5.23: MistralConfig has 8 key/value heads and a window of 4096, LlamaConfig neither."""
    required = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 16,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    mistral = hf_config.read_shape(required | {"model_type": "mistral"}, where="config.json")
    assert (mistral.num_key_value_heads, mistral.sliding_window, mistral.head_dim) == (8, 4096, 4)
    assert (mistral.rms_norm_eps, mistral.rope_theta, mistral.tie_word_embeddings) == (1e-6, 10000.0, False)
    llama = hf_config.read_shape(required | {"model_type": "llama"}, where="config.json")
    assert (llama.num_key_value_heads, llama.sliding_window, llama.max_position_embeddings) == (16, None, 2048)


def test_null_means_derived() -> None:
    shape = read(head_dim=None, num_key_value_heads=None, sliding_window=None)
    assert (shape.head_dim, shape.num_key_value_heads, shape.sliding_window) == (8, 4, None)


def test_a_llama_has_no_window_whatever_its_config_says() -> None:
    assert read(model_type="llama", sliding_window=7).sliding_window is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'; supported are mistral, llama"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_size": None}, "hidden_size missing"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which is not supported; only 'silu' is"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE of type 'linear' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "RoPE of type 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 12345.0}}, "RoPE of type 'yarn'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters differ between layers"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
        ({"num_attention_heads": 3}, "num_key_value_heads: got 2, wanted a divisor"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"vocab_size": "many"}, "vocab_size: .*valid integer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_computed_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^config.json: .*{message}"):
        read(**changes)


def test_harmless_values_are_passed_over() -> None:
    assert (
        read(rope_scaling=None, attention_bias=False, rope_parameters=None, hidden_act=None, torch_dtype="x") == UNTIED
    )


def test_one_stop_id_stands_alone_and_several_in_a_list() -> None:
    one = hf_config.make_generation_config(bos_id=None, pad_id=0, stop_ids=(2,))
    several = hf_config.make_generation_config(bos_id=1, pad_id=0, stop_ids=(2, 5))
    assert one == {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    assert several["eos_token_id"] == [2, 5]
    assert hf_config.read_stop_ids(one, {}) == (2,) and hf_config.read_stop_ids(several, {}) == (2, 5)
    assert hf_config.read_stop_ids({}, {"eos_token_id": 9}) == (9,) and hf_config.read_stop_ids({}, {}) == ()
