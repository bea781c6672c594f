"""Runs of `zephyr_jax.score` with SmolLM2 on rows of real data, and how its lines are held against torch's.

Not a test; needs no torch, but `make smollm2`.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

# Two short ones, one with a system message, one that does not fit.
ROWS = (20, 106, 42, 119)
ROW_WITHOUT_SCORE = 119
ROW_WITH_CUT_PROMPT = 99


def score_rows(data: pathlib.Path, numbers: tuple[int, ...], *, folder: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Scores the rows of these numbers (in this order, as a file of their own): number -> line of the output."""
    lines = data.read_text(encoding="utf-8").splitlines()
    chosen, out = folder / "rows.jsonl", folder / "scores.jsonl"
    chosen.write_text("".join(lines[number] + "\n" for number in numbers), encoding="utf-8")
    command = [sys.executable, "-m", "zephyr_jax.score", "--model", "builtin:smollm2-135m-instruct"]
    # A process of its own: the sixteen fake devices of this one would each get a row of padding at least.
    environment = os.environ | {"XLA_FLAGS": ""}
    subprocess.run([*command, "--data", str(chosen), "--out", str(out)], env=environment, check=True)
    scores = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [score["row"] for score in scores] == list(range(len(numbers)))
    assert [score["prompt_id"] for score in scores] == [json.loads(lines[number])["prompt_id"] for number in numbers]
    return dict(zip(numbers, scores, strict=True))


def check_score(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The same tokens counted, sums within 1e-3 of their value; nulls and an error where torch's side has no score."""
    for name in ("logp_chosen", "logp_rejected"):
        wanted = theirs[name]
        assert ours[name] == (wanted if wanted is None else pytest.approx(wanted, rel=1e-3))
    for name in ("num_chosen_tokens", "num_rejected_tokens"):
        assert ours[name] == theirs[name]
    assert bool(ours.get("error")) == (theirs["logp_chosen"] is None)
