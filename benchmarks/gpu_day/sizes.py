"""How large the day's parts are: on the GPU, and as a toy for the test on a CPU."""

from __future__ import annotations

import dataclasses

TOY_SHAPE = (
    "model.shape={hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, "
    "intermediate_size: 48, vocab_size: 259, sliding_window: 48}"
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of every part.

    Attributes:
      overrides: of recipe.yaml.
      num_dialogues, num_pairs, text_scale: of rows.write_rows. Dialogues for more full steps than are measured; pairs
        for one step, so that all steps are of one shape and one program is compiled.
      num_steps: measured steps of a stage.
      num_heads, num_kv_heads, head_dim: of attention on its own.
      checked_tokens: row length of the numbers; the host computes the same.
      checked_window: sliding window there.
      timed_lengths: row lengths of the times.
      timed_tokens: tokens of a timed call, over all rows.
      decode_sizes: rows decoded together.
      decode_prompt_tokens, decode_new_tokens: of every row.
      peer_micro_batch: pairs that TRL computes at once.
    """

    overrides: tuple[str, ...] = ()
    num_dialogues: int = 192
    num_pairs: int = 32
    text_scale: float = 1.0
    num_steps: int = 5
    num_heads: int = 20
    num_kv_heads: int = 4
    head_dim: int = 128
    checked_tokens: int = 1024
    checked_window: int = 200
    timed_lengths: tuple[int, ...] = (2048, 1024, 4096, 8192)
    timed_tokens: int = 16384
    decode_sizes: tuple[int, ...] = (1, 8, 32)
    decode_prompt_tokens: int = 256
    decode_new_tokens: int = 128
    peer_micro_batch: int = 4


GPU = Sizes()
TOY = Sizes(
    overrides=(
        TOY_SHAPE,
        "dsft.max_length=128",
        "dsft.batch_size=4",
        "dsft.micro_batch_size=2",
        "ddpo.max_length=128",
        "ddpo.max_prompt_length=64",
        "ddpo.row_length=256",
        "ddpo.batch_size=4",
    ),
    num_dialogues=8,
    num_pairs=4,
    text_scale=0.05,
    num_steps=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    checked_tokens=288,
    checked_window=40,
    timed_lengths=(288,),
    timed_tokens=288,
    decode_sizes=(2,),
    decode_prompt_tokens=16,
    decode_new_tokens=64,
    peer_micro_batch=2,
)
