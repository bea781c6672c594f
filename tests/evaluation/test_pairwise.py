"""Both orders decide together, and a judge that likes a place is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.fastchat_rows import a_pair, write
from zephyr_jax.evaluation.fastchat_files import read_judgments
from zephyr_jax.evaluation.pairwise import by_contest, outcome, pair_result, parse_verdict
from zephyr_jax.evaluation.statistics import Sampling

FEW = Sampling(resamples=500)


def _result(tmp_path: Path, rows):
    _, pairs = read_judgments([write(tmp_path / "pair.jsonl", rows)])
    ((_, judgments),) = by_contest(pairs).items()
    return pair_result(judgments, sampling=FEW)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("so [[A]]", "A"), ("[[B]]", "B"), ("[[C]] it is", "tie"), ("[[B]] over [[A]]", "A"), ("A is better", "error")],
)
def test_a_verdict_is_parsed_as_fastchat_does(text: str, verdict: str) -> None:
    assert parse_verdict(text) == verdict


def test_a_win_needs_both_orders_and_an_error_drops_the_question(tmp_path: Path) -> None:
    """Two wins, one loss, two ties (one because the orders disagree), one error: (2 + 1) / 5."""
    verdicts = [
        ("model_1",) * 2,
        ("model_1",) * 2,
        ("model_2",) * 2,
        ("tie",) * 2,
        ("model_1", "tie"),
        ("tie", "error"),
    ]
    found = _result(tmp_path, [a_pair(number, *both) for number, both in enumerate(verdicts)])
    assert found is not None and (found.wins, found.losses, found.ties, found.num_errors) == (2, 1, 2, 1)
    assert found.estimate.mean == pytest.approx(0.6) and found.within_noise
    assert (found.position.same_verdict.count, found.position.same_verdict.total) == (4, 5)


def test_position_bias_is_what_the_orders_disagree_about(tmp_path: Path) -> None:
    """Ten questions went to the first place in both orders, none to the second: p = 2 / 2^10."""
    rows = [a_pair(number, "model_1", "model_2") for number in range(10)]
    found = _result(tmp_path, [*rows, a_pair(10, "model_2", "model_2"), a_pair(11, "tie", "model_2")])
    assert found is not None and (found.position.to_first, found.position.to_second) == (10, 0)
    assert found.position.p_value == 2 / 1024 and found.position.same_verdict.count == 1
    assert found.as_dict()["position"]["went_to_the_first"] == 10
    turned = _result(tmp_path, [a_pair(number, "model_2", "model_1") for number in range(3)])
    assert turned is not None and (turned.position.to_first, turned.position.to_second) == (0, 3)


def test_two_models_named_the_other_way_round_are_the_same_contest(tmp_path: Path) -> None:
    other = {"model_1": "theirs", "model_2": "ours"}
    rows = [a_pair(1, "model_1", "model_1"), a_pair(2, "model_2", "model_2", **other)]
    found = _result(tmp_path, [*rows, a_pair(3, "model_1", "model_2", **other)])
    assert found is not None and (found.model_1, found.wins, found.ties) == ("ours", 2, 1)
    assert (found.position.to_first, found.position.to_second) == (1, 0)


def test_nothing_parsed_is_no_result(tmp_path: Path) -> None:
    assert _result(tmp_path, [a_pair(1, "error", "error")]) is None


def test_the_bias_of_gpt_4_in_a_real_run_is_found(zephyr_data: Path) -> None:
    """Counted from the raw file: 20 losses and 18 wins in both orders; 16 went to the first place, 2 to the second."""
    file = zephyr_data / "mt_bench" / "example_run" / "model_judgment" / "gpt-4_pair.jsonl"
    _, pairs = read_judgments([str(file)])
    ((_, judgments),) = by_contest(pairs).items()
    found = pair_result(judgments, sampling=FEW)
    assert found is not None and (found.wins, found.losses, found.ties, found.num_errors) == (18, 20, 35, 2)
    assert (found.position.to_first, found.position.to_second) == (16, 2) and found.position.p_value < 0.01
    assert found.within_noise and found.position.same_verdict.count == 46
    for judgment in judgments:
        by_text = [parse_verdict(text) for text in judgment.judgments]
        names = ({"A": "model_1", "B": "model_2"}, {"A": "model_2", "B": "model_1"})
        parsed = tuple(
            {**name, "tie": "tie", "error": "error"}[text] for name, text in zip(names, by_text, strict=True)
        )
        assert parsed == judgment.verdicts and outcome(judgment) in ("model_1", "model_2", "tie", "error")
