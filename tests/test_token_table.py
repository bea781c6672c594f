"""The table of tokens per pair: layouts counted by hand, the loader's row from the loader, and the table's text."""

from __future__ import annotations

import numpy as np

from benchmarks import token_table
from zephyr_jax.data.encoded import EncodedPairs

# prompt, chosen, rejected; answers' rows of 6 and 5, 9 and 7, 4 and 4 tokens
LENGTHS = np.array([[4, 2, 1], [5, 4, 2], [1, 3, 3]])


def _pairs() -> EncodedPairs:
    return EncodedPairs.collect((i, *(np.ones(length) for length in row)) for i, row in enumerate(LENGTHS))


def test_layouts_are_counted_with_their_padding():
    """Batches of 2 pairs: (0 1) and (2); rows of 12 tokens.

    padded: 4 rows of 9 and 2 of 4. Sorted by the longest of 4, 6, 9: 4 rows of 6 and 2 of 9. Packed, prompt with each
    answer: 9 | 7 5 | 6 makes three rows, 4 4 one. Shared: 7 and 11 tokens make two rows, 7 one.
    """
    assert token_table.batch_layouts(LENGTHS, batch_size=2, row_length=12) == {
        "padded": 4 * 9 + 2 * 4,
        "sorted": 4 * 6 + 2 * 9,
        "packed": 12 * (3 + 1),
        "shared": 12 * (2 + 1),
    }


def test_counts_are_per_pair_and_the_loader_is_asked_for_its_own():
    counts = token_table.count_tokens(_pairs(), batch_sizes=[2], row_length=128)
    assert counts["pairs"] == 3 and counts["unique_tokens"] == 25 / 3
    assert counts["layouts"]["shared"] == {"2": 128 * 2 / 3, "all": 128 / 3}
    assert counts["layouts"]["loader"] == {"2": 64 * 2 / 3}
    assert counts["shapes"] == {"2": [[1, 64]]}


def test_the_table_has_a_line_for_every_layout():
    settings = {"batch_sizes": [2], "tokenizer": "T", "max_length": 9, "max_prompt_length": 5, "row_length": 128}
    counts = token_table.count_tokens(_pairs(), batch_sizes=[2], row_length=128)
    text = token_table.table({"settings": settings, "sets": {"pairs": counts}})
    assert "| tokens processed per pair | batches of 2 | all at once |" in text
    assert "| packed rows, the prompt shared | 85 | 43 |" in text
    assert "| the same, as `train` loads it | 43 |  |" in text
    assert "| unique tokens | 8.3 | 8.3 |" in text
    assert "batches of 2: 1 x 64." in text
