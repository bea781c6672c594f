"""`score` against torch's sums of log-probs on real preference pairs, live; twin: tests/test_golden_score.py."""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip("torch", reason="needs the [parity] extra")
pytest.importorskip("trl", reason="needs the [parity] extra")

from tests.parity import our_scores, torch_smollm2

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch_smollm2.gguf_file() is None, reason="needs `make smollm2`"),
]


def test_scores_of_real_pairs_equal_torch(zephyr_data, tmp_path):
    data = zephyr_data / "preferences_eval.jsonl"
    ours = our_scores.score_rows(data, our_scores.ROWS, folder=tmp_path)
    lines = data.read_text(encoding="utf-8").splitlines()
    model, tokenizer = torch_smollm2.load_smollm2(), torch_smollm2.load_smollm2_tokenizer()
    for number in our_scores.ROWS:
        theirs = dataclasses.asdict(torch_smollm2.score_pair(model, tokenizer, json.loads(lines[number])))
        our_scores.check_score(ours[number], theirs)
