"""The decoding benchmark: its arithmetic on made-up turns."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import decode_vs_transformers as benchmark

ARGUMENTS = argparse.Namespace(batch_sizes=[2], prompt_tokens=64, max_new_tokens=4, repeats=3, turns=1)


def _turn(whole: list[float], prefill: list[float], ids: list[list[int]], **more) -> dict:
    turn = {"whole": {"2": whole}, "prefill": {"2": prefill}, "ids": {"2": ids}, "peak_gigabytes": 1.5}
    return turn | {"versions": {"jax": "0.0"}} | more


def test_tokens_per_second_are_those_of_the_median_and_prefill_is_taken_off_for_decoding():
    """Two rows of 4 tokens: 8 in 2 s; without the prefill of 0.5 s, 6 in 1.5 s. Transformers takes twice as long."""
    ours = _turn([8.0, 2.0, 1.0], [0.5, 0.4, 0.9], [[1, 2, 3, 4]] * 2)
    gaps = [[1.0, 0.9, 1e-6, 0.7], [1.0] * 4]
    more = {"gaps": {"2": gaps}, "peak_gigabytes": 2.5, "versions": {"torch": "0.0"}}
    theirs = _turn([4.0] * 3, [1.0] * 3, [[1, 2, 9, 4], [1, 2, 3, 4]], **more)
    report = benchmark.summarise(ARGUMENTS, {"float32": {"ours": [ours], "transformers": [theirs]}}, prompt_tokens=[64])
    (entry,) = report["results"]
    assert entry["ours"]["tokens_per_second"] == 4 and entry["ours"]["decode_tokens_per_second"] == 4
    assert entry["ratio_of_tokens_per_second"] == 2 and entry["ratio_of_decode_tokens_per_second"] == 2
    assert entry["ids"] == {"rows": 2, "equal_rows": 1, "gaps_at_first_difference": [1e-6]}
    text = benchmark.table(report)
    assert "| float32 | 2 | 4 (1 to 8) | 2 (2 to 2) | 2.00 | 4 | 2 | 2.00 | 1 of 2 |" in text
    assert "Peak memory of a turn, all its batches: float32 ours 1.5 GB, transformers 2.5 GB." in text
    assert "Versions: ours: jax 0.0; transformers: torch 0.0." in text
    assert report["machine"]["cores"] >= 1 and report["settings"]["max_new_tokens"] == 4


def test_ids_of_unequal_length_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        benchmark.compare_ids([[1, 2]], [[1]], [[1.0]])
