"""Rows: every token once, nothing overflows, every target is predicted from what truly precedes it."""

from __future__ import annotations

import inspect
import time

import numpy as np
import pytest

from zephyr_jax.data.encoded import EncodedConversations, EncodedPairs
from zephyr_jax.data.packing import best_fit, dialogue_micro_batch, target_width
from zephyr_jax.data.pair_rows import pack_pairs, packed_pair_micro_batch, padded_pair_micro_batch


def random_dialogues(rng, num_dialogues, longest=20):
    """Ids that never repeat, so that a token found says which one it is."""
    items, next_id = [], 1
    for row in range(num_dialogues):
        length = int(rng.integers(2, longest + 1))
        is_target = rng.random(length) < 0.5
        is_target[0], is_target[-1] = False, True
        items.append((row, np.arange(next_id, next_id + length), is_target))
        next_id += length
    return EncodedConversations.collect(items)


def random_pairs(rng, num_pairs, longest=8):
    items, next_id = [], 1
    for row in range(num_pairs):
        parts = []
        for length in rng.integers(1, longest + 1, 3):
            parts.append(np.arange(next_id, next_id + length))
            next_id += int(length)
        items.append((row, *parts))
    return EncodedPairs.collect(items)


def realistic_lengths(rng, num_items, longest=2048):
    """Mean about 640, a long tail, as pairs and dialogues have it."""
    return np.clip(rng.lognormal(mean=6.3, sigma=0.6, size=num_items), 16, longest).astype(int)


def documented_table(function):
    """The arrays drawn in a docstring, `name  values`, by name; of a repeated name the first."""
    table = {}
    for line in inspect.getdoc(function).splitlines():
        name, *values = line.split() or [""]
        if values and all(value.isdigit() for value in values):
            table.setdefault(name, []).append([int(value) for value in values])
    return table


def visible(batch, row):
    """bool [T, T]: whether the query (first axis) sees the key, by the format's rule."""
    positions, segments, branches = (batch[name][row] for name in ("positions", "segments", "branches"))
    same = (segments[:, None] == segments) & (segments != 0)
    return same & (positions <= positions[:, None]) & ((branches == 0) | (branches == branches[:, None]))


def context(batch, row, query):
    """The ids that a query sees, by their positions: the text as the model reads it."""
    keys = np.flatnonzero(visible(batch, row)[query])
    return batch["tokens"][row, keys[np.argsort(batch["positions"][row, keys])]].tolist()


def targets(batch):
    """Every target as (text before it, id, slot)."""
    return sorted(
        (context(batch, row, source), int(target), int(slot))
        for row in range(len(batch["tokens"]))
        for source, target, slot, weight in zip(
            *(batch[f"target_{name}"][row] for name in ("sources", "ids", "slots", "weights")), strict=True
        )
        if weight
    )


def pair_targets(pairs, indexes):
    """The same, from the pairs themselves."""
    return sorted(
        ([*prompt, *response[:j]], int(target), 2 * p + side)
        for p, index in enumerate(indexes)
        for prompt, *responses in [pairs[index]]
        for side, response in enumerate(responses)
        for j, target in enumerate(response)
    )


def test_best_fit_fills_the_fullest_row_that_holds_the_item():
    table = documented_table(best_fit)
    (lengths,), (row_of_item,) = table["length"], table["row"]
    rows = best_fit(lengths, 10)
    assert [next(r for r, row in enumerate(rows) if item in row) for item in range(6)] == row_of_item


def test_best_fit_holds_every_item_once_and_overflows_no_row():
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths = rng.integers(1, 33, int(rng.integers(1, 60)))
        order = rng.permutation(len(lengths))
        rows = best_fit(lengths, 32, order=order)
        assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
        assert max(lengths[row].sum() for row in rows) <= 32
        # Rows are ordered by their first item and items by when they came, so file order stays readable.
        when = np.argsort(order)
        firsts = [when[row[0]] for row in rows]
        assert firsts == sorted(firsts) and all(list(when[row]) == sorted(when[row]) for row in rows)
        # Of two rows at most half full, the later one's items would have fitted the earlier.
        assert sum(lengths[row].sum() <= 16 for row in rows) <= 1


def test_best_fit_refuses_what_no_row_holds():
    with pytest.raises(ValueError, match="got 3 to 9, wanted 1 to the row's 8 tokens"):
        best_fit([3, 9], 8)
    assert best_fit([], 8) == []


def test_two_hundred_thousand_dialogues_pack_densely_in_seconds():
    """A loop over rows per item would take hours; 10 s leaves room for a busy machine (about 0.5 s alone)."""
    rng = np.random.default_rng(0)
    lengths = realistic_lengths(rng, 200_000)
    assert 550 < lengths.mean() < 750
    start = time.perf_counter()
    rows = best_fit(lengths, 2048)
    assert time.perf_counter() - start < 10
    assert lengths.sum() / (2048 * len(rows)) > 0.97


def test_pairs_of_a_micro_batch_pack_densely():
    rng = np.random.default_rng(1)
    lengths = realistic_lengths(rng, 64)
    rows = pack_pairs(lengths, 2048)
    assert sorted(p for row in rows for p in row) == list(range(64))
    assert lengths.sum() / (2048 * len(rows)) >= 0.9
    assert rows == sorted(rows) and all(row == sorted(row) for row in rows)


def test_the_drawn_dialogue_row_is_what_is_made():
    dialogues = EncodedConversations.collect(
        [(0, np.array([11, 12, 13]), np.array([False, False, True])), (1, np.array([21, 22]), np.array([False, True]))]
    )
    batch = dialogue_micro_batch(dialogues, [[0, 1]], num_rows=1, row_length=6, num_targets=3)
    table = documented_table(dialogue_micro_batch)
    assert set(table) >= {name for name in batch if name != "num_tokens"}
    for name in set(table) & set(batch):
        assert batch[name][0].tolist() == table[name][0], name
    assert batch["num_tokens"] == 5


