"""The batch that is assumed has the arrays of a real one, and is no smaller."""

from __future__ import annotations

import pytest

from tests.training.small_stages import dpo_options, make_dialogues, make_pairs, pair_batches, sft_batches, sft_options
from zephyr_jax.planning.batches import assume_batch
from zephyr_jax.records import InputError


def _forms(batch):
    return {name: (array.dtype, array.ndim) for name, array in batch.items()}


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_an_assumed_batch_of_pairs_has_the_arrays_of_a_real_one(layout):
    options = dpo_options(layout=layout, batch_size=8, micro_batch_size=4)
    real = pair_batches(make_pairs(16), layout=layout, batch_size=8, micro_batch_size=4, row_length=64).batch(1)
    assumed = assume_batch(options, row_multiple=1).arrays()
    real = {name: array for name, array in real.items() if not name.startswith("reference")}
    assert _forms(assumed) == _forms(real)
    assert assumed["tokens"].shape[:2] == (2, {"packed": 2, "padded": 8}[layout])


def test_an_assumed_batch_of_dialogues_has_the_arrays_of_a_real_one():
    options = sft_options(batch_size=8, micro_batch_size=4)
    real = sft_batches(make_dialogues(40), batch_size=8, micro_batch_size=4, max_length=64).batch(1)
    assumed = assume_batch(options, row_multiple=1).arrays()
    assert _forms(assumed) == _forms(real)
    assert assumed["tokens"].shape == real["tokens"].shape == (2, 4, 64)


def test_rows_are_a_multiple_of_the_devices_that_share_them_and_that_is_said():
    """8 pairs of 5/8 x 32 = 20 tokens fill 2.5 rows of 64: 3, which 4 devices compute as 4."""
    batch = assume_batch(dpo_options(), row_multiple=4)
    assert (batch.shape.num_rows, batch.num_positions) == (4, 256)
    text = " ".join(batch.assumptions)
    assert "8 pairs of 20 tokens" in text and "3 rows of 64" in text and "3 needed, 4 computed" in text


def test_the_rows_of_packed_pairs_can_be_given_and_no_others():
    """10 rows of a step are 5 in each of its 2 micro-batches."""
    given = assume_batch(dpo_options(micro_batch_size=4), row_multiple=1, rows_per_step=10)
    assert given.shape[:2] == (2, 5)
    for options in (sft_options(), dpo_options(layout="padded")):
        with pytest.raises(InputError, match="--rows-per-step: got 10, but only ddpo with layout: packed"):
            assume_batch(options, row_multiple=1, rows_per_step=10)
