"""config.json and generation_config.json, to and from a `ModelShape`. Files are opened by the callers.

Reading refuses whatever would change the numbers and is not built (RoPE scaling, biases, other activations) instead of
passing over it. Keys that a config.json leaves out have the values that transformers' own classes give them, which
differ between Mistral and Llama.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zephyr_jax.recipe import ModelShape
from zephyr_jax.records import InputError

_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
    "llama": {"num_key_value_heads": None, "sliding_window": None, "max_position_embeddings": 2048},
}
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
# key -> the only value that we compute, which is also what an absent key means
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None}


def read_shape(config: Mapping[str, Any], *, where: str) -> ModelShape:
    """The model that a config.json describes.

    Args:
      config: the file's content; RoPE's theta is read from `rope_parameters` (transformers 5) or `rope_theta` (4).
      where: the file's name, for messages.

    Returns:
      The configuration.

    Raises:
      InputError: for another kind of model, for an option that is not built, for a missing or wrong value.
    """
    model_type = config.get("model_type")
    if model_type not in _DEFAULTS:
        raise InputError(f"{where}: model_type is {model_type!r}; supported are {', '.join(_DEFAULTS)}")
    absent = [key for key in _REQUIRED if config.get(key) is None]
    if absent:
        raise InputError(f"{where}: {', '.join(absent)} missing; is this the config.json of a whole model?")
    for key, wanted in _FIXED.items():
        if config.get(key, wanted) not in (wanted, None):
            raise InputError(f"{where}: {key} is {config[key]!r}, which is not supported; only {wanted!r} is")
    defaults = _DEFAULTS[model_type]
    heads = config.get("num_key_value_heads", defaults["num_key_value_heads"])
    fields = {key: config[key] for key in _REQUIRED} | {
        "num_key_value_heads": config["num_attention_heads"] if heads is None else heads,
        "rope_theta": _read_rope_theta(config, where=where),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        # A window means something to Mistral only: transformers' Llama has none, whatever its config.json says.
        "sliding_window": config.get("sliding_window", defaults["sliding_window"]) if model_type == "mistral" else None,
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "max_position_embeddings": config.get("max_position_embeddings", defaults["max_position_embeddings"]),
    }
    if config.get("head_dim") is not None:
        fields["head_dim"] = config["head_dim"]
    try:
        return ModelShape(**fields)
    except ValueError as error:
        raise InputError(f"{where}: {_reason(error)}") from error


def _reason(error: ValueError) -> str:
    """pydantic's findings in one line, without its web addresses."""
    if not hasattr(error, "errors"):
        return str(error)
    return "; ".join(": ".join([*map(str, found["loc"]), found["msg"]]) for found in error.errors())


def _read_rope_theta(config: Mapping[str, Any], *, where: str) -> float:
    parameters = config.get("rope_parameters") or {}
    for options in (parameters, config.get("rope_scaling") or {}):
        kind = options.get("rope_type", options.get("type", "default"))
        if kind != "default":
            raise InputError(f"{where}: RoPE of type {kind!r} is not supported; only 'default' (no scaling) is")
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise InputError(f"{where}: rope_parameters differ between layers, which is not supported")
    if parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise InputError(f"{where}: partial_rotary_factor is not 1, which is not supported")
    thetas = {found["rope_theta"] for found in (parameters, config) if found.get("rope_theta") is not None}
    if len(thetas) > 1:
        raise InputError(f"{where}: rope_theta and rope_parameters.rope_theta disagree ({sorted(thetas)}); correct one")
    return thetas.pop() if thetas else 10_000.0


def read_stop_ids(generation_config: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a generation: those of generation_config.json, else those of config.json, else none."""
    for content in (generation_config, config):
        stop = content.get("eos_token_id")
        if stop is not None:
            return tuple(stop) if isinstance(stop, Sequence) else (stop,)
    return ()


def make_config(shape: ModelShape, *, dtype: str, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a model.

    A model without a window is written as a Mistral too: its `sliding_window: null` computes what a Llama computes.

    Args:
      shape: the model's configuration.
      dtype: type of the stored weights.
      token_ids: from `make_generation_config`.

    Returns:
      The file's content.
    """
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        **shape.model_dump(),
        # Version 5 of transformers reads the second, version 4 and most servers the first (in `shape`).
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        **token_ids,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def make_generation_config(*, bos_id: int | None, pad_id: int, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The generation_config.json of a model: one stop id stands alone, several stand in a list."""
    return {
        "bos_token_id": bos_id,
        "eos_token_id": stop_ids[0] if len(stop_ids) == 1 else list(stop_ids),
        "pad_token_id": pad_id,
    }
