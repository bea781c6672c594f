"""Rules decide by what the answer is, pass or fail; what has no rule is left out and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.fastchat_rows import write
from tests.evaluation.live import write_live_recipe
from zephyr_jax import evaluate
from zephyr_jax.evaluation.fastchat_files import read_judgments
from zephyr_jax.evaluation.rule_judging import Check, read_rules
from zephyr_jax.records import InputError


@pytest.mark.parametrize(
    ("kind", "wanted", "passes", "fails"),
    [
        ("exact", "Paris", " paris\n", "Paris."),
        ("number", 1234.5, "first 7, so it costs $1,234.50.", "1234.5 of 7"),
        ("number", -3, "x = -3", "3"),
        ("number", 3, "It is 3.", "three"),
        ("contains", ["a b", "C"], "A B and c", "a b"),
        ("contains", "oslo", "In Oslo.", "In Rome."),
        ("excludes", ["sorry", "cannot"], "Yes.", "I am Sorry"),
        ("regex", r"^- .+$", "- one", "one"),
        ("json", True, '```json\n{"a": [1]}\n```', "{'a': 1}"),
        ("json", True, "[1, 2]", "[" * 100_000),
        ("max_words", 2, "one two", "one two three"),
        ("min_words", 2, "one two", "one"),
    ],
)
def test_a_check_holds_or_not(kind: str, wanted: object, passes: str, fails: str) -> None:
    check = Check(kind, wanted)
    assert check.holds(passes) and not check.holds(fails)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1, "checks": []}, "'checks' is empty"),
        ({"question_id": 1, "checks": [{"word": 3}]}, "there is no check 'word'; wanted one of exact, number"),
        ({"question_id": 1, "checks": [{"number": "3"}]}, "number is '3'; wanted a number"),
        ({"question_id": 1, "checks": [{"regex": "("}]}, r"regex is '\('; wanted a regular expression"),
        ({"question_id": 1, "checks": [{"json": False}]}, "json is False; wanted true"),
        ({"question_id": 1, "checks": ["number"]}, "a check is 'number'"),
        ({"turn": 1, "checks": [{"number": 1}]}, "has no 'question_id'"),
    ],
)
def test_a_rule_that_is_none_is_named(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_rules(write(tmp_path / "rules.jsonl", [row]))
    good = {"question_id": 1, "checks": [{"number": 1}]}
    with pytest.raises(InputError, match="there is a rule for this before"):
        read_rules(write(tmp_path / "rules.jsonl", [good, good | {"turn": 1}]))


def _evaluated(folder: Path, rules: list[dict], *overrides: str, block: str = "mt_bench") -> dict:
    recipe = write_live_recipe(folder, "http://127.0.0.1:9/v1", 3, block=block)
    blocks = {
        "mt_bench": f"{{answers: [{folder}/ours.jsonl, {folder}/theirs.jsonl], rules: {folder}/rules.jsonl}}",
        "alpaca_eval": f"{{outputs: {folder}/ours_outputs.jsonl, baseline: {folder}/theirs_outputs.jsonl, "
        f"rules: {folder}/rules.jsonl}}",
    }
    write(folder / "rules.jsonl", rules)
    assert evaluate.main(["--config", str(recipe), f"{block}.judging={blocks[block]}", *overrides]) == 0
    return json.loads((folder / "runs/live/evaluation/results.json").read_text(encoding="utf-8"))[block]


def test_answers_are_graded_ten_or_one_by_rules(tmp_path: Path, capsys) -> None:
    """Answers of `ours`: dunno, late, o2; of `theirs`: answer N, longer. Two of six turns have a rule."""
    rules = [
        {"question_id": 2, "checks": [{"number": 2}]},
        {"question_id": 1, "turn": 2, "checks": [{"contains": "again"}, {"excludes": "late"}]},
    ]
    ours, theirs = _evaluated(tmp_path, rules)["models"]
    assert (ours["judge"], ours["score"], theirs["score"]) == ("rules", 5.5, 10)
    assert ours["num_items"] == 2 and ours["num_contradicted"] == 0
    assert "rules gave no judgment at all on 8 items" in capsys.readouterr().out
    folder = tmp_path / "runs/live/evaluation/mt_bench/model_judgment"
    gradings, _ = read_judgments([str(folder / "rules_single.jsonl")])
    late = next(row for row in gradings if row.model == "ours" and row.question_id == 1)
    assert late.judgment == 'contains "again": passed\nexcludes "late": failed\nRating: [[1]]'


def test_the_answer_that_passes_is_preferred_in_either_order(tmp_path: Path) -> None:
    rules = [{"question_id": number, "checks": [{"contains": "longer"}]} for number in range(3)]
    rules.append({"question_id": 0, "turn": 2, "checks": [{"contains": "again"}]})
    (pair,) = _evaluated(tmp_path, rules, "mt_bench.judging.mode=pair")["pairs"]
    assert (pair["judge"], pair["win"], pair["loss"], pair["tie"]) == ("rules", 0, 3, 1)
    assert pair["position"]["same_verdict"] == 1 and pair["position"]["follows_position"] == 0
    _, pairs = read_judgments([str(tmp_path / "runs/live/evaluation/mt_bench/model_judgment/rules_pair.jsonl")])
    assert "[[B]]" in pairs[0].judgments[0] and "[[A]]" in pairs[0].judgments[1]


def test_outputs_are_preferred_by_rules(tmp_path: Path, capsys) -> None:
    rules = [
        {"instruction": "Instruction 0?", "checks": [{"max_words": 1}]},  # ours passes alone
        {"instruction": "Instruction 1?", "checks": [{"min_words": 1}]},  # both do
    ]
    (model,) = _evaluated(tmp_path, rules, block="alpaca_eval")["models"]
    assert (model["annotator"], model["win_rate"], model["n_wins"], model["n_draws"]) == ("rules", 75, 1, 1)
    assert "no judgment at all on 1 pairs" in capsys.readouterr().out


def test_rules_about_something_else_are_no_judge(tmp_path: Path, capsys) -> None:
    rules = write(tmp_path / "rules.jsonl", [{"question_id": 99, "checks": [{"number": 1}]}])
    recipe = write_live_recipe(tmp_path, "http://127.0.0.1:9/v1", 3)
    block = f"mt_bench.judging={{answers: {tmp_path}/ours.jsonl, rules: {rules}}}"
    assert evaluate.main(["--config", str(recipe), block]) == 2
    assert "has no rule for any of 6 turns" in capsys.readouterr().err
