"""Rows of contexts with their continuations: nothing is lost, nothing sees its sibling, one shape for all."""

from __future__ import annotations

import numpy as np
import pytest

from zephyr_jax.data import continuation_rows
from zephyr_jax.data.continuation_rows import (
    Fork,
    bundle_forks,
    common_beginnings,
    fork_requests,
    lay_out_rows,
    row_lengths,
    truncate,
)


def _requests(rng: np.random.Generator, *, num_items: int) -> list[tuple[list[int], list[int]]]:
    """Items of four continuations of 1 to 9 tokens after a context of 5 to 60."""
    requests = []
    for _ in range(num_items):
        context = rng.integers(1, 50, rng.integers(5, 60)).tolist()
        requests += [(context, rng.integers(1, 50, rng.integers(1, 10)).tolist()) for _ in range(4)]
    return requests


def test_a_row_is_laid_out_as_its_docstring_says():
    fork = Fork(np.array([1, 2, 3]), (np.array([4, 5, 6]), np.array([7, 8]), np.array([9])), ((0,), (1,), (2,)))
    laid = lay_out_rows([fork], tokens_per_step=256)
    batch, owners = laid.step(0)
    wanted = {
        "tokens": [1, 2, 3, 4, 5, 7, 0, 0],
        "positions": [0, 1, 2, 3, 4, 3, 0, 0],
        "segments": [1, 1, 1, 1, 1, 1, 0, 0],
        "branches": [0, 0, 0, 1, 1, 2, 0, 0],
        "target_sources": [2, 3, 4, 2, 5, 2],
        "target_ids": [4, 5, 6, 7, 8, 9],
        "target_slots": [0, 0, 0, 1, 1, 2],
        "target_weights": [1, 1, 1, 1, 1, 1, 0],
    }
    for name, values in wanted.items():
        assert batch[name][0, : len(values)].tolist() == values, name
    assert owners == [(0,), (1,), (2,)] and batch["tokens"].shape == (1, 256) and batch["target_ids"].shape == (1, 64)


def test_contexts_that_begin_alike_are_laid_out_as_the_docstring_says(monkeypatch):
    monkeypatch.setattr(continuation_rows, "LEAST_SHARED_TOKENS", 2)
    requests = [([1, 2, 3], [4, 5]), ([1, 2, 3], [7, 8]), ([1, 2, 6], [9, 8])]
    forks = fork_requests(requests, max_length=100, max_branches=255).forks
    batch, owners = lay_out_rows(forks, tokens_per_step=256).step(0)
    wanted = {
        "tokens": [1, 2, 3, 4, 7, 6, 9, 0],
        "positions": [0, 1, 2, 3, 3, 2, 3, 0],
        "segments": [1, 1, 1, 1, 1, 1, 1, 0],
        "branches": [0, 0, 256, 257, 258, 512, 513, 0],
        "target_sources": [2, 3, 2, 4, 5, 6],
        "target_ids": [4, 5, 7, 8, 9, 8],
        "target_slots": [0, 0, 1, 1, 2, 2],
    }
    for name, values in wanted.items():
        assert batch[name][0, : len(values)].tolist() == values, name
    assert owners == [(0,), (1,), (2,)]


def test_beginnings_are_found_and_a_context_keeps_a_token_of_its_own():
    """Two subjects of 100 tokens of examples, one context that is such a beginning itself, and one apart."""
    forks = [
        Fork(np.array(context), (np.array([1]),), ((index,),))
        for index, context in enumerate(
            [[7] * 100 + [1, 2], [8] * 100 + [1], [7] * 100 + [3], [9] * 40, [8] * 100 + [2], [7] * 100]
        )
    ]
    groups = {num_shared: sorted(members) for num_shared, members in common_beginnings(forks)}
    assert groups == {99: [0, 2, 5], 100: [1, 4], 0: [3]}


def test_a_beginning_comes_once_more_in_every_row_that_needs_it():
    """One of 200 tokens before 30 contexts of 20 more: in rows of 448 twelve at a time."""
    contexts = [[5] * 200 + [number] * 20 for number in range(6, 36)]
    forks = fork_requests([(context, [1]) for context in contexts], max_length=999, max_branches=255).forks
    bundles = bundle_forks(forks, common_beginnings(forks), row_length=448)
    assert [len(bundle.members) for bundle in bundles] == [12, 12, 6]
    assert [bundle.num_tokens for bundle in bundles] == [440, 440, 320]
    laid = lay_out_rows(forks, tokens_per_step=1024)
    assert laid.has_shared_beginnings and laid.num_tokens < 0.3 * sum(map(len, contexts))


