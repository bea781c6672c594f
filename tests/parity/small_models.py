"""Small Mistral and Llama models whose weights follow from a seed: the same in torch and in JAX, nothing stored.

Numpy only. A tensor's values depend on the model's seed and on the tensor's own Hugging Face name, and on nothing
else, so the order in which two programs make them does not matter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import zlib
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class SmallModel:
    """A configuration and the seed of its weights; `sliding_window` None and `architecture` llama go together."""

    name: str
    seed: int
    hidden_size: int = 48
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 12
    intermediate_size: int = 80
    vocab_size: int = 61
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    architecture: str = "mistral"

    def shape(self) -> dict[str, Any]:
        """The keys of a recipe's `model.shape`."""
        fields = dataclasses.asdict(self)
        for key in ("name", "seed", "architecture"):
            del fields[key]
        return fields | {"max_position_embeddings": 4096}

    def config(self) -> dict[str, Any]:
        """The content of config.json, in the manner of transformers 4 (`rope_theta` at the top)."""
        config = self.shape() | {
            "model_type": self.architecture,
            "architectures": [f"{self.architecture.capitalize()}ForCausalLM"],
            "hidden_act": "silu",
            "torch_dtype": "float32",
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        if self.architecture == "llama":
            del config["sliding_window"]
        return config


# Each row has one thing that a wrong model would get wrong; texts are NUM_TOKENS long.
NUM_TOKENS = 40
SMALL_MODELS = (
    SmallModel("grouped_untied", seed=1),
    SmallModel("window_of_7", seed=2, sliding_window=7),
    SmallModel("window_of_1_sees_itself_only", seed=3, sliding_window=1),
    SmallModel("window_one_short_of_text", seed=4, sliding_window=NUM_TOKENS - 1),
    SmallModel("ungrouped_tied_large_theta", seed=5, num_key_value_heads=4, tie_word_embeddings=True, rope_theta=1e6),
    SmallModel("one_key_head_wide_heads", seed=6, num_key_value_heads=1, head_dim=20, rope_theta=500.0),
    SmallModel("large_eps_window_of_16", seed=7, rms_norm_eps=0.05, sliding_window=16, num_hidden_layers=3),
    SmallModel("llama_tied", seed=8, architecture="llama", tie_word_embeddings=True, rope_theta=100000.0),
)

# The model that TRL trains: our byte tokenizer's vocabulary, and a window shorter than the pairs.
TRAINED_MODEL = SmallModel(
    "trained",
    seed=11,
    hidden_size=64,
    num_hidden_layers=3,
    head_dim=16,
    intermediate_size=160,
    vocab_size=259,
    sliding_window=64,
)


def tensor_shapes(model: SmallModel) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> shape, for every tensor of the model's checkpoint."""
    hidden, heads, head = model.hidden_size, model.num_attention_heads, model.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (model.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not model.tie_word_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    for layer in range(model.num_hidden_layers):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (heads * head, hidden),
                "self_attn.k_proj": (model.num_key_value_heads * head, hidden),
                "self_attn.v_proj": (model.num_key_value_heads * head, hidden),
                "self_attn.o_proj": (hidden, heads * head),
                "mlp.gate_proj": (model.intermediate_size, hidden),
                "mlp.up_proj": (model.intermediate_size, hidden),
                "mlp.down_proj": (hidden, model.intermediate_size),
                "input_layernorm": (hidden,),
                "post_attention_layernorm": (hidden,),
            }.items()
        }
    return shapes


def make_tensors(model: SmallModel) -> dict[str, np.ndarray]:
    """The weights: uniform noise of unit variance from RandomState(crc32("SEED NAME")), scaled.

    RandomState's `random_sample` is frozen by numpy and needs no libm, so every machine gets the same bits. Matrices
    are divided by sqrt(fan-in); norm scales are 1 + noise / 5, so that leaving one out shows; queries are tripled, so
    that attention is far from uniform and a wrong mask or angle shows.
    """
    tensors = {}
    for name, shape in tensor_shapes(model).items():
        random = np.random.RandomState(zlib.crc32(f"{model.seed} {name}".encode()))
        noise = (random.random_sample(shape) - 0.5) * np.sqrt(12.0)
        if len(shape) == 1:
            values = 1.0 + 0.2 * noise
        elif name == "model.embed_tokens.weight":
            values = noise * (model.hidden_size**-0.5 if model.tie_word_embeddings else 0.5)
        else:
            values = noise / np.sqrt(shape[1]) * (3.0 if "q_proj" in name else 1.0)
        tensors[name] = values.astype(np.float32)
    return tensors


def make_tokens(model: SmallModel, *, batch_size: int = 2) -> np.ndarray:
    """int32 [batch_size, NUM_TOKENS], uniform over the vocabulary, from the model's seed."""
    random = np.random.RandomState(1000 + model.seed)
    return random.randint(0, model.vocab_size, size=(batch_size, NUM_TOKENS)).astype(np.int32)


def model_hash(model: SmallModel) -> str:
    """sha256 of configuration, weights and tokens: a golden file keeps it to show that both sides had the same."""
    digest = hashlib.sha256(json.dumps(model.config(), sort_keys=True).encode())
    for name, values in sorted(make_tensors(model).items()):
        digest.update(name.encode() + values.tobytes())
    digest.update(make_tokens(model).tobytes())
    return digest.hexdigest()


def write_folder(model: SmallModel, folder: pathlib.Path) -> pathlib.Path:
    """Writes config.json and model.safetensors (no tokenizer); returns the folder."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(make_tensors(model), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config(), indent=2), encoding="utf-8")
    return folder