def test_the_drawn_packed_pair_is_what_is_made():
    pairs = EncodedPairs.collect([(0, np.array([1, 2, 3]), np.array([4, 5]), np.array([6]))])
    batch = packed_pair_micro_batch(pairs, [0], num_rows=1, row_length=8, num_targets=4, num_pairs=2)
    table = documented_table(packed_pair_micro_batch)
    assert set(table) >= set(batch) - {"num_tokens", "pair_weights", "pair_rows"}
    for name in set(table) & set(batch):
        assert batch[name][0].tolist() == table[name][0], name
    assert batch["pair_weights"].tolist() == [1, 0] and batch["pair_rows"].tolist() == [0, -1]
    assert batch["num_tokens"] == 3 + 2 + 3 + 1


def test_the_drawn_padded_pair_is_what_is_made():
    pairs = EncodedPairs.collect([(0, np.array([1, 2, 3]), np.array([4, 5]), np.array([6]))])
    batch = padded_pair_micro_batch(pairs, [0], num_rows=2, row_length=6, num_targets=4, num_pairs=1)
    assert batch["tokens"].tolist() == documented_table(padded_pair_micro_batch)["tokens"]
    assert not batch["branches"].any() and batch["num_tokens"] == 9


def test_every_dialogue_token_stands_once_and_every_target_follows_its_own_dialogue():
    rng = np.random.default_rng(2)
    for _ in range(10):
        dialogues = random_dialogues(rng, 12)
        rows = best_fit(dialogues.lengths, 32)
        width = int(dialogues.is_target.sum())
        batch = dialogue_micro_batch(dialogues, rows, num_rows=len(rows) + 1, row_length=32, num_targets=width)
        tokens = batch["tokens"][batch["segments"] > 0]
        assert sorted(tokens) == dialogues.ids.tolist() and batch["num_tokens"] == len(tokens)
        expected = sorted(
            (ids[:j].tolist(), int(ids[j]), 0)
            for ids, is_target in (dialogues[i] for i in range(len(dialogues)))
            for j in np.flatnonzero(is_target)
        )
        assert targets(batch) == expected
        assert all(not array[-1].any() for name, array in batch.items() if array.ndim)  # the row added is empty


def test_dialogues_that_are_not_isolated_see_those_before_them_but_have_the_same_targets():
    rng = np.random.default_rng(3)
    dialogues = random_dialogues(rng, 3, longest=10)
    make = {
        isolated: dialogue_micro_batch(
            dialogues, [[0, 1, 2]], num_rows=1, row_length=32, num_targets=32, isolate_dialogues=isolated
        )
        for isolated in (True, False)
    }
    joined, total = make[False], int(dialogues.lengths.sum())
    assert context(joined, 0, total - 1) == dialogues.ids.tolist()
    assert joined["positions"][0, :total].tolist() == list(range(total))
    for name in ("tokens", "target_sources", "target_ids", "target_weights"):
        np.testing.assert_array_equal(joined[name], make[True][name])


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_response_token_is_predicted_from_its_prompt_and_response_alone(layout):
    rng = np.random.default_rng(4)
    for _ in range(10):
        pairs = random_pairs(rng, 9)
        indexes = rng.permutation(9)[:6]
        sizes = {"num_targets": 64, "num_pairs": 8, "row_length": 32}
        if layout == "packed":
            num_rows = len(pack_pairs(pairs.lengths[indexes].sum(axis=1), 32))
            batch = packed_pair_micro_batch(pairs, indexes, num_rows=num_rows, **sizes)
        else:
            batch = padded_pair_micro_batch(pairs, indexes, num_rows=16, **sizes)
        assert targets(batch) == pair_targets(pairs, indexes)
        assert batch["pair_rows"].tolist() == [*indexes, -1, -1]
        assert batch["pair_weights"].tolist() == [1] * 6 + [0] * 2
        assert batch["num_tokens"] == (2 * pairs.lengths[indexes, 0] + pairs.lengths[indexes, 1:].sum(axis=1)).sum()
        weights = batch["target_weights"]
        assert (np.diff(weights, axis=1) <= 0).all()  # targets in front, filler behind
        counts = np.bincount(batch["target_slots"][weights > 0], minlength=16)
        np.testing.assert_array_equal(counts[:12].reshape(6, 2), pairs.lengths[indexes, 1:])


def test_a_packed_row_holds_each_prompt_once_and_no_key_after_its_query():
    """The attention kernels skip all keys after a query, so what is visible must stand before it."""
    rng = np.random.default_rng(5)
    pairs = random_pairs(rng, 6)
    rows = pack_pairs(pairs.lengths.sum(axis=1), 48)
    batch = packed_pair_micro_batch(
        pairs, range(6), num_rows=len(rows), row_length=48, num_targets=48, num_pairs=6, pad_id=7777
    )
    real = batch["segments"] > 0
    assert sorted(batch["tokens"][real]) == pairs.ids.tolist()
    assert (batch["tokens"][~real] == 7777).all()
    for row in range(len(rows)):
        assert not np.triu(visible(batch, row), k=1).any()
        assert visible(batch, row).diagonal().tolist() == real[row].tolist()


def test_target_width_is_a_multiple_that_holds_the_targets():
    assert [target_width(n, 2048) for n in (0, 1, 128, 129)] == [128, 128, 128, 256]
    assert [target_width(n, 256) for n in (1, 65, 256)] == [64, 128, 256]
    assert target_width(1021, 1021) == 1024
