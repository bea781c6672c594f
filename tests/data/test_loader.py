"""Batches: a pure function of the step, every item once an epoch, few shapes known before the run."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from tests.training.small_stages import dpo_options, sft_options
from zephyr_jax.data.encoded import EncodedConversations, EncodedPairs
from zephyr_jax.data.loader import PairBatches, SftBatches, seeded_order
from zephyr_jax.recipe import Dsft
from zephyr_jax.records import InputError


def make_dialogues(num_dialogues, *, seed=0, longest=60):
    """Dialogue i holds the id i + 1 alone; every token but the first is a target."""
    lengths = np.random.default_rng(seed).integers(2, longest + 1, num_dialogues)
    return EncodedConversations.collect(
        (i, np.full(length, i + 1), np.arange(length) > 0) for i, length in enumerate(lengths)
    )


def make_pairs(num_pairs, *, seed=0, longest=40):
    lengths = np.random.default_rng(seed).integers(1, longest + 1, (num_pairs, 3))
    return EncodedPairs.collect((i, *(np.full(length, i + 1) for length in row)) for i, row in enumerate(lengths))


def sft(num_dialogues=23, **options):
    return SftBatches(make_dialogues(num_dialogues), **{"max_length": 128, "packing": True, "batch_size": 4} | options)


def preferences(num_pairs=23, **options):
    return PairBatches(make_pairs(num_pairs), **{"layout": "packed", "row_length": 256, "batch_size": 8} | options)


def assert_equal_batches(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def dialogues_seen(batch):
    """The dialogue of every first token of a segment, in row order."""
    first = (batch["segments"] > 0) & (batch["positions"] == 0)
    return (batch["tokens"][first] - 1).tolist()


def pairs_seen(batch):
    return [int(row) for row, weight in zip(batch["pair_rows"].flat, batch["pair_weights"].flat, strict=True) if weight]


MAKERS = {
    "sft packed": lambda **options: sft(**options),
    "sft unpacked": lambda **options: sft(packing=False, **options),
    "pairs packed": lambda **options: preferences(**options),
    "pairs padded": lambda **options: preferences(layout="padded", **options),
}
each_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@each_kind
def test_a_batch_depends_on_the_step_alone(make):
    """Backwards, twice, from another object: so a run that starts at step 5 reads what it would have read."""
    batches, others = make(epochs=3, seed=5), make(epochs=3, seed=5)
    assert batches.num_steps == 3 * batches.num_steps_per_epoch > 5
    forwards = list(batches.batches())
    for step in reversed(range(1, batches.num_steps + 1)):
        assert_equal_batches(others.batch(step), forwards[step - 1])
    for batch, expected in zip(others.batches(start=5), forwards[4:], strict=True):
        assert_equal_batches(batch, expected)


@each_kind
@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 4}], ids=["whole", "accumulated"])
def test_some_rows_of_a_batch_are_those_of_the_whole_and_what_is_beside_the_rows_is_all_of_it(options, make):
    """Two processes, each with half of the rows, the last, smaller batch included."""
    batches = make(row_multiple=4, **{"batch_size": 8} | options)
    for step in range(1, batches.num_steps + 1):
        whole, num_rows = batches.batch(step), batches.shape(step).num_rows
        for rows in (slice(0, num_rows // 2), slice(num_rows // 2, num_rows)):
            part = batches.batch(step, rows)
            cut = {name: array[:, rows] if array.ndim == 3 else array for name, array in whole.items()}
            assert_equal_batches(part, cut)
            assert {name: array.dtype for name, array in part.items()} == {n: a.dtype for n, a in whole.items()}


@each_kind
def test_every_item_is_read_once_an_epoch_in_an_order_of_its_own(make):
    batches = make(epochs=2)
    seen = dialogues_seen if isinstance(batches, SftBatches) else pairs_seen
    order = [item for batch in batches.batches() for item in seen(batch)]
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    assert sorted(first) == sorted(second) == list(range(23))
    assert first != second and first != sorted(first)


@each_kind
def test_file_order_is_kept_without_shuffling(make):
    batches = make(shuffle=False, epochs=2)
    if isinstance(batches, PairBatches):
        assert [row for batch in batches.batches() for row in pairs_seen(batch)] == 2 * list(range(23))
    else:
        # A later dialogue may fill the rest of an early row, but rows stand in the order of their first dialogues.
        firsts = [int(row[0]) for batch in batches.batches() for rows in batch["tokens"] for row in rows if row[0]]
        half = firsts[: len(firsts) // 2]
        assert half == sorted(half) and firsts == 2 * half
        assert sorted(i for row in batches.rows for i in row) == list(range(23))


@each_kind
def test_shapes_are_few_and_known_before_the_run(make):
    for micro_batch_size, row_multiple in ((None, 1), (2, 1), (2, 8)):
        batches = make(epochs=4, micro_batch_size=micro_batch_size, row_multiple=row_multiple)
        found = set()
        for step, batch in enumerate(batches.batches(), start=1):
            shape = batches.shape(step)
            found.add(shape)
            a, b, t, n, p = shape
            assert batch["tokens"].shape == batch["positions"].shape == batch["segments"].shape == (a, b, t)
            assert batch["target_ids"].shape == batch["target_weights"].shape == (a, b, n) and n <= t
            assert batch["num_tokens"].shape == (a,) and b % row_multiple == 0
            assert p == 0 or batch["pair_weights"].shape == batch["pair_rows"].shape == (a, p)
            assert {array.dtype for array in batch.values()} == {np.dtype(np.int32), np.dtype(np.float32)}
        assert found == set(batches.shapes) and len(batches.shapes) == len(found) <= 4


@each_kind
def test_accumulation_splits_a_step_without_changing_what_it_reads(make):
    whole, split = make(epochs=2, seed=3), make(epochs=2, seed=3, micro_batch_size=2)
    assert split.num_steps == whole.num_steps and split.num_micro_batches == len(split.batch(1)["tokens"]) > 1
    for step in range(1, whole.num_steps + 1):
        left, right = whole.batch(step), split.batch(step)
        assert left["num_tokens"].sum() == right["num_tokens"].sum()
        assert sorted(left["target_ids"][left["target_weights"] > 0]) == sorted(
            right["target_ids"][right["target_weights"] > 0]
        )


@each_kind
def test_statistics_are_those_of_the_batches(make):
    for options in ({"epochs": 2}, {"max_steps": 5}, {"epochs": 1.5, "micro_batch_size": 2, "row_multiple": 4}):
        batches = make(**options)
        read = list(batches.batches())
        statistics = batches.statistics()
        assert statistics["steps"] == len(read) and statistics["steps_per_epoch"] == batches.num_steps_per_epoch
        assert statistics["tokens"] == sum(batch["num_tokens"].sum() for batch in read)
        assert statistics["target_tokens"] == sum(batch["target_weights"].sum() for batch in read)
        padding = np.mean(np.concatenate([(batch["segments"] == 0).ravel() for batch in read]))
        assert statistics["padding_share"] == pytest.approx(padding)


def test_the_last_smaller_batch_is_kept_and_filled_with_empty_pairs():
    """23 pairs in batches of 8: 8, 8, 7; the last has one filler pair that weighs nothing."""
    batches = preferences(micro_batch_size=4, epochs=2)
    assert batches.num_steps_per_epoch == 3 and batches.num_steps == 6
    assert [int(batch["pair_weights"].sum()) for batch in batches.batches()] == [8, 8, 7] * 2
    last = batches.batch(3)
    assert last["pair_rows"][1, 3] == -1 and last["target_slots"].max() < 2 * 4


def test_max_steps_counts_optimizer_steps_and_repeats_the_data():
    batches = preferences(max_steps=7, epochs=1)
    assert batches.num_steps == 7 and [len(pairs_seen(batch)) for batch in batches.batches()] == [8, 8, 7, 8, 8, 7, 8]
    with pytest.raises(ValueError, match="step: got 8"):
        batches.batch(8)
    with pytest.raises(ValueError, match="step: got 0"):
        batches.batch(0)


def test_a_pair_stays_in_the_step_that_the_order_gives_it_whatever_the_layout():
    packed, padded = preferences(seed=9, epochs=2), preferences(seed=9, epochs=2, layout="padded")
    for step in range(1, packed.num_steps + 1):
        assert pairs_seen(packed.batch(step)) == pairs_seen(padded.batch(step))
        assert packed.batch(step)["num_tokens"].sum() == padded.batch(step)["num_tokens"].sum()


def test_packing_keeps_the_rows_of_one_epoch_in_the_next():
    batches = sft(epochs=2)
    per_epoch = [
        sorted(
            tuple(row[row > 0])
            for step in range(epoch * batches.num_steps_per_epoch + 1, (epoch + 1) * batches.num_steps_per_epoch + 1)
            for rows in batches.batch(step)["tokens"]
            for row in rows
            if row.any()
        )
        for epoch in (0, 1)
    ]
    assert per_epoch[0] == per_epoch[1]


def test_rows_are_no_longer_than_the_data_needs():
    """Dialogues of at most 60 tokens: unpacked rows of 64; in packed rows of at most 2048 that three of them share."""
    assert sft(packing=False, max_length=2048).shapes[0].row_length == 64
    assert sft(num_dialogues=3, max_length=2048).shapes[0].row_length <= 256
    assert preferences(layout="padded").shapes[0].row_length == 128
    assert preferences(row_length=2048, batch_size=2).shapes[-1].row_length <= 256


def test_a_data_set_smaller_than_a_batch_is_computed_at_its_own_size():
    batches = preferences(num_pairs=3, batch_size=64, micro_batch_size=2)
    assert batches.shapes[0].num_micro_batches == 2 and batches.shapes[0].num_pairs == 2
    assert sorted(pairs_seen(batches.batch(1))) == [0, 1, 2] and batches.num_steps_per_epoch == 1


def test_padding_of_realistic_pairs_is_small():
    """Pairs of about 730 tokens in rows of at most 2048, in batches of 32: a tenth of all positions is padding.

    In batches of 2 (320 steps, so eight shapes) too, where rows of one length alone would make it a half.
    """
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.3, 0.6, (640, 3)), 8, 512).astype(int)
    pairs = EncodedPairs.collect((i, *(np.ones(length) for length in row)) for i, row in enumerate(lengths))
    assert 650 < lengths.sum(axis=1).mean() < 800
    for batch_size, max_shapes in ((32, 4), (2, 8)):
        batches = PairBatches(pairs, layout="packed", row_length=2048, batch_size=batch_size)
        assert batches.statistics()["padding_share"] < 0.1 and len(batches.shapes) <= max_shapes


def test_micro_batches_of_a_step_hold_about_the_same_number_of_tokens():
    """Eight pairs in four micro-batches of two: 90 + 10, 80 + 20, 70 + 30, 60 + 40 fill rows of 100 wholly.

    In file order they would be 90 + 80, 70 + 60, 40 + 30, 20 + 10, all in rows of 170.
    """
    lengths = np.array([[tokens - 8, 5, 3] for tokens in (90, 80, 70, 60, 40, 30, 20, 10)])
    pairs = EncodedPairs.collect((i, *(np.ones(length) for length in row)) for i, row in enumerate(lengths))
    batches = PairBatches(
        pairs, layout="packed", row_length=512, batch_size=8, micro_batch_size=2, shuffle=False, epochs=2
    )
    for step in (1, 2):
        assert sorted(map(sorted, batches.items(step))) == [[0, 7], [1, 6], [2, 5], [3, 4]]
    assert batches.shapes[0][:3] == (4, 1, 128)


def test_a_long_run_gives_a_step_that_was_not_sampled_a_shape_that_holds_it():
    """700 steps, of which every third is sampled; the one pair of 200 tokens in a row is in none of those."""
    lengths = np.full((700, 3), 5)
    lengths[400] = [100, 50, 50]
    pairs = EncodedPairs.collect((i, *(np.ones(length) for length in row)) for i, row in enumerate(lengths))
    batches = PairBatches(pairs, layout="packed", row_length=512, batch_size=1, shuffle=False)
    assert batches.items(401)[0].tolist() == [400] and batches.batch(401)["num_tokens"].sum() == 300
    assert batches.batch(401)["target_weights"].sum() == 100
    assert batches.shape(401) == batches.shapes[-1] != batches.shape(400)


def test_the_order_of_a_seed_never_changes():
    """A run interrupted before an upgrade must find its order after it: these are the frozen draws of MT19937."""
    golden = [9, 5, 8, 7, 6, 4, 0, 3, 1, 2]
    assert seeded_order(10, 42, stream=1).tolist() == golden
    assert seeded_order(10, 42, stream=2).tolist() != golden != seeded_order(10, 43, stream=1).tolist()


def test_users_mistakes_name_what_to_change():
    with pytest.raises(InputError, match=r"micro_batch_size: got 3, wanted a divisor of batch_size \(8\)"):
        preferences(micro_batch_size=3)
    with pytest.raises(InputError, match="got no usable rows"):
        preferences(num_pairs=0)
    with pytest.raises(ValueError, match="row_length: got 64, wanted at least the longest pair's"):
        preferences(row_length=64)
    with pytest.raises(ValueError, match="layout: got 'dense'"):
        preferences(layout="dense")


def test_a_run_of_real_size_is_planned_in_seconds():
    """61 000 pairs in micro-batches of 8: about 0.5 s alone, and 20 s leave room for a busy machine."""
    lengths = np.clip(np.random.default_rng(0).lognormal(3, 0.5, (61_000, 3)), 1, 100).astype(int)
    offsets = np.concatenate([[0], np.cumsum(lengths.ravel())])
    pairs = EncodedPairs(ids=np.zeros(offsets[-1], np.int32), offsets=offsets, rows=np.arange(len(lengths)))
    start = time.perf_counter()
    batches = PairBatches(pairs, layout="packed", row_length=512, batch_size=32, micro_batch_size=8)
    assert time.perf_counter() - start < 20
    assert batches.num_steps == math.ceil(61_000 / 32) and batches.batch(1907)["pair_weights"].sum() == 8


@pytest.mark.parametrize(
    "options, batches, layout",
    [
        (sft_options(packing=False), {"packing": False}, "plain"),
        (sft_options(isolate_dialogues=False), {"isolate_dialogues": False}, "plain"),
        (sft_options(), {}, "dialogues"),
        (dpo_options(layout="padded"), {"layout": "padded"}, "plain"),
        (dpo_options(), {}, "pairs"),
    ],
    ids=["dialogues_apart", "dialogues_in_sight", "dialogues", "padded_pairs", "pairs"],
)
def test_rows_are_what_the_options_promise_to_attention(options, batches, layout):
    """Plain: positions are places, one segment, no branches, padding at the end. Dialogues: no branches."""
    assert options.row_layout == layout
    made = sft(**batches) if isinstance(options, Dsft) else preferences(**batches)
    tokens_there = 0
    for batch in made.batches():
        rows = (batch[name][0] for name in ("segments", "positions", "branches"))
        for segments, positions, branches in zip(*rows, strict=True):
            length = np.count_nonzero(segments)
            is_plain = (segments[:length] == 1).all() and (positions[:length] == np.arange(length)).all()
            assert layout != "plain" or is_plain
            assert layout == "pairs" or not branches.any()
            tokens_there += length
    assert tokens_there > 100