def test_little_in_common_is_not_shared():
    contexts = [[5] * 40 + [number] * 500 for number in range(6, 9)]
    forks = fork_requests([(context, [1]) for context in contexts], max_length=999, max_branches=255).forks
    assert [num_shared for num_shared, _ in common_beginnings(forks)] == [0, 0, 0]


def test_every_request_is_in_the_rows_once_with_all_its_tokens():
    requests = _requests(np.random.default_rng(0), num_items=40)
    requests += requests[:3]  # asked twice
    found = fork_requests(requests, max_length=1000, max_branches=255)
    assert len(found.forks) == 40 and found.num_truncated == 0
    laid = lay_out_rows(found.forks, tokens_per_step=512, row_multiple=2)
    assert laid.rows_per_step % 2 == 0
    seen: dict[int, list[int]] = {}
    for step in range(laid.num_steps):
        batch, owners = laid.step(step)
        real = batch["target_weights"] > 0
        for slot, who in enumerate(owners):
            row, places = np.nonzero(real & (batch["target_slots"] == slot))
            ids = batch["target_ids"][row, places].tolist()
            for request in who:
                assert request not in seen
                seen[request] = ids
            # what its first token is predicted by is the context's last token
            source = batch["target_sources"][row[0], places[0]]
            assert batch["tokens"][row[0], source] == requests[who[0]][0][-1]
            assert batch["positions"][row[0], source] == len(requests[who[0]][0]) - 1
    assert seen == {index: continuation for index, (_, continuation) in enumerate(requests)}


def test_contexts_lose_tokens_from_their_start_and_equal_ones_part_where_they_are_cut_apart():
    """Of 8 tokens read, [6 7] leaves 7 of the context and [6] 8: two contexts."""
    context = list(range(10, 20))
    assert (
        truncate(context, [6, 7], max_length=8) == context[3:] and truncate(context, [6], max_length=8) == context[2:]
    )
    found = fork_requests([(context, [6, 7]), (context, [6]), (context, [8, 9])], max_length=8, max_branches=255)
    assert [fork.context.tolist() for fork in found.forks] == [context[3:], context[2:]]
    assert found.forks[0].owners == ((0,), (2,)) and found.num_truncated == 3
    assert truncate([1, 2, 3], list(range(8)), max_length=8) == [3]


def test_too_many_continuations_take_their_context_along_to_another_fork():
    """255 branches at most; those of one token need none and no place."""
    requests = [([1, 2], [index, 3]) for index in range(5)] + [([1, 2], [9])]
    found = fork_requests(requests, max_length=100, max_branches=2)
    assert [len(fork.continuations) for fork in found.forks] == [2, 2, 2]
    assert [fork.num_tokens for fork in found.forks] == [4, 4, 3]
    many = [([1] * 1000, [index % 50, index // 50] + [3] * 400) for index in range(9)]
    assert [fork.num_tokens for fork in fork_requests(many, max_length=2000, max_branches=255).forks] == [1802] * 4 + [
        1401
    ]
    # However long the context: those of one token stay together.
    long = [([1] * 5000, [index]) for index in range(4)]
    assert [fork.num_tokens for fork in fork_requests(long, max_length=8000, max_branches=255).forks] == [5000]


@pytest.mark.parametrize("longest", [1, 256, 257, 700, 8192])
def test_row_lengths_hold_the_longest_and_are_few(longest):
    lengths = row_lengths(longest)
    assert lengths == sorted(set(lengths)) and lengths[0] >= longest and len(lengths) <= 9
    assert lengths[0] < max(256, 1.26 * longest) + 1


def test_rows_are_nearly_full_and_small_tasks_get_small_steps():
    requests = _requests(np.random.default_rng(1), num_items=200)
    forks = fork_requests(requests, max_length=1000, max_branches=255).forks
    laid = lay_out_rows(forks, tokens_per_step=1024)
    places = laid.num_steps * laid.rows_per_step * laid.row_length
    assert sum(fork.num_tokens for fork in forks) > 0.9 * places
    assert laid.num_targets % 64 == 0
    one = lay_out_rows(forks[:1], tokens_per_step=16384)
    assert one.rows_per_step == 1 and one.row_length == 256
