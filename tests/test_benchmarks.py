"""The side-by-side benchmark: its arithmetic on made-up turns, and its recipe."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import dpo_vs_peers
from zephyr_jax.recipe import load_recipe

ARGUMENTS = argparse.Namespace(dtype="float32", batch_size=2, limit=4, epochs=3, turns=2)
WORK = {"pairs": 4, "tokens": 900, "response_tokens": 600, "flops": 12e9}


def _turn(seconds: list[float], peak: float) -> dict:
    result = {"seconds": seconds, "losses": [0.7] * 6, "versions": {}, "peak_gigabytes": peak}
    return result | dpo_vs_peers._passes(result, ARGUMENTS.epochs)


def test_the_first_pass_is_left_out_and_the_ratio_is_of_medians():
    """Two steps a pass: [9 9 | 1 2 | 2 2] counts 3 and 4, the second turn 3 and 6; median 3.5. TRL's are all 7."""
    ours = [_turn([9, 9, 1, 2, 2, 2], 1.5), _turn([9, 9, 1, 2, 3, 3], 2.5)]
    trl = [_turn([9, 9, 3, 4, 3, 4], 4.0)] * 2
    report = dpo_vs_peers.summarise(ARGUMENTS, {"ours": ours, "trl": trl}, WORK, ceiling=6e9)
    side = report["sides"]["ours"]
    assert side["pass_seconds"] == {"median": 3.5, "least": 3, "most": 6, "all": [3, 3, 4, 6]}
    assert report["trl_over_ours"] == 2.0
    assert side["peak_gigabytes"] == 2.5
    assert side["share_of_ceiling"] == pytest.approx(12e9 / 3.5 / 6e9)
    assert "TRL's time over ours: 2.00" in dpo_vs_peers.table(report)


def test_the_recipe_takes_rows_in_file_order_and_evaluates_nothing(monkeypatch):
    monkeypatch.setenv("ZEPHYR_DATA", "/nowhere")
    recipe = load_recipe("benchmarks/dpo.yaml", [])
    assert recipe.ddpo is not None and not recipe.ddpo.shuffle and not recipe.ddpo.data.eval
    assert recipe.stages == ("ddpo",)
