"""FLOPs that the mathematics of a forward or training pass needs, whatever a program computes beside them.

Real tokens alone, the head on target tokens alone, nothing recomputed, no padding: what a model's FLOP utilisation
(MFU, arXiv:2204.02311, appendix B) counts. Not here: what a compiled program does.
"""

from __future__ import annotations

from zephyr_jax.recipe import ModelShape

FORMULA = (
    "model FLOPs of a forward pass = 2 x layer weights x tokens + 2 x hidden_size x vocab_size x targets "
    "+ 4 x layers x heads x head_dim x visible keys; x 3 with the backward pass"
)


def layer_weights(shape: ModelShape) -> int:
    """Weights of all layers that a token is multiplied by: projections and feed-forward."""
    attention = 2 * shape.hidden_size * shape.head_dim * (shape.num_attention_heads + shape.num_key_value_heads)
    feed_forward = 3 * shape.hidden_size * shape.intermediate_size
    return shape.num_hidden_layers * (attention + feed_forward)


def model_flops(
    shape: ModelShape, *, num_tokens: int, num_targets: int, num_visible: int = 0, is_training: bool = True
) -> int:
    """FORMULA: a multiplication and an addition count as two.

    Args:
      shape: the model's shape.
      num_tokens: tokens that go through the layers.
      num_targets: tokens that go through the head.
      num_visible: (query, key) pairs that attention sees, of one layer and head; 0: its scores are left out.
      is_training: whether there is a backward pass, of twice the forward pass's FLOPs.
    """
    heads = shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim
    forward = 2 * layer_weights(shape) * num_tokens
    forward += 2 * shape.hidden_size * shape.vocab_size * num_targets
    forward += 4 * heads * num_visible  # scores and their product with the values, 2 each
    return (3 if is_training else 1) * forward
