"""Who may see whom, told by three integers a token.

Every layout (padded rows, packed dialogues, pairs that share their prompt, cached decoding) is described by them, never
by a mask that travels with the batch. Not here: attention itself (attention.py).

Dimensions: B batch, T query, S key.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

MAX_BRANCHES = 255  # of a fork; pallas_attention.py packs segment and branch into one integer


class Coordinates(NamedTuple):
    """Where each token stands, int32 [B, T] each.

    Attributes:
      positions: RoPE position; starts at 0 in every segment.
      segments: dialogue or pair within the row, from 1; 0 is padding.
      branches: 0 for text that all later tokens of its segment see; from 1 to MAX_BRANCHES for answers that do not see
        each other. In rows of two levels, F = MAX_BRANCHES + 1: i F for a text that F i + 1, F i + 2, ... see as well
        as themselves and the text of branch 0.
    """

    positions: jax.Array
    segments: jax.Array
    branches: jax.Array


def visible(query: Coordinates, key: Coordinates, *, window: int | None) -> jax.Array:
    """Which keys each query may attend to.

    Args:
      query: coordinates of the queries, [B, T] each.
      key: coordinates of the keys, [B, S] each.
      window: sliding window in tokens, the current one included; None for no window.

    Returns:
      bool [B, T, S].
    """
    distance_BTS = query.positions[:, :, None] - key.positions[:, None, :]
    same_segment_BTS = (query.segments[:, :, None] == key.segments[:, None, :]) & (key.segments[:, None, :] > 0)
    own_BT1, key_B1S = query.branches[:, :, None], key.branches[:, None, :]
    branch_BTS = (key_B1S == 0) | (key_B1S == own_BT1) | (key_B1S == (own_BT1 & ~MAX_BRANCHES))
    allowed_BTS = same_segment_BTS & branch_BTS & (distance_BTS >= 0)
    return allowed_BTS if window is None else allowed_BTS & (distance_BTS < window)
