"""A Hugging Face folder of a tiny random chat model that reads bytes, for the commands that answer."""

from __future__ import annotations

from pathlib import Path

from tests.generation.random_models import make_params, make_shape
from zephyr_jax.data.chat import load_chat_tokenizer
from zephyr_jax.model.hf_folder import save_model


def write_chat_model(folder: Path, *, context: int = 4096, seed: int = 0, bos: str = "auto") -> Path:
    """Writes the folder: Zephyr's template, float32, a context of so many tokens."""
    tokenizer = load_chat_tokenizer("builtin:bytes", bos=bos)
    shape = make_shape(vocab_size=-tokenizer.vocab_size // 16 * -16, max_position_embeddings=context)
    save_model(make_params(shape, seed=seed), folder, shape=shape, dtype="float32", tokenizer=tokenizer)
    return folder
