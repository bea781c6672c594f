"""The shapes of packed pairs: few, holding every step, and each worth the program it costs."""

from __future__ import annotations

import numpy as np

from zephyr_jax.data.row_shapes import candidate_row_lengths, choose_row_shapes, most_shapes


def test_the_drawn_choice_is_the_one_made():
    needed = np.array([[2, 1], [0, 2]])
    assert choose_row_shapes(needed, [512, 1024], most_rows=2) == [(1, 1024), (2, 1024)]


def test_shapes_hold_every_step_and_never_cost_more_than_one_shape():
    rng = np.random.default_rng(0)
    for row_multiple in (1, 4):
        full = rng.integers(1, 20, 300)
        # Half the length needs at least twice the rows, and cannot hold every step.
        half = np.where(rng.random(300) < 0.3, 0, 2 * full - rng.integers(0, 2, 300))
        shapes = choose_row_shapes(
            np.stack([half, full], axis=1), [512, 1024], most_rows=int(full.max()), row_multiple=row_multiple
        )
        assert 1 < len(shapes) <= 4 and all(rows % row_multiple == 0 for rows, _ in shapes)
        sizes = [rows * length for rows, length in shapes]
        assert sizes == sorted(sizes) and shapes[-1][1] == 1024
        assert full.max() <= shapes[-1][0] < full.max() + row_multiple


def test_a_further_shape_must_be_worth_its_compilation():
    """One step of 9 rows among 999 of 10 would save a row in 10 000: not worth a program. Half of them at 5 are."""
    assert choose_row_shapes(np.array([[9]] + [[10]] * 999), [256], most_rows=10) == [(10, 256)]
    assert choose_row_shapes(np.array([[5], [10]] * 500), [256], most_rows=10) == [(5, 256), (10, 256)]


def test_a_long_run_may_have_more_shapes_than_a_short_one():
    """Eight sizes of steps, equally many of each: 1 000 steps get a shape for each, 40 steps only the best four."""
    assert [most_shapes(steps) for steps in (1, 40, 60, 1000)] == [4, 4, 5, 8]
    needed = np.arange(1, 9)[:, None].repeat(5, axis=0)
    assert len(choose_row_shapes(needed, [256], most_rows=8, max_shapes=most_shapes(1000))) == 8
    four = choose_row_shapes(needed, [256], most_rows=8, max_shapes=most_shapes(40))
    assert len(four) == 4 and four[-1] == (8, 256)


def test_a_sample_that_misses_the_largest_step_still_leaves_a_shape_for_it():
    assert choose_row_shapes(np.array([[3]] * 10), [256], most_rows=7) == [(3, 256), (7, 256)]


def test_row_lengths_tried_end_with_the_longest():
    assert candidate_row_lengths(2048) == list(range(128, 2049, 128))
    assert candidate_row_lengths(384) == [64, 128, 192, 256, 320, 384]
    assert candidate_row_lengths(50) == [50]
    assert candidate_row_lengths(2000)[-1] == 2000
