"""The model's formulas once more, as plain loops in numpy: what the real one is compared with. Not a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zephyr_jax.recipe import ModelShape


def forward_by_hand(params: Mapping[str, Any], tokens_T: Sequence[int], shape: ModelShape) -> np.ndarray:
    """Logits [T, V] in float64: one layer, head and query after the other, RoPE as a turn in the complex plane."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    num_tokens, half = len(tokens_T), shape.head_dim // 2
    window = shape.sliding_window or num_tokens

    def norm(x_TD, scale_D):
        return x_TD / np.sqrt((x_TD**2).mean(axis=-1, keepdims=True) + shape.rms_norm_eps) * scale_D

    def turn(x_TH):
        angles = np.outer(np.arange(num_tokens), shape.rope_theta ** (-2.0 * np.arange(half) / shape.head_dim))
        turned = (x_TH[:, :half] + 1j * x_TH[:, half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], axis=1)

    x_TD = params["embedding"][np.asarray(tokens_T)]
    for number in range(shape.num_hidden_layers):
        layer = jax.tree.map(lambda leaf: leaf[number], params["layers"])
        heads, normed_TD = layer["attention"], norm(x_TD, layer["attention_norm"]["scale"])
        for n in range(shape.num_attention_heads):
            kv = n // (shape.num_attention_heads // shape.num_key_value_heads)
            q_TH = turn(normed_TD @ heads["query"][:, n])
            k_TH, v_TH = turn(normed_TD @ heads["key"][:, kv]), normed_TD @ heads["value"][:, kv]
            mixed_TH = np.zeros_like(v_TH)
            for t in range(num_tokens):
                first = max(0, t - window + 1)
                weights = np.exp(k_TH[first : t + 1] @ q_TH[t] / np.sqrt(shape.head_dim))
                mixed_TH[t] = weights @ v_TH[first : t + 1] / weights.sum()
            x_TD = x_TD + mixed_TH @ heads["output"][n]
        normed_TD = norm(x_TD, layer["mlp_norm"]["scale"])
        gate_TF = normed_TD @ layer["mlp"]["gate"]
        x_TD = x_TD + (gate_TF / (1 + np.exp(-gate_TF)) * (normed_TD @ layer["mlp"]["up"])) @ layer["mlp"]["down"]
    head_VD = params["embedding"] if shape.tie_word_embeddings else params["head"]
    return norm(x_TD, params["final_norm"]["scale"]) @ head_VD.T
