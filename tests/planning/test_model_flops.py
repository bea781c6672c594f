"""FLOPs of a pass: derived by hand, and against the count of a program's products (planning/flops.py)."""

from __future__ import annotations

import jax
import pytest

from zephyr_jax.data.packing import empty_micro_batch
from zephyr_jax.model.mistral import ModelSettings, abstract_params
from zephyr_jax.planning.flops import count_flops
from zephyr_jax.planning.model_flops import layer_weights, model_flops
from zephyr_jax.recipe import ModelShape
from zephyr_jax.training.objectives import sft_objective

SHAPE = ModelShape(
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=10,
    vocab_size=50,
)


def test_the_flops_of_a_pass_by_hand():
    """A layer: query and output 2 x 8 x 24, key and value 2 x 8 x 12, three of 8 x 10: 816 weights, 2448 in three.

    5 tokens: 2 x 2448 x 5 = 24480; 2 targets: 2 x 400 x 2 = 1600; 9 visible keys: 4 x 3 x 4 x 6 x 9 = 2592.
    """
    assert layer_weights(SHAPE) == 2448
    assert model_flops(SHAPE, num_tokens=5, num_targets=2, num_visible=9, is_training=False) == 28672
    assert model_flops(SHAPE, num_tokens=5, num_targets=2, num_visible=9) == 3 * 28672


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_layers_weights_are_those_of_the_parameter_tree(is_tied):
    """All but embedding, head and norms."""
    layers = abstract_params(SHAPE.model_copy(update={"tie_word_embeddings": is_tied}))["layers"]
    assert layer_weights(SHAPE) == sum(leaf.size for leaf in jax.tree.leaves(layers) if leaf.ndim > 2)


def test_the_formula_is_what_the_program_computes_where_nothing_is_wasted():
    """Rows without padding, every position a target, dense attention, which computes what the mask hides too.

    The head's backward pass makes the logits again: its product once more than in 3 forward passes.
    """
    rows, tokens = 2, 128
    sizes = {"num_tokens": rows * tokens, "num_targets": rows * tokens, "num_visible": rows * tokens**2}
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in empty_micro_batch(num_rows=rows, row_length=tokens, num_targets=tokens).items()
    }
    objective = sft_objective(shape=SHAPE, settings=ModelSettings(attention="xla", remat="none"))

    def loss(params, batch):
        return objective(params, batch).loss

    params = abstract_params(SHAPE)
    forward = count_flops(jax.make_jaxpr(loss)(params, batch)).flops
    assert forward == model_flops(SHAPE, **sizes, is_training=False)
    training = count_flops(jax.make_jaxpr(jax.grad(loss))(params, batch)).flops
    assert training == model_flops(SHAPE, **sizes) + 2 * SHAPE.hidden_size * SHAPE.vocab_size * rows * tokens
